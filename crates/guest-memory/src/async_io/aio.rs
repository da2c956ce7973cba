//! Linux AIO (io_submit) for one file: raw system calls, as libc has no functions for them. What has
//! ended is taken from the ring that the kernel shares with the process, without a call.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Transfer;

/// `IOCB_CMD_PREAD`, `IOCB_CMD_PWRITE`, their `V` and `IOCB_FLAG_RESFD` of linux/aio_abi.h.
const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;
const FLAG_RESFD: u32 = 1;

/// `AIO_RING_MAGIC` of the kernel's fs/aio.c: the ring is one that may be read without a call.
const RING_MAGIC: u32 = 0xa10a_10a1;

/// `struct aio_ring` of fs/aio.c, whose address is the number of the context; as libaio and QEMU
/// know it. `header_length` bytes on, `nr` events follow.
#[repr(C)]
struct RingHeader {
    id: u32,
    nr: u32,
    /// The next event to take; the kernel only reads it.
    head: AtomicU32,
    /// Behind the last event.
    tail: AtomicU32,
    magic: u32,
    compat_features: u32,
    incompat_features: u32,
    header_length: u32,
}

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// An AIO context. Dropping it waits for all that is in flight in it.
pub(super) struct Context {
    id: libc::c_ulong,
    events: *const IoEvent,
    /// How many `events` there is room for; never zero.
    count: u32,
}

// SAFETY: the kernel lets any thread of the process use a context; `events` leads into its memory,
// and is only used through `&mut`.
unsafe impl Send for Context {}

impl Context {
    /// Fails with `Unsupported` on a kernel whose ring is not the one that is known here.
    pub(super) fn new(entries: u16) -> io::Result<Self> {
        let mut id: libc::c_ulong = 0;
        let out: *mut libc::c_ulong = &mut id;
        // SAFETY: the call writes one number through `out`, which is valid for the call.
        match unsafe { libc::syscall(libc::SYS_io_setup, c_long::from(entries), out) } {
            0 => {}
            _ => return Err(io::Error::last_os_error()),
        }
        let mut context = Self {
            id,
            events: ptr::null(),
            count: 0,
        };
        let header = context.header();
        let is_known = header.magic == RING_MAGIC && header.incompat_features == 0 && header.nr > 0;
        if !is_known {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (start, count) = (header.header_length as usize, header.nr);
        // SAFETY: the events lie in the same mapping as the header, so far behind its start.
        let events = unsafe { context.ring().byte_add(start) };
        context.events = events.cast();
        context.count = count;
        Ok(context)
    }

    fn ring(&self) -> *const RingHeader {
        ptr::with_exposed_provenance(usize::try_from(self.id).unwrap_or_default())
    }

    fn header(&self) -> &RingHeader {
        // SAFETY: the kernel has mapped a ring there, aligned to a page, until the context is
        // destroyed; what it changes meanwhile is atomic here.
        unsafe { &*self.ring() }
    }

    /// The next that has ended.
    fn next_event(&mut self) -> Option<IoEvent> {
        let header = self.header();
        let head = header.head.load(Ordering::Relaxed);
        // Pairs with the kernel's barrier between an event and the tail that covers it.
        if head == header.tail.load(Ordering::Acquire) || head >= self.count {
            return None;
        }
        // SAFETY: inside the ring, as `head` is less than `count`.
        let at = unsafe { self.events.add(head as usize) };
        // SAFETY: the kernel has written this event, and leaves it alone until `head` has passed.
        let event = unsafe { at.read() };
        header
            .head
            .store((head + 1) % self.count, Ordering::Release);
        Some(event)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody uses it after this. The kernel waits for what is
        // in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

pub(super) struct Aio {
    /// `None` once it has ended.
    context: Option<Context>,
    file: OwnedFd,
    wake: OwnedFd,
    /// Added and not submitted, in order.
    added: Vec<libc::iocb>,
    /// Of `added`, for the length of a call; its room is kept.
    pointers: Vec<*mut libc::iocb>,
}

// SAFETY: `pointers` is empty between calls, and everything else may be used from any thread.
unsafe impl Send for Aio {}

impl Aio {
    pub(super) fn new(
        file: BorrowedFd<'_>,
        wake: BorrowedFd<'_>,
        entries: u16,
    ) -> io::Result<Self> {
        Ok(Self {
            context: Some(Context::new(entries)?),
            file: file.try_clone_to_owned()?,
            wake: wake.try_clone_to_owned()?,
            added: Vec::with_capacity(entries.into()),
            pointers: Vec::with_capacity(entries.into()),
        })
    }

    /// # Safety
    /// Until the kernel has given `number` back, or [`Aio::submit`] has: `iovecs` stay where and
    /// as they are, and the memory they name stays mapped, with the right that the transfer needs.
    pub(super) unsafe fn add(
        &mut self,
        transfer: Transfer,
        offset: u64,
        iovecs: &[libc::iovec],
        number: u64,
    ) {
        let blank = std::mem::MaybeUninit::<libc::iocb>::zeroed();
        // SAFETY: a structure of numbers, for each of which zero is one.
        let mut block = unsafe { blank.assume_init() };
        let (opcode, buffer, count) = match (transfer, iovecs) {
            // One piece, as almost always, costs the kernel less so.
            (Transfer::Read, [one]) => (PREAD, one.iov_base.addr(), one.iov_len),
            (Transfer::Write, [one]) => (PWRITE, one.iov_base.addr(), one.iov_len),
            (Transfer::Read, many) => (PREADV, many.as_ptr().addr(), many.len()),
            (Transfer::Write, many) => (PWRITEV, many.as_ptr().addr(), many.len()),
        };
        block.aio_data = number;
        block.aio_lio_opcode = opcode;
        block.aio_fildes = self.file.as_fd().as_raw_fd().cast_unsigned();
        block.aio_buf = buffer as u64;
        block.aio_nbytes = count as u64;
        block.aio_offset = offset.cast_signed();
        // Submitting would wait for what is not the disk itself, such as a map of blocks to be read.
        block.aio_rw_flags = libc::RWF_NOWAIT;
        block.aio_flags = FLAG_RESFD;
        block.aio_resfd = self.wake.as_fd().as_raw_fd().cast_unsigned();
        self.added.push(block);
    }

    /// True: call again, as the kernel was short of something. Never, as it is said of each that
    /// was not taken.
    pub(super) fn submit(&mut self, mut refused: impl FnMut(u64, io::Error)) -> bool {
        let Some(context) = &self.context else {
            return false;
        };
        let mut begun = 0;
        while let Some(rest) = self.added.get_mut(begun..).filter(|rest| !rest.is_empty()) {
            self.pointers.clear();
            self.pointers.extend(rest.iter_mut().map(ptr::from_mut));
            let (count, blocks) = (self.pointers.len(), self.pointers.as_mut_ptr());
            // SAFETY: `blocks` are `count` pointers to blocks of `added`, whose buffers are valid
            // as the caller of `add` promises; the kernel copies block and iovecs in the call.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, context.id, count, blocks) };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => begun += taken,
                // The error is that of the first; those behind it may be fine.
                _ => {
                    if let Some(first) = rest.first() {
                        refused(first.aio_data, io::Error::last_os_error());
                    }
                    begun += 1;
                }
            }
        }
        self.pointers.clear();
        self.added.clear();
        false
    }

    pub(super) fn reap(&mut self, mut each: impl FnMut(u64, i64)) {
        while let Some(event) = self.context.as_mut().and_then(Context::next_event) {
            each(event.data, event.res);
        }
    }

    /// Waits for all that is in flight.
    pub(super) fn finish(&mut self) {
        self.context = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_laid_out_as_the_kernel_has_them() {
        use std::mem::{offset_of, size_of};
        assert_eq!((size_of::<libc::iocb>(), size_of::<IoEvent>()), (64, 32));
        assert_eq!(offset_of!(libc::iocb, aio_lio_opcode), 16);
        assert_eq!(offset_of!(libc::iocb, aio_buf), 24);
        assert_eq!(offset_of!(libc::iocb, aio_resfd), 60);
        assert_eq!(offset_of!(IoEvent, res), 16);
        assert_eq!(size_of::<RingHeader>(), 32);
        assert_eq!(offset_of!(RingHeader, magic), 16);
    }
}
