//! Block requests and what becomes of them (virtio 1.4 section 5.2.6).

use std::fmt;

/// Bytes of a sector, the unit of the protocol.
pub const SECTOR: u64 = 512;
/// Bytes that one request carries at most.
pub const MAX_REQUEST: usize = 128 << 10;
/// Bytes of the serial that GET_ID gives.
pub(super) const ID_BYTES: usize = 20;
/// Bytes of a request's header.
pub(super) const HEADER: u32 = 16;
/// Where the status byte stands: behind the header.
pub(super) const STATUS_AT: usize = 16;
/// Header and status byte.
pub(super) const CONTROL: usize = STATUS_AT + 1;
/// Bytes of the segment of a discard, and of a write of zeroes.
const SEGMENT: usize = 16;
/// What stands in the status byte before the device writes it: no status of virtio, so that a
/// device that writes none is found out.
const NO_STATUS: u8 = 0xff;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read `len` bytes from `sector` on.
    Read {
        /// First sector.
        sector: u64,
        /// Bytes, a multiple of 512.
        len: usize,
    },
    /// Write the bytes that were put into the slot.
    Write {
        /// First sector.
        sector: u64,
        /// Bytes, a multiple of 512.
        len: usize,
    },
    /// Make all completed writes durable.
    Flush,
    /// Give up what is there: what a read finds afterwards is anybody's guess.
    Discard {
        /// First sector.
        sector: u64,
        /// How many, at most [`Disk::discard_limit`](super::Disk::discard_limit).
        sectors: u32,
    },
    /// Have zeroes there.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// How many, at most [`Disk::zero_limit`](super::Disk::zero_limit).
        sectors: u32,
        /// The space may be given up.
        unmap: bool,
    },
    /// Read the serial.
    GetId,
}

impl Operation {
    /// Header and status byte as the device finds them.
    pub(super) fn control(self) -> [u8; CONTROL] {
        let (kind, sector, ..) = self.parts();
        let mut bytes = [NO_STATUS; CONTROL];
        let fields = [u64::from(kind), sector].map(u64::to_le_bytes);
        for (byte, field) in bytes.iter_mut().zip(fields.as_flattened()) {
            *byte = *field;
        }
        bytes
    }

    /// Request type, sector, bytes of data, and whether the device writes them.
    pub(super) fn parts(self) -> (u32, u64, usize, bool) {
        match self {
            Self::Read { sector, len } => (0, sector, len, true),
            Self::Write { sector, len } => (1, sector, len, false),
            Self::Flush => (4, 0, 0, false),
            Self::GetId => (8, 0, ID_BYTES, true),
            Self::Discard { .. } => (11, 0, SEGMENT, false),
            Self::WriteZeroes { .. } => (13, 0, SEGMENT, false),
        }
    }

    /// The data of a request that says in them where it is to be done.
    pub(super) fn segment(self) -> Option<[u8; SEGMENT]> {
        let (sector, sectors, flags) = match self {
            Self::Discard { sector, sectors } => (sector, sectors, 0),
            Self::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => (sector, sectors, u32::from(unmap)),
            _ => return None,
        };
        let mut bytes = [0; SEGMENT];
        let fields = [sector, u64::from(flags) << 32 | u64::from(sectors)].map(u64::to_le_bytes);
        for (byte, field) in bytes.iter_mut().zip(fields.as_flattened()) {
            *byte = *field;
        }
        Some(bytes)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { sector, len } => write!(f, "read of {len} bytes at sector {sector}"),
            Self::Write { sector, len } => write!(f, "write of {len} bytes at sector {sector}"),
            Self::Flush => f.write_str("flush"),
            Self::Discard { sector, sectors } => {
                write!(f, "discard of {sectors} sectors at sector {sector}")
            }
            Self::WriteZeroes {
                sector, sectors, ..
            } => write!(f, "zeroing of {sectors} sectors at sector {sector}"),
            Self::GetId => f.write_str("request for the serial"),
        }
    }
}

/// What the device says of a request (virtio 1.4 section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// It failed: VIRTIO_BLK_S_IOERR.
    IoError,
    /// The device cannot do that: VIRTIO_BLK_S_UNSUPP.
    Unsupported,
}

/// A request that has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Where its data stands, until the slot is used again.
    pub slot: usize,
    /// What was asked.
    pub operation: Operation,
    /// What became of it.
    pub status: Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_type_reserved_sector_and_a_status_that_is_none() {
        let write = Operation::Write {
            sector: 0x0102_0304_0506_0708,
            len: 512,
        };
        let expected = [1, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0xff];
        assert_eq!(write.control(), expected);
    }

    #[test]
    fn where_to_zero_stands_in_the_data() {
        let zero = Operation::WriteZeroes {
            sector: 0x0102_0304_0506_0708,
            sectors: 0x0a0b_0c0d,
            unmap: true,
        };
        assert_eq!(
            zero.control()[..16],
            [13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        let expected = [8, 7, 6, 5, 4, 3, 2, 1, 13, 12, 11, 10, 1, 0, 0, 0];
        assert_eq!(zero.segment(), Some(expected));
        assert_eq!(Operation::Flush.segment(), None);
    }

    #[test]
    fn an_operation_is_named_in_words() {
        let write = Operation::Write {
            sector: 2048,
            len: 65_536,
        };
        assert_eq!(write.to_string(), "write of 65536 bytes at sector 2048");
        assert_eq!(Operation::Flush.to_string(), "flush");
    }
}
