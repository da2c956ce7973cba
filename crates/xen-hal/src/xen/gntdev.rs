//! `/dev/xen/gntdev`: pages of other domains, mapped or copied.
//!
//! Measured on Xen 4.17: the MAP ioctl succeeds for any reference and the mmap then answers
//! EINVAL; one ioctl takes at most 65,536 references; pages are unmapped by munmap first
//! and the UNMAP ioctl after it. In a PV domain the mapping is not inherited by children.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr;

use guest_memory::Access;
use xen_types::{DomId, GrantRef};
use zerocopy::FromZeros;

use super::sys::{self, CopyCall, CopySegment, MapGrantRef, UnmapGrantRef};
use crate::mapping::Piece;
use crate::reservation::Reservation;
use crate::{CopyDirection, CopyRefusal, GrantCopy, MapError, OpenError};

/// gntdev's module parameter `limit`, as it stands by default: more in one ioctl is EINVAL.
const MAX_REFS_PER_CALL: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Gntdev(File);

impl Gntdev {
    pub(super) fn open() -> Result<Self, OpenError> {
        super::open_device("/dev/xen/gntdev", "xen-gntdev").map(Self)
    }

    pub(crate) fn map(
        &self,
        peer: DomId,
        refs: &[GrantRef],
        access: Access,
        range: &mut Reservation,
        at: usize,
    ) -> Result<Piece, MapError> {
        let refs = refs.get(..MAX_REFS_PER_CALL).unwrap_or(refs);
        let first = refs.first().copied().unwrap_or_default();
        let error = |what, source| MapError::from_call(peer, first, refs.len(), what, source);
        let piece = self
            .name(peer, refs)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EINVAL) => MapError::Limit {
                    peer,
                    count: refs.len(),
                },
                _ => error("the MAP_GRANT_REF call of gntdev", source),
            })?;
        let placed = range.place(at, refs.len(), self.0.as_fd(), piece.id, access);
        placed.map_err(|source| {
            if let Err(error) = self.unmap(piece) {
                tracing::error!(%error, %peer, "gntdev keeps an index that was never mapped");
            }
            error("the mmap of gntdev", source)
        })?;
        Ok(piece)
    }

    /// Tells gntdev what is to be mapped; the hypervisor is asked by the mmap.
    fn name(&self, peer: DomId, refs: &[GrantRef]) -> io::Result<Piece> {
        let mut call = MapGrantRef::new_box_zeroed_with_elems(refs.len())
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        let pages = u32::try_from(refs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        call.count = pages;
        for (slot, gref) in call.refs.iter_mut().zip(refs) {
            slot.domid = peer.0.into();
            slot.gref = gref.0;
        }
        let argument = ptr::from_mut(&mut *call);
        // SAFETY: the structure of this opcode, with as many references as `count` says.
        unsafe { sys::ioctl(&self.0, sys::GNTDEV_MAP_GRANT_REF, argument) }?;
        Ok(Piece {
            id: call.index,
            pages,
        })
    }

    /// To be called after the munmap.
    pub(crate) fn unmap(&self, piece: Piece) -> io::Result<()> {
        let mut call = UnmapGrantRef {
            index: piece.id,
            count: piece.pages,
            pad: 0,
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode.
        unsafe { sys::ioctl(&self.0, sys::GNTDEV_UNMAP_GRANT_REF, argument) }?;
        Ok(())
    }

    pub(crate) fn copy(&self, peer: DomId, batch: &mut [GrantCopy<'_>]) -> io::Result<()> {
        let (mut asked, mut segments): (Vec<_>, Vec<_>) = batch
            .iter_mut()
            .filter_map(|copy| {
                let len = copy.begin()?;
                let segment = segment(peer, copy, len);
                Some((copy, segment))
            })
            .unzip();
        if segments.is_empty() {
            return Ok(());
        }
        let mut call = CopyCall {
            count: u32::try_from(segments.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            segments: segments.as_mut_ptr(),
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: `count` segments follow; each names memory that `batch` borrows, and that may be written where it is.
        unsafe { sys::ioctl(&self.0, sys::GNTDEV_GRANT_COPY, argument) }?;
        for (copy, segment) in asked.iter_mut().zip(&segments) {
            if segment.status != sys::COPY_NOT_TRIED {
                copy.result = CopyRefusal::from_status(segment.status);
            }
        }
        Ok(())
    }
}

/// What the kernel is told of one copy.
fn segment(peer: DomId, copy: &GrantCopy<'_>, len: u16) -> CopySegment {
    let granted = sys::foreign(copy.gref, copy.offset, peer);
    let own = copy.memory.base().as_ptr().expose_provenance() as u64;
    let (source, dest, flags) = match copy.direction {
        CopyDirection::FromGrant => (granted, own, sys::COPY_FROM_GRANT),
        CopyDirection::ToGrant => (own, granted, sys::COPY_TO_GRANT),
    };
    CopySegment {
        source,
        dest,
        len,
        flags,
        status: sys::COPY_NOT_TRIED,
    }
}
