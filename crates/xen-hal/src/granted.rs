//! Pages of our own that one peer may map.
//!
//! What Xen does not tell: whether the peer has them mapped. Revoking succeeds while
//! it has; the kernel (hosted: the broker) then keeps page and reference back until the peer
//! unmaps, so neither is handed out twice (measured on gntalloc).

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use guest_memory::{Area, Backing, UnmapError};
use xen_types::GrantRef;

use crate::RevokeError;
use crate::hosted::Memory;
use crate::reservation::Reservation;
use crate::xen::Gntalloc;

/// Zeroed pages, mapped here for reading and writing and granted to one domain.
/// Dropping it revokes them as soon as no lease holds them.
#[derive(Debug)]
pub struct GrantedPages {
    /// The pages, contiguous in this process.
    pub area: Area,
    /// Their references in page order; the numbers themselves come in any order.
    pub refs: Vec<GrantRef>,
}

impl GrantedPages {
    /// Unmaps the pages here and takes the grants back.
    pub fn revoke(self) -> Result<(), RevokeError> {
        let refs = self.refs;
        self.area.unmap().map_err(|error| match error {
            UnmapError::Leased { area, leases } => RevokeError::Leased {
                pages: Self { area, refs },
                leases,
            },
            UnmapError::Host(source) => RevokeError::Host(source),
        })
    }
}

/// Where pages were granted, with what names the grant there.
#[derive(Debug)]
pub(crate) enum Grant {
    Xen {
        gntalloc: Arc<Gntalloc>,
        index: u64,
        pages: u32,
    },
    Hosted {
        memory: Arc<Memory>,
        grant: u64,
    },
}

impl Grant {
    fn revoke(&self) -> io::Result<()> {
        match self {
            Self::Xen {
                gntalloc,
                index,
                pages,
            } => gntalloc.dealloc(*index, *pages),
            Self::Hosted { memory, grant } => memory.revoke(*grant),
        }
    }
}

/// Owns a grant and its mapping here; the mapping goes first, because gntalloc keeps
/// a grant alive for as long as its page is mapped by its owner.
#[derive(Debug)]
pub(crate) struct OwnPages {
    range: Option<Reservation>,
    grant: Option<Grant>,
}

impl OwnPages {
    /// Takes over a grant; revokes it also when `map` fails.
    pub(crate) fn map(
        grant: Grant,
        pages: usize,
        map: impl FnOnce(&mut Reservation) -> io::Result<()>,
    ) -> io::Result<Area> {
        let mut own = Self {
            range: None,
            grant: Some(grant),
        };
        let range = own.range.insert(Reservation::new(pages)?);
        map(range)?;
        let (base, len) = (range.base(), range.len());
        let access = guest_memory::Access::Write;
        // SAFETY: [base, base + len) is mapped for writing and stays so until `own` unmaps it, which only the area can make it do.
        Ok(unsafe { Area::from_raw(base, len, access, Box::new(own)) })
    }

    fn undo(&mut self) -> io::Result<()> {
        let unmapped = self.range.take().map_or(Ok(()), Reservation::release);
        let revoked = self.grant.take().map_or(Ok(()), |grant| grant.revoke());
        unmapped.and(revoked)
    }
}

impl Backing for OwnPages {
    fn unmap(&mut self, _base: NonNull<u8>, _len: usize) -> io::Result<()> {
        self.undo()
    }
}

impl Drop for OwnPages {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::error!(%error, "granted pages could not be revoked");
        }
    }
}
