//! `/dev/xen/privcmd`: what a device model in dom0 asks of the hypervisor, for a guest that trusts it.
//!
//! Numbers and layouts are those of Xen's public headers `hvm/dm_op.h` and `memory.h`. A mapping is
//! first an mmap of the device, which one ioctl then fills; munmap undoes both.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr;

use guest_memory::{Access, Area};
use xen_types::{DomId, PAGE_SIZE};

use super::sys::{self, DmOpBuffer, DmOpCall, MmapBatch, MmapResource};
use crate::OpenError;

/// `struct xen_dm_op` with the one member of its union that `op` names.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct DmOp<T> {
    op: u32,
    pad: u32,
    pub(crate) body: T,
}

/// What stands behind an operation's number.
///
/// # Safety
/// `NUMBER` is the operation whose member of the union is laid out as the type is, and which names
/// no memory.
pub(crate) unsafe trait Operation {
    /// `XEN_DMOP_*`.
    const NUMBER: u32;
}

/// `struct xen_dm_op_create_ioreq_server`; `id` is the answer.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct CreateIoreqServer {
    /// 0: no buffered requests (`HVM_IOREQSRV_BUFIOREQ_OFF`).
    pub(crate) handle_bufioreq: u8,
    pub(crate) pad: [u8; 3],
    pub(crate) id: u16,
}

/// `struct xen_dm_op_ioreq_server_range`: the addresses from `start` to `end`, both inside.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct MapIoRange {
    pub(crate) id: u16,
    pub(crate) pad: u16,
    /// 1: memory (`XEN_DMOP_IO_RANGE_MEMORY`).
    pub(crate) kind: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// `struct xen_dm_op_set_ioreq_server_state`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct SetIoreqServerState {
    pub(crate) id: u16,
    pub(crate) enabled: u8,
    pub(crate) pad: u8,
}

/// `struct xen_dm_op_destroy_ioreq_server`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct DestroyIoreqServer {
    pub(crate) id: u16,
    pub(crate) pad: u16,
}

// SAFETY: number and layout of `hvm/dm_op.h`.
unsafe impl Operation for CreateIoreqServer {
    const NUMBER: u32 = 1;
}
// SAFETY: as above.
unsafe impl Operation for MapIoRange {
    const NUMBER: u32 = 3;
}
// SAFETY: as above.
unsafe impl Operation for SetIoreqServerState {
    const NUMBER: u32 = 5;
}
// SAFETY: as above.
unsafe impl Operation for DestroyIoreqServer {
    const NUMBER: u32 = 6;
}

/// `XENMEM_resource_ioreq_server`.
const RESOURCE_IOREQ_SERVER: u32 = 0;
/// `XENMEM_resource_ioreq_server_frame_ioreq(0)`: the page with the slots of the first processors.
const FRAME_IOREQ: u32 = 1;

#[derive(Debug)]
pub(crate) struct Privcmd(File);

impl Privcmd {
    pub(crate) fn open() -> Result<Self, OpenError> {
        super::open_device("/dev/xen/privcmd", "xen-privcmd").map(Self)
    }

    /// Asks the hypervisor; the answer is where the question was.
    pub(crate) fn dm_op<T: Operation>(&self, guest: DomId, body: T) -> io::Result<T> {
        let mut op = DmOp {
            op: T::NUMBER,
            pad: 0,
            body,
        };
        let buffer = DmOpBuffer {
            uptr: ptr::from_mut(&mut op).cast(),
            size: size_of_val(&op),
        };
        let mut call = DmOpCall {
            dom: guest.0,
            num: 1,
            ubufs: &raw const buffer,
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode with one buffer, which `Operation` promises to be laid out as its number says.
        unsafe { sys::ioctl(&self.0, sys::PRIVCMD_DM_OP, argument) }?;
        Ok(op.body)
    }

    /// The page in which an ioreq server finds the accesses of a guest's processors.
    pub(crate) fn map_ioreq_page(&self, guest: DomId, id: u16) -> io::Result<Area> {
        let area = self.addresses(1)?;
        let mut call = MmapResource {
            dom: guest.0,
            kind: RESOURCE_IOREQ_SERVER,
            id: id.into(),
            idx: FRAME_IOREQ,
            num: 1,
            addr: address(&area),
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode; the addresses are a mapping of this device, which nobody uses yet.
        unsafe { sys::ioctl(&self.0, sys::PRIVCMD_MMAP_RESOURCE, argument) }?;
        Ok(area)
    }

    /// Pages of a guest by their numbers, from `first` on; the guest grants nothing.
    pub(crate) fn map_frames(&self, guest: DomId, first: u64, pages: usize) -> io::Result<Area> {
        let area = self.addresses(pages)?;
        let frames: Vec<u64> = (first..).take(pages).collect();
        let mut errors = vec![0; pages];
        let mut call = MmapBatch {
            num: u32::try_from(pages).map_err(|_| io::ErrorKind::InvalidInput)?,
            dom: guest.0,
            addr: address(&area),
            arr: frames.as_ptr(),
            err: errors.as_mut_ptr(),
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode, with as many frames and errors as `num` says; the addresses are a mapping of
        // this device, which nobody uses yet.
        unsafe { sys::ioctl(&self.0, sys::PRIVCMD_MMAPBATCH_V2, argument) }?;
        match errors.into_iter().find(|error| *error != 0) {
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Ok(area),
        }
    }

    /// Addresses for so many pages, with nothing behind them yet.
    fn addresses(&self, pages: usize) -> io::Result<Area> {
        Area::shared_file(self.0.as_fd(), 0, pages * PAGE_SIZE, Access::Write)
    }
}

fn address(area: &Area) -> u64 {
    area.whole().base().as_ptr().expose_provenance() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    /// `hvm/dm_op.h` of Xen 4.17: the union begins at 8; sizes of its members, and where their fields are.
    #[test]
    fn operations_are_laid_out_as_in_the_public_header() {
        assert_eq!(offset_of!(DmOp<MapIoRange>, body), 8);
        assert_eq!(size_of::<DmOp<MapIoRange>>(), 32);
        assert_eq!(offset_of!(CreateIoreqServer, id), 4);
        assert_eq!(size_of::<CreateIoreqServer>(), 6);
        assert_eq!(offset_of!(MapIoRange, kind), 4);
        assert_eq!(offset_of!(MapIoRange, start), 8);
        assert_eq!(offset_of!(MapIoRange, end), 16);
        assert_eq!(offset_of!(SetIoreqServerState, enabled), 2);
        assert_eq!(size_of::<SetIoreqServerState>(), 4);
        assert_eq!(size_of::<DestroyIoreqServer>(), 4);
    }
}
