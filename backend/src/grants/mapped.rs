//! Buffers by mapping: each part is mapped when its chain is taken, and unmapped before its used
//! entry is published.

use guest_memory::{Access, Area, LeasedRange, UnmapError};
use slab::Slab;
use xen_bus::grants::GrantRange;
use xen_hal::{MapError, Platform};
use xen_types::{DomId, GrantRef, PAGE_SIZE};

use super::lender::LENT_PAGES_MAX;

/// What is mapped.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    parts: Slab<Area>,
    pages: u32,
}

impl Mapped {
    /// Maps the pages of `range`. With what unmaps them. `None`: too many are mapped now.
    pub(super) fn lend(
        &mut self,
        platform: &Platform,
        peer: DomId,
        range: GrantRange,
        access: Access,
    ) -> Result<Option<(LeasedRange, usize)>, MapError> {
        let pages = range.pages();
        if self.pages + pages > LENT_PAGES_MAX {
            return Ok(None);
        }
        let refs: Vec<GrantRef> = range.refs().collect();
        let mut mapping = platform.begin_mapping(peer, refs.len(), access)?;
        mapping.map(&refs)?;
        let area = mapping.finish()?;
        let lease = area.lease();
        let window = lease.window(range.offset().into(), range.len().into(), access);
        let window = window.map_err(|_| MapError::Room {
            peer,
            asked: refs.len(),
            room: area.len() / PAGE_SIZE,
        })?;
        self.pages += pages;
        Ok(Some((window, self.parts.insert(area))))
    }

    /// Unmaps a part, whose window is gone.
    pub(super) fn give_back(&mut self, part: usize, range: GrantRange) -> Result<(), UnmapError> {
        self.pages = self.pages.saturating_sub(range.pages());
        self.parts.try_remove(part).map_or(Ok(()), Area::unmap)
    }

    pub(super) fn unmap_all(&mut self) -> Result<(), UnmapError> {
        self.parts
            .drain()
            .map(Area::unmap)
            .fold(Ok(()), Result::and)
    }
}
