//! The io_uring of one file.
//!
//! The file is registered, so that no descriptor is looked up for a transfer. Guest memory is not:
//! a registration pins whole areas, outlives a revocation by the guest until it is withdrawn, and
//! saves nothing that counts beside the disk this is for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};

use super::Transfer;

/// Where `file` stands among the registered files.
const FILE: Fixed = Fixed(0);

pub(super) struct Uring {
    ring: IoUring,
}

pub(super) fn probe() -> io::Result<()> {
    IoUring::new(1).map(drop)
}

impl Uring {
    pub(super) fn new(
        file: BorrowedFd<'_>,
        held: &[BorrowedFd<'_>],
        wake: BorrowedFd<'_>,
        entries: u16,
    ) -> io::Result<Self> {
        let ring = IoUring::new(entries.into())?;
        let files: Vec<RawFd> = [file].iter().chain(held).map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&files)?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        Ok(Self { ring })
    }

    /// # Safety
    /// Until the kernel has given `number` back: `iovecs` stay where and as they are, and the
    /// memory they name stays mapped, with the right that the transfer needs. At most as many
    /// are added and not given back as the ring has entries.
    pub(super) unsafe fn add(
        &mut self,
        transfer: Transfer,
        offset: u64,
        iovecs: &[libc::iovec],
        number: u64,
    ) {
        let (base, count) = (iovecs.as_ptr(), u32::try_from(iovecs.len()).unwrap_or(0));
        let entry = match transfer {
            Transfer::Read => opcode::Readv::new(FILE, base, count).offset(offset).build(),
            Transfer::Write => opcode::Writev::new(FILE, base, count)
                .offset(offset)
                .build(),
        };
        let entry = entry.user_data(number);
        // SAFETY: what the entry points to is valid until its completion, as the caller promises.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "the caller counts the entries");
    }

    /// True: not all was taken.
    pub(super) fn submit(&mut self) -> bool {
        if self.ring.submission().is_empty() {
            return false;
        }
        // What ends in the call is looked for right behind it, so nobody has to be woken.
        self.ring.completion().disable_eventfd();
        // What was not taken stays in the ring: after EAGAIN, EBUSY and EINTR, which are all that
        // the kernel says to this call.
        let _ = self.ring.submit();
        self.ring.completion().enable_eventfd();
        // Whatever the kernel did not signal is seen by the look that follows.
        fence(Ordering::SeqCst);
        !self.ring.submission().is_empty()
    }

    pub(super) fn reap(&mut self, mut each: impl FnMut(u64, i64)) {
        for entry in self.ring.completion() {
            each(entry.user_data(), entry.result().into());
        }
    }

    /// Waits for `count` transfers that were added, and lets go of the files at once: left to the
    /// end of the ring, which the kernel takes apart in the background, they would stay locked for
    /// a moment. False: the kernel does not let us wait, and the transfers may go on.
    pub(super) fn finish(&mut self, count: usize) -> bool {
        let mut left = count;
        loop {
            left -= self.ring.completion().count().min(left);
            if left == 0 {
                let _ = self.ring.submitter().unregister_files();
                return true;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                    _ => return false,
                },
            }
        }
    }
}
