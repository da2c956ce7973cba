//! One descriptor (VIRTIO 1.4, 2.7.5): 16 bytes, little-endian. Unknown flag bits are ignored.

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;

/// A private copy of a descriptor: both its halves, as little-endian numbers. What is in the
/// second is taken out when it is asked for, so that a walk has two numbers to carry along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    addr: u64,
    rest: u64,
}

impl Descriptor {
    /// The chain goes on at `next`.
    pub(crate) const NEXT: u16 = 1;
    /// For the device to write; else for it to read.
    pub(crate) const WRITE: u16 = 2;
    /// Names a table of descriptors.
    pub(crate) const INDIRECT: u16 = 4;

    #[inline]
    pub(crate) const fn new(addr: u64, len: u32, flags: u16, next: u16) -> Self {
        Self {
            addr,
            rest: len as u64 | (flags as u64) << 32 | (next as u64) << 48,
        }
    }

    #[inline]
    pub(crate) const fn from_words([addr, rest]: [u64; 2]) -> Self {
        Self { addr, rest }
    }

    #[inline]
    pub(crate) const fn to_words(self) -> [u64; 2] {
        [self.addr, self.rest]
    }

    #[inline]
    pub(crate) const fn addr(self) -> u64 {
        self.addr
    }

    #[inline]
    pub(crate) const fn len(self) -> u32 {
        let [l0, l1, l2, l3, ..] = self.rest.to_le_bytes();
        u32::from_le_bytes([l0, l1, l2, l3])
    }

    #[inline]
    pub(crate) const fn has(self, flag: u16) -> bool {
        self.rest & (flag as u64) << 32 != 0
    }

    #[inline]
    pub(crate) const fn next(self) -> u16 {
        let [.., n0, n1] = self.rest.to_le_bytes();
        u16::from_le_bytes([n0, n1])
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
        let flags = Descriptor::WRITE | Descriptor::NEXT;
        let descriptor = Descriptor::new(0x0001_0000_0000_2000, 512, flags, 1);
        let words = words([0, 0x20, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 1, 0]);
        assert_eq!(descriptor.to_words(), words);
        assert_eq!(Descriptor::from_words(words), descriptor);
    }

    #[test]
    fn each_field_has_its_place() {
        let words = words(*b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10");
        let descriptor = Descriptor::from_words(words);
        assert_eq!(descriptor.addr(), 0x0807_0605_0403_0201);
        assert_eq!(descriptor.len(), 0x0c0b_0a09);
        let flags = (0..16).filter(|bit| descriptor.has(1 << bit));
        assert_eq!(flags.map(|bit| 1 << bit).sum::<u16>(), 0x0e0d);
        assert_eq!(descriptor.next(), 0x100f);
        assert_eq!(descriptor.to_words(), words);
    }
}
