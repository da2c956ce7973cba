//! Pages of a peer, mapped call by call into one contiguous [`Area`].
//!
//! A mapping may be built over several turns of a loop (binding section 6: at most
//! 256 pages a turn); until it is finished nobody can reach the pages.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use guest_memory::{Access, Area, Backing};
use xen_types::{DomId, GrantRef};

use crate::MapError;
use crate::hosted::Memory;
use crate::reservation::Reservation;
use crate::xen::Gntdev;

/// Where grants are mapped: the two platforms.
#[derive(Clone, Debug)]
pub(crate) enum Mapper {
    Xen(Arc<Gntdev>),
    Hosted(Arc<Memory>),
}

/// What one call mapped, and must unmap again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// gntdev's index, or the broker's number of the mapping.
    pub(crate) id: u64,
    /// Pages mapped, counted from the first that was asked for.
    pub(crate) pages: u32,
}

impl Mapper {
    /// Maps as many of `refs` as one call can, from page `at` on; at least one.
    fn map(
        &self,
        peer: DomId,
        refs: &[GrantRef],
        access: Access,
        range: &mut Reservation,
        at: usize,
    ) -> Result<Piece, MapError> {
        match self {
            Self::Xen(gntdev) => gntdev.map(peer, refs, access, range, at),
            Self::Hosted(memory) => memory.map(peer, refs, access, range, at),
        }
    }

    fn unmap(&self, piece: Piece) -> io::Result<()> {
        match self {
            Self::Xen(gntdev) => gntdev.unmap(piece),
            Self::Hosted(memory) => memory.unmap(piece),
        }
    }
}

/// A mapping that is being built. Dropping it unmaps what was mapped.
#[derive(Debug)]
pub struct MappingBuilder {
    peer: DomId,
    access: Access,
    pages: usize,
    mapped: usize,
    grants: MappedGrants,
}

impl MappingBuilder {
    pub(crate) fn new(
        mapper: Mapper,
        peer: DomId,
        pages: usize,
        access: Access,
    ) -> Result<Self, MapError> {
        let range = Reservation::new(pages).map_err(|source| MapError::Host {
            peer,
            what: "reserving addresses",
            source,
        })?;
        Ok(Self {
            peer,
            access,
            pages,
            mapped: 0,
            grants: MappedGrants {
                range: Some(range),
                pieces: Vec::new(),
                mapper,
            },
        })
    }

    /// Maps the next `refs.len()` pages. The same reference may occur more than once.
    ///
    /// On an error some of them may be mapped: the builder can only be dropped then.
    pub fn map(&mut self, mut refs: &[GrantRef]) -> Result<(), MapError> {
        let Some(range) = &mut self.grants.range else {
            return Ok(());
        };
        let room = range.pages().saturating_sub(self.mapped);
        if refs.len() > room {
            return Err(MapError::Room {
                peer: self.peer,
                asked: refs.len(),
                room,
            });
        }
        while !refs.is_empty() {
            let mapper = &self.grants.mapper;
            let piece = mapper.map(self.peer, refs, self.access, range, self.mapped)?;
            self.grants.pieces.push(piece);
            let done = refs.len().min(piece.pages as usize);
            self.mapped += done;
            refs = refs.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    /// Pages mapped so far.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.mapped
    }

    /// The finished mapping; every page must have been mapped.
    pub fn finish(self) -> Result<Area, MapError> {
        let range = self
            .grants
            .range
            .as_ref()
            .filter(|range| self.mapped == self.pages && range.pages() == self.pages);
        let Some(range) = range else {
            return Err(MapError::Unfinished {
                peer: self.peer,
                mapped: self.mapped,
                pages: self.pages,
            });
        };
        let (base, len) = (range.base(), range.len());
        // SAFETY: [base, base + len) is mapped with `access` and stays so until `grants` unmaps it, which only the area can make it do.
        Ok(unsafe { Area::from_raw(base, len, self.access, Box::new(self.grants)) })
    }
}

/// The mapped pages and how to undo them: first the addresses, then the grants
/// (gntdev unmaps in the hypervisor with the munmap; the call after it forgets the index).
#[derive(Debug)]
struct MappedGrants {
    range: Option<Reservation>,
    pieces: Vec<Piece>,
    mapper: Mapper,
}

impl MappedGrants {
    fn undo(&mut self) -> io::Result<()> {
        let unmapped = self.range.take().map_or(Ok(()), Reservation::release);
        let forgotten = self
            .pieces
            .drain(..)
            .map(|piece| self.mapper.unmap(piece))
            .fold(Ok(()), io::Result::and);
        unmapped.and(forgotten)
    }
}

impl Backing for MappedGrants {
    fn unmap(&mut self, _base: NonNull<u8>, _len: usize) -> io::Result<()> {
        self.undo()
    }
}

impl Drop for MappedGrants {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::error!(%error, "grants of an unfinished mapping stay mapped");
        }
    }
}
