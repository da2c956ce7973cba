//! Discard and write zeroes: what their segments mean (fact sheet sections 4.2 and 4.3).
//!
//! All segments are judged before any is executed. Pure up to `Erase::run`.

use std::io;

use arrayvec::ArrayVec;

use super::image::SECTOR;
use super::request::Status;
use super::storage::Storage;

/// Bytes of a segment.
const SEGMENT_BYTES: usize = 16;

/// Segments of any request. Linux merges discards, up to 256; each costs a system call, with a
/// stop or reset of the queue waiting for all of them.
const SEGMENTS_MAX: u32 = 16;

/// Bytes of the segments of any request.
pub(super) const LIST_BYTES_MAX: usize = SEGMENTS_MAX as usize * SEGMENT_BYTES;

const FLAG_UNMAP: u32 = 1;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Erasing {
    /// What was there may go.
    Discard,
    /// Zeros are there afterwards.
    Zero,
}

impl Erasing {
    /// Segments of one request.
    pub(super) fn segments_max(self) -> u32 {
        match self {
            Self::Discard => SEGMENTS_MAX,
            Self::Zero => 4,
        }
    }

    /// Sectors of one segment: 1 GiB to discard, as that only changes maps; but 32 MiB to zero,
    /// as that may mean to write them, with a stop or reset of the queue waiting for it.
    pub(super) fn sectors_max(self) -> u32 {
        match self {
            Self::Discard => 1 << 21,
            Self::Zero => 1 << 16,
        }
    }
}

/// A range of the disk, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Its first byte.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
    /// Its space may be given up.
    pub(super) unmap: bool,
}

/// A request that has passed the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Erase {
    /// What to do.
    pub(super) erasing: Erasing,
    /// Where.
    pub(super) extents: Vec<Extent>,
}

impl Erase {
    /// Judges the segments of a request: the data behind its header.
    pub(super) fn parse(erasing: Erasing, segments: &[u8], sectors: u64) -> Result<Self, Status> {
        let (segments, []) = segments.as_chunks::<SEGMENT_BYTES>() else {
            return Err(Status::IoErr);
        };
        if segments.is_empty() || segments.len() > erasing.segments_max() as usize {
            return Err(Status::IoErr);
        }
        let segments: ArrayVec<Segment, { SEGMENTS_MAX as usize }> = segments
            .iter()
            .take(SEGMENTS_MAX as usize)
            .map(Segment::new)
            .collect();
        if !segments
            .iter()
            .all(|segment| segment.fits(erasing, sectors))
        {
            return Err(Status::IoErr);
        }
        if !segments
            .iter()
            .all(|segment| segment.has_known_flags(erasing))
        {
            return Err(Status::Unsupp);
        }
        let extents = segments.iter().filter_map(|segment| segment.extent());
        Ok(Self {
            erasing,
            extents: extents.collect(),
        })
    }

    /// Does it, waiting for it. After an error any part may have been done.
    pub(super) fn run(&self, storage: &dyn Storage) -> io::Result<()> {
        self.extents.iter().try_for_each(|extent| {
            let Extent { offset, len, unmap } = *extent;
            match self.erasing {
                Erasing::Discard => storage.discard(offset, len),
                Erasing::Zero => storage.zero(offset, len, unmap),
            }
        })
    }
}

/// A segment as it came.
#[derive(Clone, Copy, Debug)]
struct Segment {
    sector: u64,
    num_sectors: u32,
    flags: u32,
}

impl Segment {
    fn new(bytes: &[u8; SEGMENT_BYTES]) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *bytes;
        Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            num_sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes(flags),
        }
    }

    fn fits(&self, erasing: Erasing, sectors: u64) -> bool {
        // Never sector + n: the driver chooses both.
        let left = sectors.checked_sub(self.sector);
        self.num_sectors <= erasing.sectors_max()
            && left.is_some_and(|left| u64::from(self.num_sectors) <= left)
    }

    fn has_known_flags(&self, erasing: Erasing) -> bool {
        let known = match erasing {
            Erasing::Discard => 0,
            Erasing::Zero => FLAG_UNMAP,
        };
        self.flags & !known == 0
    }

    fn extent(&self) -> Option<Extent> {
        (self.num_sectors > 0).then(|| Extent {
            // Inside the disk, which has fewer than 2^64 bytes.
            offset: self.sector.saturating_mul(SECTOR),
            len: u64::from(self.num_sectors) * SECTOR,
            unmap: self.flags & FLAG_UNMAP != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Erasing; 2] = [Erasing::Discard, Erasing::Zero];
    const SECTORS: u64 = 1 << 30;

    fn segment(sector: u64, num_sectors: u32, flags: u32) -> Vec<u8> {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(num_sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    }

    fn parse(erasing: Erasing, segments: &[Vec<u8>]) -> Result<Vec<Extent>, Status> {
        Erase::parse(erasing, &segments.concat(), SECTORS).map(|erase| erase.extents)
    }

    #[test]
    fn r30_as_many_segments_as_the_configuration_space_says() {
        for erasing in BOTH {
            let max = erasing.segments_max() as usize;
            for count in 0..40 {
                let parsed = parse(erasing, &vec![segment(1, 1, 0); count]);
                let fine = (1..=max).contains(&count);
                let expected = if fine { Ok(count) } else { Err(Status::IoErr) };
                assert_eq!(parsed.map(|extents| extents.len()), expected, "{count}");
            }
            for cut in 1..16 {
                let bytes = [segment(1, 1, 0), segment(2, 1, 0)[..cut].to_vec()];
                assert_eq!(parse(erasing, &bytes), Err(Status::IoErr));
                assert_eq!(parse(erasing, &bytes[1..]), Err(Status::IoErr));
            }
        }
    }

    #[test]
    fn r30_each_segment_lies_inside_the_disk_and_the_limit() {
        for erasing in BOTH {
            let max = erasing.sectors_max();
            for (sector, count, fine) in [
                (0, 1, true),
                (0, max, true),
                (0, max + 1, false),
                (0, u32::MAX, false),
                (SECTORS - 1, 1, true),
                (SECTORS - 1, 2, false),
                (SECTORS, 0, true),
                (SECTORS, 1, false),
                (SECTORS + 1, 0, false),
                (u64::MAX, 1, false),
                (u64::MAX, 0, false),
                (1 << 55, 8, false),
            ] {
                let good = segment(5, 1, 0);
                let parsed = parse(erasing, &[good, segment(sector, count, 0)]);
                assert_eq!(parsed.is_ok(), fine, "{erasing:?} {sector} {count}");
                assert!(fine || parsed == Err(Status::IoErr));
            }
        }
    }

    #[test]
    fn r31_flags_that_a_type_does_not_have_are_unsupported() {
        for bit in 0..32 {
            let flagged = [segment(1, 1, 0), segment(2, 2, 1 << bit)];
            assert_eq!(parse(Erasing::Discard, &flagged), Err(Status::Unsupp));
            let zeroed = parse(Erasing::Zero, &flagged);
            assert_eq!(zeroed.is_ok(), bit == 0, "bit {bit}");
            assert!(bit == 0 || zeroed == Err(Status::Unsupp));
        }
        // A range that is wrong as well comes first in the table.
        let both = [segment(1, 1, 2), segment(SECTORS, 1, 0)];
        assert_eq!(parse(Erasing::Zero, &both), Err(Status::IoErr));
    }

    #[test]
    fn extents_are_bytes_and_never_empty() {
        let parsed = parse(
            Erasing::Zero,
            &[segment(2048, 8, 1), segment(9, 0, 0), segment(0, 3, 0)],
        );
        let extent = |offset, len, unmap| Extent { offset, len, unmap };
        let expected = [extent(1 << 20, 4096, true), extent(0, 1536, false)];
        assert_eq!(parsed.unwrap(), expected);
    }
}
