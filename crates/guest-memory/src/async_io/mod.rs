//! Transfers between a file and guest memory that go on while this process does other things: by
//! io_uring, or by Linux AIO.
//!
//! What is in flight owns leases of the memory it names, and is given back when the kernel is done
//! with it. Dropping an [`AsyncIo`] waits for that.
//!
//! io_uring outlives a killed process. In a PV domain of Xen it must therefore never name granted
//! pages (binding section 6); elsewhere the file that locks the guest's instance is to be held by
//! the ring (section 9). Linux AIO is over before the process is gone, but asynchronous for direct
//! I/O only; what would wait in [`AsyncIo::submit`] is refused, or ends with `EAGAIN`.

mod aio;
mod buffers;
mod uring;

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use slab::Slab;

use crate::Access;
pub use buffers::IoBuffers;

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the file into memory.
    Read,
    /// From memory into the file.
    Write,
}

impl Transfer {
    /// What the memory must allow.
    fn access(self) -> Access {
        match self {
            Self::Read => Access::Write,
            Self::Write => Access::Read,
        }
    }
}

/// The asynchronous transfers of one file. `T` says what each is for.
pub struct AsyncIo<T> {
    kernel: Kernel,
    /// What was added and not reaped, by the number that the kernel gives back.
    in_flight: Slab<(T, IoBuffers)>,
    entries: usize,
}

enum Kernel {
    Uring(uring::Uring),
    Aio(aio::Aio),
}

/// A transfer that was not taken, given back whole.
#[derive(Debug)]
pub struct NotTaken<T> {
    /// What it is for.
    pub tag: T,
    /// Its memory.
    pub buffers: IoBuffers,
    /// Why.
    pub error: io::Error,
}

/// Whether this process may use io_uring.
///
/// # Errors
/// What the kernel says: `EPERM` where it is switched off, `ENOSYS` where it is unknown.
pub fn probe_io_uring() -> io::Result<()> {
    uring::probe()
}

/// Whether this process may use Linux AIO.
///
/// # Errors
/// What the kernel says: `EAGAIN` if fs.aio-max-nr is used up, `ENOSYS` where it is unknown.
pub fn probe_linux_aio() -> io::Result<()> {
    aio::Context::new(1).map(drop)
}

impl<T> AsyncIo<T> {
    /// By io_uring: at most `entries` transfers at once. `wake` is an eventfd that counts what has
    /// ended. The kernel keeps `file` and those of `held` open until the last transfer has ended,
    /// even if this process dies before.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn io_uring(
        file: BorrowedFd<'_>,
        held: &[BorrowedFd<'_>],
        wake: BorrowedFd<'_>,
        entries: u16,
    ) -> io::Result<Self> {
        let uring = uring::Uring::new(file, held, wake, entries)?;
        Ok(Self::new(Kernel::Uring(uring), entries))
    }

    /// By Linux AIO; as [`AsyncIo::io_uring`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn linux_aio(file: BorrowedFd<'_>, wake: BorrowedFd<'_>, entries: u16) -> io::Result<Self> {
        let aio = aio::Aio::new(file, wake, entries)?;
        Ok(Self::new(Kernel::Aio(aio), entries))
    }

    fn new(kernel: Kernel, entries: u16) -> Self {
        let entries = usize::from(entries);
        Self {
            kernel,
            in_flight: Slab::with_capacity(entries),
            entries,
        }
    }

    /// Queues a transfer of what `buffers` has selected; [`AsyncIo::submit`] begins it.
    ///
    /// # Errors
    /// `InvalidInput`: memory that may only be read is to be written, nothing is selected, or the
    /// offset is none. `WouldBlock`: as many are in flight as there may be.
    pub fn add(
        &mut self,
        transfer: Transfer,
        offset: u64,
        buffers: IoBuffers,
        tag: T,
    ) -> Result<(), NotTaken<T>> {
        let kind = if buffers.iovecs().is_empty()
            || !buffers.allows(transfer.access())
            || i64::try_from(offset).is_err()
        {
            Some(io::ErrorKind::InvalidInput)
        } else if self.in_flight.len() >= self.entries {
            Some(io::ErrorKind::WouldBlock)
        } else {
            None
        };
        if let Some(kind) = kind {
            let error = kind.into();
            return Err(NotTaken {
                tag,
                buffers,
                error,
            });
        }
        let entry = self.in_flight.vacant_entry();
        let number = entry.key() as u64;
        let (_, buffers) = entry.insert((tag, buffers));
        match &mut self.kernel {
            // SAFETY: the memory is leased and allows the transfer, as checked above; buffers and
            // leases stay in `in_flight`, untouched, until the kernel has given the number back.
            Kernel::Uring(uring) => unsafe {
                uring.add(transfer, offset, buffers.iovecs(), number)
            },
            // SAFETY: as above.
            Kernel::Aio(aio) => unsafe { aio.add(transfer, offset, buffers.iovecs(), number) },
        }
        Ok(())
    }

    /// Begins all that was added, by one system call; what the kernel does not take is given to
    /// `refused`. True: call again, as the kernel was short of something.
    ///
    /// Call [`AsyncIo::reap`] right behind it: io_uring wakes nobody for what has ended meanwhile.
    pub fn submit(&mut self, mut refused: impl FnMut(NotTaken<T>)) -> bool {
        let in_flight = &mut self.in_flight;
        match &mut self.kernel {
            Kernel::Uring(uring) => uring.submit(),
            Kernel::Aio(aio) => aio.submit(|number, error| {
                if let Some((tag, buffers)) = take(in_flight, number) {
                    refused(NotTaken {
                        tag,
                        buffers,
                        error,
                    });
                }
            }),
        }
    }

    /// Whether what ends while [`AsyncIo::submit`] runs wakes as well: Linux AIO cannot be asked
    /// not to.
    #[must_use]
    pub fn submit_wakes(&self) -> bool {
        matches!(self.kernel, Kernel::Aio(_))
    }

    /// Gives what has ended to `ended`, with the bytes moved. Makes no system call.
    pub fn reap(&mut self, mut ended: impl FnMut(T, IoBuffers, io::Result<usize>)) {
        let in_flight = &mut self.in_flight;
        let each = |number, result: i64| {
            if let Some((tag, buffers)) = take(in_flight, number) {
                ended(tag, buffers, moved(result));
            }
        };
        match &mut self.kernel {
            Kernel::Uring(uring) => uring.reap(each),
            Kernel::Aio(aio) => aio.reap(each),
        }
    }

    /// Transfers added and not reaped.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

impl<T> Drop for AsyncIo<T> {
    fn drop(&mut self) {
        match &mut self.kernel {
            Kernel::Uring(uring) => {
                if !uring.finish(self.in_flight.len()) {
                    // Then the memory must stay as it is for ever.
                    mem::forget(mem::take(&mut self.in_flight));
                }
            }
            Kernel::Aio(aio) => aio.finish(),
        }
    }
}

impl<T> fmt::Debug for AsyncIo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kernel {
            Kernel::Uring(_) => "io_uring",
            Kernel::Aio(_) => "Linux AIO",
        };
        f.debug_struct("AsyncIo")
            .field("kernel", &name)
            .field("in_flight", &self.in_flight.len())
            .finish()
    }
}

fn take<T>(in_flight: &mut Slab<(T, IoBuffers)>, number: u64) -> Option<(T, IoBuffers)> {
    in_flight.try_remove(usize::try_from(number).ok()?)
}

/// A count, or a negative error number.
fn moved(result: i64) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| {
        let errno = result.checked_neg().and_then(|errno| errno.try_into().ok());
        io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO))
    })
}

#[cfg(test)]
mod tests;
