//! So many bytes per period, and no thread that waits for the next one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// What may be spent. A period begins with the first byte spent, so that an idle device has no
/// timer running.
#[derive(Debug)]
pub(super) struct Rate {
    /// Readable at the end of a period.
    timer: OwnedFd,
    period: Duration,
    full: usize,
    left: usize,
}

impl Rate {
    /// `bytes` per `period`, which is not zero.
    pub(super) fn new(bytes: usize, period: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            period,
            full: bytes,
            left: bytes,
        })
    }

    /// What may be spent now.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Begins anew if the period has ended.
    pub(super) fn refill(&mut self) {
        if self.left < self.full && rustix::io::read(&self.timer, &mut [0; 8]).is_ok() {
            self.left = self.full;
        }
    }

    /// At most what is left.
    pub(super) fn spend(&mut self, bytes: usize) {
        if self.left == self.full && bytes > 0 {
            self.begin_period();
        }
        self.left = self.left.saturating_sub(bytes);
    }

    /// Readable when the period has ended.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn begin_period(&self) {
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: self.period.as_secs().cast_signed(),
                tv_nsec: self.period.subsec_nanos().into(),
            },
        };
        // Cannot fail: the descriptor is a timer and the time is a time.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}
