//! Buffers by grant copy: memory of our own stands for the guest's pages, and is filled and
//! stored by the hypervisor, with one call for all that moves at a time.
//!
//! It belongs to one connection, so that nothing in it was ever another guest's.

use std::io;

use guest_memory::{Access, Area, LeasedRange, Loan, Part, Return};
use xen_bus::grants::GrantRange;
use xen_hal::{GrantCopy, Platform};
use xen_types::{DomId, PAGE_SIZE};

use super::lender::LENT_PAGES_MAX;

const PAGES: usize = LENT_PAGES_MAX as usize;

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Staging {
    /// Made when it is first needed.
    area: Option<Area>,
    pages: PageMap,
}

/// Which pages are lent.
#[derive(Debug)]
struct PageMap {
    lent: Box<[bool; PAGES]>,
}

impl Staging {
    /// Lends pages for `range`; its offset in the page stays, so that no copy is cut in two. With
    /// what gives them back. `None`: there is no run of so many pages now.
    pub(super) fn lend(&mut self, range: GrantRange) -> io::Result<Option<(LeasedRange, usize)>> {
        let Some(first) = self.pages.take(range.pages() as usize) else {
            return Ok(None);
        };
        match self.window(first, range) {
            Ok(window) => Ok(Some((window, first))),
            Err(error) => {
                self.give_back(first, range);
                Err(error)
            }
        }
    }

    /// Takes the pages of `range` back.
    pub(super) fn give_back(&mut self, first: usize, range: GrantRange) {
        self.pages.give_back(first, range.pages() as usize);
    }

    fn window(&mut self, first: usize, range: GrantRange) -> io::Result<LeasedRange> {
        let area = match &mut self.area {
            Some(area) => area,
            none => none.insert(Area::anonymous(PAGES * PAGE_SIZE)?),
        };
        let offset = first * PAGE_SIZE + usize::from(range.offset());
        let lease = area.lease();
        lease
            .window(offset as u64, range.len().into(), Access::Write)
            .map_err(io::Error::other)
    }
}

/// Fills and stores, with one call. What is refused loses its memory.
pub(super) fn exchange(
    platform: &Platform,
    peer: DomId,
    fetch: &mut [&mut Loan],
    store: &mut [Return<'_>],
) {
    let mut batch = Batch::default();
    for (index, loan) in fetch.iter().enumerate() {
        batch.fetch(index, loan);
    }
    for (index, back) in store.iter().enumerate() {
        batch.store(index, back);
    }
    for (side, loan, part) in batch.run(platform, peer) {
        let loan = match side {
            Side::Fetch => fetch.get_mut(loan).map(|loan| &mut **loan),
            Side::Store => store.get_mut(loan).map(|back| &mut *back.loan),
        };
        if let Some(part) = loan.and_then(|loan| loan.parts_mut().get_mut(part)) {
            part.memory = None;
        }
    }
}

/// Which of the two lists.
#[derive(Clone, Copy, Debug)]
enum Side {
    Fetch,
    Store,
}

/// The copies of one call, and for which part of which loan each is.
#[derive(Default)]
struct Batch<'a> {
    copies: Vec<GrantCopy<'a>>,
    owners: Vec<(Side, usize, usize)>,
}

impl<'a> Batch<'a> {
    fn fetch(&mut self, index: usize, loan: &'a Loan) {
        for (at, part) in loan.parts().iter().enumerate() {
            if part.access == Access::Read {
                let owner = (Side::Fetch, index, at);
                self.add(owner, part, 0, part.len, GrantCopy::from_grant);
            }
        }
    }

    fn store(&mut self, index: usize, back: &'a Return<'_>) {
        let mut left = back.written;
        let parts = back.loan.parts();
        for (at, part) in parts.iter().enumerate() {
            if part.access != Access::Write {
                continue;
            }
            let owner = (Side::Store, index, at);
            let written = u32::try_from(left).map_or(part.len, |left| left.min(part.len));
            left -= u64::from(written);
            self.add(owner, part, 0, written, GrantCopy::to_grant);
            let is_last = at + 1 == parts.len();
            if is_last && back.status && written < part.len {
                self.add(owner, part, part.len - 1, 1, GrantCopy::to_grant);
            }
        }
    }

    /// Adds `len` bytes of a part from `skip` on, page by page.
    fn add(
        &mut self,
        owner: (Side, usize, usize),
        part: &'a Part,
        skip: u32,
        len: u32,
        copy: fn(xen_types::GrantRef, u16, guest_memory::GuestRange<'a>) -> GrantCopy<'a>,
    ) {
        let (Some(memory), Some(_)) = (&part.memory, part.ticket) else {
            return;
        };
        // Inside the part, whose address was checked when it was lent.
        let Some(range) = GrantRange::new(part.addr.saturating_add(skip.into()), len) else {
            return;
        };
        let mut at = u64::from(skip);
        for piece in range.pieces() {
            if let Ok(here) = memory.range().subrange(at, piece.len.into()) {
                self.copies.push(copy(piece.gref, piece.offset, here));
                self.owners.push(owner);
            }
            at += u64::from(piece.len);
        }
    }

    /// Answers whose copies failed.
    fn run(mut self, platform: &Platform, peer: DomId) -> Vec<(Side, usize, usize)> {
        if self.copies.is_empty() {
            return Vec::new();
        }
        if let Err(error) = platform.grant_copy(peer, &mut self.copies) {
            tracing::error!(%peer, %error, "buffers cannot be copied");
        }
        let mut failed = Vec::new();
        for (copy, owner) in self.copies.iter().zip(self.owners) {
            if let Err(refusal) = copy.result {
                tracing::debug!(%peer, gref = %copy.gref, %refusal, "part of a buffer is out of reach");
                failed.push(owner);
            }
        }
        failed
    }
}

impl PageMap {
    /// Takes the first run of `count` pages; its first page.
    fn take(&mut self, count: usize) -> Option<usize> {
        let mut free = 0;
        for (page, lent) in self.lent.iter().enumerate() {
            free = if *lent { 0 } else { free + 1 };
            if free == count {
                let first = page + 1 - count;
                self.set(first, count, true);
                return Some(first);
            }
        }
        None
    }

    fn give_back(&mut self, first: usize, count: usize) {
        self.set(first, count, false);
    }

    fn set(&mut self, first: usize, count: usize, lent: bool) {
        let run = first.checked_add(count);
        if let Some(run) = run.and_then(|end| self.lent.get_mut(first..end)) {
            run.fill(lent);
        }
    }
}

impl Default for PageMap {
    fn default() -> Self {
        Self {
            lent: Box::new([false; PAGES]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_lent_first_fit_and_never_twice() {
        let mut pages = PageMap::default();
        assert_eq!(pages.take(PAGES), Some(0));
        assert_eq!(pages.take(1), None);
        pages.give_back(3, 2);
        assert_eq!(pages.take(3), None);
        assert_eq!(pages.take(1), Some(3));
        assert_eq!(pages.take(1), Some(4));
        pages.give_back(0, PAGES);
        assert_eq!(pages.take(PAGES + 1), None);
        assert_eq!(pages.take(PAGES - 1), Some(0));
        assert_eq!(pages.take(2), None);
        assert_eq!(pages.take(1), Some(PAGES - 1));
    }
}
