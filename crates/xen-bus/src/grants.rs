//! Ranges at grant addresses: which bytes of which granted pages (binding section 5).
//!
//! A range goes on in the next reference; references do not wrap. Knows nothing of what is
//! granted: the hypervisor does, when the pages are mapped or copied.

use xen_types::{BusAddr, Form, GrantRef, PAGE_SIZE};

/// Bytes in granted pages with consecutive references. Never beyond the last reference there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantRange {
    first: GrantRef,
    offset: u16,
    len: u32,
}

/// The part of a range that lies in one page; together at most the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The page.
    pub gref: GrantRef,
    /// The first byte in it.
    pub offset: u16,
    /// Bytes, 1 to 4,096.
    pub len: u16,
}

impl GrantRange {
    /// The `len` bytes at `addr`; `None` if `addr` is not of the grant form, or the range would
    /// need a reference behind the last one.
    #[must_use]
    pub fn new(addr: u64, len: u32) -> Option<Self> {
        let Some(Form::Grant { gref, offset }) = BusAddr(addr).form() else {
            return None;
        };
        let range = Self {
            first: gref,
            offset,
            len,
        };
        let behind_first = range.pages().saturating_sub(1);
        gref.0.checked_add(behind_first).map(|_last| range)
    }

    /// The first byte in the first page.
    #[must_use]
    pub fn offset(&self) -> u16 {
        self.offset
    }

    /// Bytes.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a range of no bytes is like any other"
    )]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Pages that the range touches; none if it has no bytes.
    #[must_use]
    pub fn pages(&self) -> u32 {
        if self.len == 0 {
            return 0;
        }
        let bytes = u64::from(self.offset) + u64::from(self.len);
        u32::try_from(bytes.div_ceil(PAGE_SIZE as u64)).unwrap_or(u32::MAX)
    }

    /// The references of the pages, in order.
    pub fn refs(&self) -> impl Iterator<Item = GrantRef> + use<> {
        let first = self.first.0;
        (0..self.pages()).map(move |page| GrantRef(first.wrapping_add(page)))
    }

    /// The range page by page, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<> {
        let (mut offset, mut left) = (self.offset, self.len);
        self.refs().map(move |gref| {
            let room = u16::try_from(PAGE_SIZE)
                .unwrap_or(u16::MAX)
                .saturating_sub(offset);
            let len = u16::try_from(left).map_or(room, |left| room.min(left));
            let piece = Piece { gref, offset, len };
            offset = 0;
            left = left.saturating_sub(len.into());
            piece
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(gref: u32, offset: u16) -> u64 {
        BusAddr::in_grant(GrantRef(gref), offset).unwrap().0
    }

    fn pieces(addr: u64, len: u32) -> Vec<(u32, u16, u16)> {
        let range = GrantRange::new(addr, len).unwrap();
        let pieces = range.pieces().map(|p| (p.gref.0, p.offset, p.len));
        pieces.collect()
    }

    #[test]
    fn a_range_goes_on_in_the_next_reference() {
        assert_eq!(pieces(at(8, 0), 4096), [(8, 0, 4096)]);
        assert_eq!(pieces(at(8, 4095), 1), [(8, 4095, 1)]);
        assert_eq!(pieces(at(8, 4095), 2), [(8, 4095, 1), (9, 0, 1)]);
        assert_eq!(
            pieces(at(8, 16), 8192),
            [(8, 16, 4080), (9, 0, 4096), (10, 0, 16)]
        );
        assert_eq!(pieces(at(8, 16), 0), []);
    }

    #[test]
    fn references_do_not_wrap() {
        assert_eq!(pieces(at(u32::MAX, 4095), 1), [(u32::MAX, 4095, 1)]);
        assert!(GrantRange::new(at(u32::MAX, 4095), 2).is_none());
        assert!(GrantRange::new(at(u32::MAX - 1, 0), 8192).is_some());
        assert!(GrantRange::new(at(u32::MAX - 1, 0), 8193).is_none());
        assert!(GrantRange::new(at(u32::MAX, 0), u32::MAX).is_none());
        assert!(GrantRange::new(at(0, 4095), u32::MAX).is_some());
    }

    #[test]
    fn other_forms_are_no_grants() {
        for addr in [0, 1 << 48, (1 << 63) - 1, 1 << 63 | 1 << 44, u64::MAX] {
            assert_eq!(GrantRange::new(addr, 1), None, "{addr:#x}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_the_bytes_of_the_range_in_order(
            gref in prop_oneof![any::<u32>(), u32::MAX - 64..=u32::MAX],
            offset in 0_u16..4096,
            len in 0_u32..300_000,
        ) {
            let bytes = u64::from(offset) + u64::from(len);
            let fits = len == 0 || u64::from(gref) + (bytes - 1) / 4096 <= u64::from(u32::MAX);
            let range = GrantRange::new(at(gref, offset), len);
            prop_assert_eq!(range.is_some(), fits);
            let Some(range) = range else { return Ok(()) };
            let mut next = u64::from(gref) * 4096 + u64::from(offset);
            let end = next + u64::from(len);
            for piece in range.pieces() {
                prop_assert_eq!(u64::from(piece.gref.0) * 4096 + u64::from(piece.offset), next);
                prop_assert!(piece.len > 0 && piece.offset + piece.len <= 4096);
                next += u64::from(piece.len);
            }
            prop_assert_eq!(next, end);
            prop_assert_eq!(range.pieces().count(), range.pages() as usize);
        }

        #[test]
        fn any_number_is_a_range_or_nothing(addr: u64, len: u32) {
            if let Some(range) = GrantRange::new(addr, len) {
                let named = GrantRange::new(addr, 1).map(|one| one.refs().next());
                prop_assert_eq!(range.refs().next(), if len == 0 { None } else { named.flatten() });
            }
        }
    }
}
