//! What has finished for one device, and the descriptor that wakes its loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// What threads have finished. Others that finish something for the device, the kernel among
/// them, may write to the eventfd as well.
#[derive(Debug)]
pub(crate) struct Completions<T> {
    finished: Mutex<Finished<T>>,
    wake: OwnedFd,
}

#[derive(Debug)]
struct Finished<T> {
    items: Vec<T>,
    /// The eventfd was written to for some of them.
    told: bool,
}

impl<T> Completions<T> {
    /// With room for so many before it has to grow.
    pub(crate) fn new(room: usize) -> io::Result<Self> {
        Ok(Self {
            finished: Mutex::new(Finished {
                items: Vec::with_capacity(room),
                told: false,
            }),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Called on a thread of the pool, which makes the loop look if it `wakes`: it must for the last
    /// of what it has to do, and if it takes its time for the next.
    pub(crate) fn push(&self, item: T, wakes: bool) {
        let mut finished = self.lock();
        finished.items.push(item);
        if wakes && !finished.told {
            finished.told = true;
            // Fails only if the counter is about to overflow; then it is readable anyway.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Takes the signals back that were given until now: a system call. Look everywhere
    /// afterwards: here, and where others are that know the descriptor. Whether there were any.
    pub(crate) fn take_wake(&self) -> bool {
        rustix::io::read(&self.wake, &mut [0; 8]).is_ok()
    }

    /// Appends all that is finished.
    pub(crate) fn drain_into(&self, out: &mut Vec<T>) {
        let mut finished = self.lock();
        finished.told = false;
        out.append(&mut finished.items);
    }

    /// Becomes readable when something has finished. Others signal a moment after they have
    /// finished, so that it may be readable for what was found already.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, Finished<T>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;

    #[test]
    fn completions_wake_until_they_are_taken() {
        let completions = Completions::new(0).unwrap();
        let readable = || {
            let mut fds = [PollFd::from_borrowed_fd(
                completions.wake_fd(),
                PollFlags::IN,
            )];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
        };
        let mut out = Vec::new();
        assert!(!readable() && !completions.take_wake());
        for round in 0..3 {
            completions.push(round, false);
            assert!(!readable());
            completions.push(round, true);
            assert!(readable() && completions.take_wake());
            completions.drain_into(&mut out);
            assert_eq!(out, [round, round]);
            out.clear();
            assert!(!readable() && !completions.take_wake());
        }
    }

    #[test]
    fn no_completion_is_left_without_a_wake() {
        let completions = Completions::new(0).unwrap();
        let mut out = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..5000).for_each(|item| completions.push(item, item % 3 != 0 || item == 4999))
            });
            let mut seen = 0;
            while seen < 5000 {
                if completions.take_wake() {
                    completions.drain_into(&mut out);
                    seen += out.drain(..).count();
                }
            }
        });
    }
}
