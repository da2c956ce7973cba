//! Linux AIO (io_submit) for one file: raw system calls, as libc has no functions for them.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::Transfer;

/// `IOCB_CMD_PREADV`, `IOCB_CMD_PWRITEV` and `IOCB_FLAG_RESFD` of linux/aio_abi.h.
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;
const FLAG_RESFD: u32 = 1;

/// Completions taken by one call.
const REAPED_AT_ONCE: usize = 64;

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
pub(super) struct Context(libc::c_ulong);

impl Context {
    pub(super) fn new(entries: u16) -> io::Result<Self> {
        let mut id: libc::c_ulong = 0;
        let out: *mut libc::c_ulong = &mut id;
        // SAFETY: the call writes one number through `out`, which is valid for the call.
        match unsafe { libc::syscall(libc::SYS_io_setup, c_long::from(entries), out) } {
            0 => Ok(Self(id)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and nobody uses it after this. The kernel waits for what is
        // in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
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
    events: Vec<IoEvent>,
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
            events: Vec::with_capacity(REAPED_AT_ONCE),
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
        block.aio_data = number;
        block.aio_lio_opcode = match transfer {
            Transfer::Read => PREADV,
            Transfer::Write => PWRITEV,
        };
        block.aio_fildes = self.file.as_fd().as_raw_fd().cast_unsigned();
        block.aio_buf = iovecs.as_ptr().addr() as u64;
        block.aio_nbytes = iovecs.len() as u64;
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
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, context.0, count, blocks) };
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
        let Some(context) = &self.context else {
            return;
        };
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let now: *mut libc::timespec = &mut now;
        let (none, most) = (0 as c_long, REAPED_AT_ONCE);
        loop {
            self.events.clear();
            let room = self.events.as_mut_ptr();
            // SAFETY: there is room for `most` events; the timeout is valid for the call.
            let got =
                unsafe { libc::syscall(libc::SYS_io_getevents, context.0, none, most, room, now) };
            let got = usize::try_from(got).unwrap_or(0).min(most);
            // SAFETY: the kernel has written so many events, and there is room for them.
            unsafe { self.events.set_len(got) };
            for event in &self.events {
                each(event.data, event.res);
            }
            if got < most {
                return;
            }
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
    }
}
