//! One descriptor (VIRTIO 1.4, 2.7.5): 16 bytes, little-endian. Unknown flag bits are ignored.

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;

/// A private copy of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// The chain goes on at `next`.
    pub(crate) const NEXT: u16 = 1;
    /// For the device to write; else for it to read.
    pub(crate) const WRITE: u16 = 2;
    /// Names a table of descriptors.
    pub(crate) const INDIRECT: u16 = 4;

    #[inline]
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// From the two halves as little-endian numbers.
    #[inline]
    pub(crate) fn from_words([addr, rest]: [u64; 2]) -> Self {
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Self {
            addr,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    #[inline]
    pub(crate) fn to_words(self) -> [u64; 2] {
        let rest = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        [self.addr, rest]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(bytes: [u8; 16]) -> [u64; 2] {
        let (halves, _) = bytes.as_chunks();
        [halves[0], halves[1]].map(u64::from_le_bytes)
    }

    #[test]
    fn bytes_are_those_of_the_specification() {
        let descriptor = Descriptor {
            addr: 0x0001_0000_0000_2000,
            len: 512,
            flags: Descriptor::WRITE | Descriptor::NEXT,
            next: 1,
        };
        let words = words([0, 0x20, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 1, 0]);
        assert_eq!(descriptor.to_words(), words);
        assert_eq!(Descriptor::from_words(words), descriptor);
    }

    #[test]
    fn each_field_has_its_place() {
        let words = words(*b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10");
        let descriptor = Descriptor::from_words(words);
        assert_eq!(descriptor.addr, 0x0807_0605_0403_0201);
        assert_eq!(descriptor.len, 0x0c0b_0a09);
        assert_eq!(descriptor.flags, 0x0e0d);
        assert_eq!(descriptor.next, 0x100f);
        assert_eq!(descriptor.to_words(), words);
    }
}
