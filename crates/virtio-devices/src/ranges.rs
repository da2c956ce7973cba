//! The bytes of a buffer: descriptors as byte streams, whatever their borders
//! (fact sheet section 1.2: framing carries no meaning).

use arrayvec::ArrayVec;
use guest_memory::{Access, AddressSpace, Cursor, GuestRange, MAX_IOVECS};
use virtqueue::{Chain, Segment};

/// Descriptors of one request: what one system call takes, and far above the 128 that our
/// `seg_max` leads to.
pub(crate) const RANGES_MAX: usize = MAX_IOVECS;

/// Where the bytes of one request lie, each descriptor looked up once.
#[derive(Debug, Default)]
pub(crate) struct Ranges<'a> {
    all: ArrayVec<GuestRange<'a>, RANGES_MAX>,
    readable: usize,
}

/// The request names memory that is not shared (for this access), or too many pieces of it.
#[derive(Debug)]
pub(crate) struct Unreachable;

impl<'a> Ranges<'a> {
    /// Looks up every descriptor, the readable ones first. One bad one spoils the request.
    pub(crate) fn translate(
        &mut self,
        memory: &mut Cursor<'a>,
        chain: &Chain,
    ) -> Result<(), Unreachable> {
        self.add(memory, chain.readable(), Access::Read)?;
        self.readable = self.all.len();
        self.add(memory, chain.writable(), Access::Write)
    }

    /// Looks up the writable descriptors alone.
    pub(crate) fn translate_writable(
        &mut self,
        space: &'a dyn AddressSpace,
        chain: &Chain,
    ) -> Result<(), Unreachable> {
        self.add(&mut Cursor::new(space), chain.writable(), Access::Write)
    }

    fn add(
        &mut self,
        memory: &mut Cursor<'a>,
        segments: &[Segment],
        access: Access,
    ) -> Result<(), Unreachable> {
        for segment in segments {
            let range = memory
                .translate(segment.addr, segment.len, access)
                .map_err(|_| Unreachable)?;
            self.all.try_push(range).map_err(|_| Unreachable)?;
        }
        Ok(())
    }

    /// The readable and the writable ranges.
    pub(crate) fn split(&mut self) -> (&mut [GuestRange<'a>], &mut [GuestRange<'a>]) {
        self.all
            .split_at_mut_checked(self.readable)
            .unwrap_or_default()
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
    use guest_memory::Area;
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
