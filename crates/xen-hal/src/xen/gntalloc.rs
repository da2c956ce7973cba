//! `/dev/xen/gntalloc`: pages of our own, granted to one domain.
//!
//! One ALLOC_GREF is one mmap run whose references come in any order. The module's
//! parameter `limit` (1,024 pages of the whole kernel by default) answers ENOSPC.
//! DEALLOC_GREF succeeds while the peer has pages mapped; the kernel keeps those back.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::Arc;

use guest_memory::Access;
use xen_types::{DomId, GrantRef};
use zerocopy::FromZeros;

use super::sys::{self, AllocGref, DeallocGref};
use crate::granted::{Grant, OwnPages};
use crate::{GrantError, GrantedPages, OpenError};

#[derive(Debug)]
pub(crate) struct Gntalloc(File);

impl Gntalloc {
    pub(super) fn open() -> Result<Self, OpenError> {
        super::open_device("/dev/xen/gntalloc", "xen-gntalloc").map(Self)
    }

    pub(crate) fn grant(
        self: Arc<Self>,
        peer: DomId,
        pages: usize,
        access: Access,
    ) -> Result<GrantedPages, GrantError> {
        let error = |what, source| GrantError::from_call(peer, pages, what, source);
        let allocated = self
            .alloc(peer, pages, access)
            .map_err(|source| error("the ALLOC_GREF call of gntalloc", source))?;
        let grant = Grant::Xen {
            gntalloc: Arc::clone(&self),
            index: allocated.index,
            pages: allocated.count,
        };
        let area = OwnPages::map(grant, pages, |range| {
            range.place(0, pages, self.0.as_fd(), allocated.index, Access::Write)
        })
        .map_err(|source| error("the mmap of gntalloc", source))?;
        let refs = allocated.gref_ids.iter().copied().map(GrantRef).collect();
        Ok(GrantedPages { area, refs })
    }

    fn alloc(&self, peer: DomId, pages: usize, access: Access) -> io::Result<Box<AllocGref>> {
        let mut call =
            AllocGref::new_box_zeroed_with_elems(pages).map_err(|_| io::ErrorKind::OutOfMemory)?;
        call.domid = peer.0;
        call.flags = match access {
            Access::Read => 0,
            Access::Write => sys::GNTALLOC_WRITABLE,
        };
        call.count = u32::try_from(pages).map_err(|_| io::ErrorKind::InvalidInput)?;
        let argument = ptr::from_mut(&mut *call);
        // SAFETY: the structure of this opcode, with room for as many references as `count` says.
        unsafe { sys::ioctl(&self.0, sys::GNTALLOC_ALLOC_GREF, argument) }?;
        Ok(call)
    }

    /// To be called after the munmap.
    pub(crate) fn dealloc(&self, index: u64, pages: u32) -> io::Result<()> {
        let mut call = DeallocGref {
            index,
            count: pages,
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode.
        unsafe { sys::ioctl(&self.0, sys::GNTALLOC_DEALLOC_GREF, argument) }?;
        Ok(())
    }
}
