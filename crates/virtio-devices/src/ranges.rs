//! The bytes of a buffer: descriptors as byte streams, whatever their borders
//! (fact sheet section 1.2: framing carries no meaning).

use arrayvec::ArrayVec;
use guest_memory::{Access, Cursor, GuestRange, MAX_IOVECS};
use virtqueue::Segment;

/// Descriptors of one request: what one system call takes, and far above the 128 that our
/// `seg_max` leads to.
pub(crate) const RANGES_MAX: usize = MAX_IOVECS;

/// Where the bytes of one request lie, each descriptor looked up once.
#[derive(Debug, Default)]
pub(crate) struct Ranges<'a> {
    all: ArrayVec<GuestRange<'a>, RANGES_MAX>,
    readable: usize,
    /// A descriptor is missing.
    spoiled: bool,
}

/// The request names memory that is not shared (for this access), or too many pieces of it.
#[derive(Debug)]
pub(crate) struct Unreachable;

impl<'a> Ranges<'a> {
    /// Forgets all of them: the next request begins.
    pub(crate) fn clear(&mut self) {
        self.all.clear();
        self.readable = 0;
        self.spoiled = false;
    }

    /// Looks another descriptor up, all readable ones first. One bad one spoils the request.
    #[inline]
    pub(crate) fn add(&mut self, memory: &mut Cursor<'a>, access: Access, segment: Segment) {
        let range = memory.translate(segment.addr, segment.len, access);
        let added = range.is_ok_and(|range| self.all.try_push(range).is_ok());
        self.readable += usize::from(access == Access::Read);
        self.spoiled |= !added;
    }

    /// The readable and the writable ranges, if all descriptors could be looked up.
    pub(crate) fn split(
        &mut self,
    ) -> Result<(&mut [GuestRange<'a>], &mut [GuestRange<'a>]), Unreachable> {
        if self.spoiled {
            return Err(Unreachable);
        }
        self.all
            .split_at_mut_checked(self.readable)
            .ok_or(Unreachable)
    }
}

/// The ranges less their first `count` bytes.
pub(crate) fn skip<'r, 'a>(
    mut ranges: &'r mut [GuestRange<'a>],
    mut count: u64,
) -> &'r mut [GuestRange<'a>] {
    while let [first, ..] = ranges {
        let len = first.len() as u64;
        if count < len {
            if let Ok(rest) = first.subrange(count, len - count) {
                *first = rest;
            }
            break;
        }
        count -= len;
        ranges = ranges.get_mut(1..).unwrap_or_default();
    }
    ranges
}

/// The first `count` bytes of the ranges.
pub(crate) fn take<'r, 'a>(
    ranges: &'r mut [GuestRange<'a>],
    mut count: u64,
) -> &'r mut [GuestRange<'a>] {
    let mut taken = 0;
    for range in ranges.iter_mut() {
        if count == 0 {
            break;
        }
        let len = range.len() as u64;
        if count < len
            && let Ok(front) = range.subrange(0, count)
        {
            *range = front;
        }
        count = count.saturating_sub(len);
        taken += 1;
    }
    ranges.get_mut(..taken).unwrap_or_default()
}

/// Copies from ranges to ranges, in order, until either is at its end.
pub(crate) fn copy(from: &[GuestRange<'_>], to: &[GuestRange<'_>]) {
    let mut piece = [0; 4096];
    let mut from = from.iter().copied();
    let mut to = to.iter().copied();
    let (mut source, mut target) = (from.next(), to.next());
    while let (Some(out), Some(into)) = (source, target) {
        let len = out.len().min(into.len()).min(piece.len());
        let (bytes, _) = piece.split_at_mut(len);
        if out.read(0, bytes).is_err() || into.write(0, bytes).is_err() {
            return;
        }
        source = behind(out, len).or_else(|| from.next());
        target = behind(into, len).or_else(|| to.next());
    }
}

/// What is left of a range behind its first bytes, if anything is.
fn behind(range: GuestRange<'_>, count: usize) -> Option<GuestRange<'_>> {
    let left = range.len().checked_sub(count).filter(|left| *left > 0)?;
    range.subrange(count as u64, left as u64).ok()
}

/// Copies bytes from the front of the ranges; false if they hold too few.
pub(crate) fn gather(ranges: &[GuestRange<'_>], into: &mut [u8]) -> bool {
    let mut rest = into;
    for range in ranges {
        let len = range.len().min(rest.len());
        let (part, behind) = rest.split_at_mut(len);
        if range.read(0, part).is_err() {
            return false;
        }
        rest = behind;
    }
    rest.is_empty()
}

/// Copies bytes to the front of the ranges; answers how many there was room for.
pub(crate) fn scatter(ranges: &[GuestRange<'_>], from: &[u8]) -> u64 {
    let mut rest = from;
    for range in ranges {
        let (part, behind) = rest.split_at(range.len().min(rest.len()));
        if range.write(0, part).is_err() {
            break;
        }
        rest = behind;
    }
    (from.len() - rest.len()) as u64
}

/// Writes the last byte of a range.
pub(crate) fn put_last(range: GuestRange<'_>, byte: u8) -> bool {
    match range.len().checked_sub(1) {
        Some(at) => range.write(at as u64, &[byte]).is_ok(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::{Area, FlatSpace};
    use proptest::prelude::*;

    /// Ranges of these lengths over the bytes 0, 1, 2 …, in an order that is not theirs in memory.
    fn laid_out<'a>(area: &'a Area, lens: &[usize]) -> Vec<GuestRange<'a>> {
        let mut at = area.len() as u64;
        let mut byte = 0;
        lens.iter()
            .map(|len| {
                at -= *len as u64;
                let range = area.range(at, *len as u64, Access::Write).unwrap();
                let bytes: Vec<u8> = (0..*len)
                    .map(|_| {
                        byte += 1;
                        byte - 1
                    })
                    .collect();
                range.write(0, &bytes).unwrap();
                range
            })
            .collect()
    }

    fn contents(ranges: &[GuestRange<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for range in ranges {
            let mut part = vec![0; range.len()];
            range.read(0, &mut part).unwrap();
            bytes.append(&mut part);
        }
        bytes
    }

    proptest! {
        #[test]
        fn borders_carry_no_meaning(
            lens in prop::collection::vec(1usize..12, 0..12),
            from in 0u64..140,
            count in 0u64..140,
        ) {
            let area = Area::anonymous(4096).unwrap();
            let mut ranges = laid_out(&area, &lens);
            let all = contents(&ranges);
            let start = all.len().min(usize::try_from(from).unwrap());
            let end = all.len().min(start + usize::try_from(count).unwrap());

            let part = take(skip(&mut ranges, from), count);
            prop_assert_eq!(contents(part), &all[start..end]);
            prop_assert!(part.iter().all(|range| !range.is_empty()));

            let mut copy = vec![0xee; usize::try_from(count).unwrap()];
            prop_assert_eq!(gather(part, &mut copy), start + copy.len() <= all.len());
            prop_assert_eq!(&copy[..end - start], &all[start..end]);

            let fresh = vec![0xaa; usize::try_from(count).unwrap()];
            prop_assert_eq!(scatter(part, &fresh), (end - start) as u64);
            prop_assert_eq!(contents(part), &fresh[..end - start]);
        }
    }

    #[test]
    fn one_bad_descriptor_spoils_its_request_and_no_other() {
        let area = Area::anonymous(4096).unwrap();
        let space = FlatSpace::new(0, &area);
        let mut memory = Cursor::new(&space);
        let mut ranges = Ranges::default();
        let good = Segment { addr: 64, len: 16 };
        let bad = Segment {
            addr: 4095,
            len: 16,
        };
        for (readable, writable, fine) in [
            (&[good][..], &[good, good][..], true),
            (&[bad], &[good, good], false),
            (&[good], &[bad, good], false),
            (&[], &[good], true),
            (&[good], &[good; RANGES_MAX - 1], true),
            (&[good], &[good; RANGES_MAX], false),
            (&[good; RANGES_MAX + 1], &[good], false),
            (&[good], &[], true),
        ] {
            ranges.clear();
            for segment in readable {
                ranges.add(&mut memory, Access::Read, *segment);
            }
            for segment in writable {
                ranges.add(&mut memory, Access::Write, *segment);
            }
            let lens = ranges
                .split()
                .map(|(read, write)| (read.len(), write.len()));
            let expected = fine.then_some((readable.len(), writable.len()));
            assert_eq!(lens.ok(), expected);
        }
    }

    #[test]
    fn the_last_byte_is_one_byte() {
        let area = Area::anonymous(4096).unwrap();
        let range = area.range(100, 8, Access::Write).unwrap();
        assert!(put_last(range, 7));
        assert_eq!(
            contents(&[area.range(99, 10, Access::Read).unwrap()]),
            [0, 0, 0, 0, 0, 0, 0, 0, 7, 0]
        );
        assert!(!put_last(range.subrange(0, 0).unwrap(), 7));
        assert!(!put_last(area.range(0, 1, Access::Read).unwrap(), 7));
    }
}
