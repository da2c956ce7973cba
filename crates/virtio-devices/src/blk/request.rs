//! What a request asks for and whether it may: the table of fact sheet section 4.3, in its
//! order, from the private copy of the header. Pure; touches no memory and no file.

use super::erase::{Erasing, LIST_BYTES_MAX};
use super::image::SECTOR;
use super::offer::{F_DISCARD, F_WRITE_ZEROES};

/// Bytes of a request header.
pub(super) const HEADER_BYTES: u64 = 16;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// Done.
    Ok = 0,
    /// Failed, or not allowed.
    IoErr = 1,
    /// Not a request of this device.
    Unsupp = 2,
}

/// A request that has passed the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Read the data-in bytes from this byte offset; they fit into the disk.
    In {
        /// Byte offset in the image.
        offset: u64,
    },
    /// Write the data-out bytes to this byte offset; they fit into the disk.
    Out {
        /// Byte offset in the image.
        offset: u64,
    },
    /// Erase what the data-out bytes name; they are not more than the largest list.
    Erase(Erasing),
    /// Make what was completed before stable.
    Flush,
    /// Give the serial.
    GetId,
}

/// What the table needs to know of the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Capacity in sectors.
    pub(super) sectors: u64,
    /// RO was offered, whether negotiated or not.
    pub(super) read_only: bool,
}

impl Request {
    /// Judges a header with `data_out` readable bytes behind it and `data_in` writable bytes
    /// before the status byte, from a driver that accepted `features`.
    pub(super) fn parse(
        header: [u8; 16],
        data_out: u64,
        data_in: u64,
        limits: Limits,
        features: u128,
    ) -> Result<Self, Status> {
        // `reserved` at 4 carries the I/O priority of some drivers.
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            T_IN => Ok(Self::In {
                offset: offset(sector, data_in, limits.sectors)?,
            }),
            T_OUT if limits.read_only => Err(Status::IoErr),
            T_OUT => Ok(Self::Out {
                offset: offset(sector, data_out, limits.sectors)?,
            }),
            // Whether negotiated or not.
            T_FLUSH => Ok(Self::Flush),
            T_GET_ID => Ok(Self::GetId),
            T_DISCARD if features & F_DISCARD != 0 => erase(Erasing::Discard, data_out),
            T_WRITE_ZEROES if features & F_WRITE_ZEROES != 0 => erase(Erasing::Zero, data_out),
            _ => Err(Status::Unsupp),
        }
    }
}

/// Bounds what is copied; the segments themselves are judged by their parser.
fn erase(erasing: Erasing, data_out: u64) -> Result<Request, Status> {
    if data_out > LIST_BYTES_MAX as u64 {
        return Err(Status::IoErr);
    }
    Ok(Request::Erase(erasing))
}

/// The byte offset of `len` bytes at `sector`, if they are whole sectors inside the disk.
fn offset(sector: u64, len: u64, sectors: u64) -> Result<u64, Status> {
    if !len.is_multiple_of(SECTOR) {
        return Err(Status::IoErr);
    }
    // Never sector + n: the driver chooses both.
    let left = sectors.checked_sub(sector).ok_or(Status::IoErr)?;
    if len / SECTOR > left {
        return Err(Status::IoErr);
    }
    sector.checked_mul(SECTOR).ok_or(Status::IoErr)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: Limits = Limits {
        sectors: 100,
        read_only: false,
    };
    const RO: Limits = Limits {
        sectors: 100,
        read_only: true,
    };

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    #[test]
    fn r26_only_the_exact_types_that_were_negotiated_are_known() {
        let high = (0..32).map(|t| t | 1 << 31);
        for kind in (0..32).chain(high).chain([u32::MAX, 1 << 8, 1 << 16]) {
            for features in [
                0,
                F_DISCARD,
                F_WRITE_ZEROES,
                F_DISCARD | F_WRITE_ZEROES,
                u128::MAX,
            ] {
                let known = match kind {
                    T_IN | T_OUT | T_FLUSH | T_GET_ID => true,
                    T_DISCARD => features & F_DISCARD != 0,
                    T_WRITE_ZEROES => features & F_WRITE_ZEROES != 0,
                    _ => false,
                };
                let answer = Request::parse(header(kind, 0), 0, 0, RW, features);
                let unsupported = answer == Err(Status::Unsupp);
                assert_eq!(
                    unsupported, !known,
                    "type {kind:#x}, features {features:#x}"
                );
            }
        }
    }

    #[test]
    fn r30_more_than_the_largest_list_is_not_copied() {
        for kind in [T_DISCARD, T_WRITE_ZEROES] {
            let parse = |bytes| Request::parse(header(kind, 0), bytes, 0, RW, u128::MAX);
            assert!(parse(256).is_ok());
            for bytes in [257, 272, u64::MAX] {
                assert_eq!(parse(bytes), Err(Status::IoErr));
            }
        }
    }

    #[test]
    fn r27_sectors_and_lengths_are_judged_without_overflow() {
        let last = 1 << 55;
        for (sector, len, fine) in [
            (0, 0, true),
            (0, 511, false),
            (0, 512, true),
            (0, 513, false),
            (0, 100 * 512, true),
            (0, 101 * 512, false),
            (99, 512, true),
            (99, 1024, false),
            (100, 0, true),
            (100, 512, false),
            (101, 0, false),
            (last, 0, false),
            (last, 512, false),
            (u64::MAX, 0, false),
            (u64::MAX, 512, false),
            (u64::MAX, 1024, false),
        ] {
            let expected = if fine {
                Ok(sector << 9)
            } else {
                Err(Status::IoErr)
            };
            assert_eq!(
                Request::parse(header(T_IN, sector), 7, len, RW, 0),
                expected.map(|offset| Request::In { offset }),
                "IN {sector} {len}"
            );
            assert_eq!(
                Request::parse(header(T_OUT, sector), len, 7, RW, 0),
                expected.map(|offset| Request::Out { offset }),
                "OUT {sector} {len}"
            );
        }
    }

    #[test]
    fn the_largest_disk_has_no_overflow() {
        let huge = Limits {
            sectors: u64::MAX / 512,
            read_only: false,
        };
        let last = huge.sectors - 1;
        assert_eq!(
            Request::parse(header(T_IN, last), 0, 512, huge, 0),
            Ok(Request::In { offset: last * 512 })
        );
        assert_eq!(
            Request::parse(header(T_IN, u64::MAX), 0, 512, huge, 0),
            Err(Status::IoErr)
        );
    }

    #[test]
    fn r28_a_read_only_disk_refuses_writes_before_looking_further() {
        for len in [0, 1, 512] {
            assert_eq!(
                Request::parse(header(T_OUT, 0), len, 0, RO, 0),
                Err(Status::IoErr)
            );
        }
        assert!(Request::parse(header(T_IN, 0), 0, 512, RO, 0).is_ok());
        for erasing in [11, 13, 14] {
            assert_eq!(
                Request::parse(header(erasing, 0), 16, 0, RO, 0),
                Err(Status::Unsupp)
            );
        }
    }

    #[test]
    fn r39_reserved_and_needless_sectors_are_ignored() {
        let mut busy = header(T_FLUSH, u64::MAX);
        busy[4..8].fill(0xff);
        assert_eq!(Request::parse(busy, 99, 99, RW, 0), Ok(Request::Flush));
        busy[0] = 8;
        assert_eq!(Request::parse(busy, 99, 99, RW, 0), Ok(Request::GetId));
    }
}
