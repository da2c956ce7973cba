//! Rings at grant addresses: each part one contiguous mapping, which goes with its queue
//! (binding section 6, the memory contract).

use std::cell::RefCell;
use std::io;

use guest_memory::{Access, Area, LeasedRange, RangeError, TranslateError, UnmapError};
use xen_bus::grants::GrantRange;
use xen_hal::{MapError, Platform};
use xen_types::{DomId, GrantRef, PAGE_SIZE};

/// The mapped parts of a connection's rings.
#[derive(Debug, Default)]
pub(super) struct Rings(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    /// Every part; one without leases is not used any more.
    parts: Vec<Area>,
    /// What could not be unmapped since that was last asked for.
    fault: Option<UnmapError>,
}

/// A part cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingError {
    /// The guest's share of pages.
    #[error(
        "{wanted} pages beside the {used} of its other rings are more than the {most} that are left of its share"
    )]
    Share { wanted: u32, used: u32, most: u32 },
    /// Not granted so, or this host's fault.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Beyond what was mapped.
    #[error(transparent)]
    Range(#[from] RangeError),
}

impl RingError {
    /// What this host lacks, if the guest did all that it owes.
    pub(super) fn lack(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Map(MapError::Host { source, .. }) => Some(source.kind()),
            Self::Map(MapError::Limit { .. }) => Some(io::ErrorKind::QuotaExceeded),
            Self::Share { .. } | Self::Map(_) | Self::Range(_) => None,
        }
    }

    /// The error in terms of the address that the guest gave.
    pub(super) fn at(&self, addr: u64, len: u32) -> TranslateError {
        match self.lack() {
            Some(kind) => TranslateError::Host { addr, len, kind },
            None => TranslateError::Unknown { addr },
        }
    }
}

impl Rings {
    /// Maps a part, while all parts have not more than `most` pages.
    pub(super) fn map(
        &self,
        platform: &Platform,
        peer: DomId,
        range: GrantRange,
        access: Access,
        most: u32,
    ) -> Result<LeasedRange, RingError> {
        let mut state = self.0.borrow_mut();
        state.release_idle();
        let (wanted, used) = (range.pages(), state.pages());
        if used.checked_add(wanted).is_none_or(|all| all > most) {
            return Err(RingError::Share { wanted, used, most });
        }
        let refs: Vec<GrantRef> = range.refs().collect();
        let mut mapping = platform.begin_mapping(peer, refs.len(), access)?;
        mapping.map(&refs)?;
        let part = mapping.finish()?;
        let window = part
            .lease()
            .window(range.offset().into(), range.len().into(), access)?;
        state.parts.push(part);
        Ok(window)
    }

    pub(super) fn pages(&self) -> u32 {
        self.0.borrow().pages()
    }

    pub(super) fn release(&self) -> Result<(), UnmapError> {
        let mut state = self.0.borrow_mut();
        state.release_idle();
        state.fault.take().map_or(Ok(()), Err)
    }

    pub(super) fn unmap_all(self) -> Result<(), UnmapError> {
        let State { parts, fault } = self.0.into_inner();
        let unmapped = parts.into_iter().map(Area::unmap);
        unmapped.fold(fault.map_or(Ok(()), Err), Result::and)
    }
}

impl State {
    fn pages(&self) -> u32 {
        let bytes: usize = self.parts.iter().map(Area::len).sum();
        u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
    }

    fn release_idle(&mut self) {
        for part in self.parts.extract_if(.., |part| part.leases() == 0) {
            if let Err(error) = part.unmap() {
                self.fault = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_this_host_is_not_told_as_the_guests_mistake() {
        let (peer, addr, len) = (DomId(7), 1 << 63, 4096);
        let limit = RingError::Map(MapError::Limit { peer, count: 2 });
        assert!(limit.to_string().contains("module parameter `limit`"));
        let kind = io::ErrorKind::QuotaExceeded;
        assert_eq!(
            limit.at(addr, len),
            TranslateError::Host { addr, len, kind }
        );
        let refused = RingError::Map(MapError::Refused {
            peer,
            first: GrantRef(8),
            count: 2,
            source: io::Error::other("EAGAIN"),
        });
        assert_eq!(refused.at(addr, len), TranslateError::Unknown { addr });
    }
}
