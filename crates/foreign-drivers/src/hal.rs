//! The library's memory trait over the shared area. Rings live in it; buffers are copied in and out,
//! because a grant covers whole pages that the frontend allocated, and never a caller's stack.

use std::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::memory;

/// The memory of this thread's [`crate::ForeignBus`]. Without room, or without a bus, rings are
/// refused (`DmaError`) and requests fail.
#[derive(Clone, Copy, Debug)]
pub struct SharedMemory;

// SAFETY: `dma_alloc` gives zeroed pages of the shared area, aligned to a page, to nobody else until
// `dma_dealloc`: `Runs` hands out no byte twice, and ranges are not used on what is handed out but
// for the transport's answers to a queue whose device is gone. The lease in `memory` keeps them
// mapped till then.
unsafe impl Hal for SharedMemory {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // Address 0 is how the library is told that there is no memory.
        memory::take_pages(pages).unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        memory::give_back_pages(paddr, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("this bus has no registers: only the library's PCI transport asks for them")
    }

    /// Copied in whatever the direction: what the device does not write must come back as it was, a
    /// status byte above all.
    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller promises a buffer that is valid, and left alone during this call.
        memory::lend(unsafe { buffer.as_ref() })
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let bytes = match direction {
            BufferDirection::DriverToDevice => None,
            // SAFETY: the caller promises a buffer that is valid, and left alone during this call;
            // it was given to the library to be written.
            _ => Some(unsafe { buffer.as_mut() }),
        };
        memory::take_back(paddr, buffer.len(), bytes);
    }
}
