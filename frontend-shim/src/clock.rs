//! The frontend's clock: cheap where nobody needs the nanosecond.
//!
//! Reading the time can cost a system call, or even a trap into Xen: programs of a PV guest may not
//! read its counter themselves. The time of the kernel's last tick is always a read of memory, and
//! good enough for limits of seconds. [`Clock::exact`] is for what is nearer than a tick.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The longest tick of a Linux kernel: a hundred in a second.
const TICK: Duration = Duration::from_millis(10);

/// A clock, and how often it was read exactly.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The tick that came last before the start.
    epoch: Instant,
    /// The same, as the kernel counts.
    start: Duration,
    exact: AtomicU64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        // In this order an epoch is never later than its tick: no deadline passes too early.
        let now = Instant::now();
        let start = read(ClockId::MonotonicCoarse);
        let since_tick = read(ClockId::Monotonic).saturating_sub(start);
        Self {
            epoch: now.checked_sub(since_tick).unwrap_or(now),
            start,
            exact: AtomicU64::new(1),
        }
    }

    /// Time since the epoch, as of the last tick.
    pub(crate) fn elapsed(&self) -> Duration {
        read(ClockId::MonotonicCoarse).saturating_sub(self.start)
    }

    /// The last tick: at most so much earlier than now.
    pub(crate) fn now(&self) -> Instant {
        self.at(self.elapsed())
    }

    /// The moment so long after the epoch.
    pub(crate) fn at(&self, elapsed: Duration) -> Instant {
        self.epoch.checked_add(elapsed).unwrap_or(self.epoch)
    }

    /// Now.
    pub(crate) fn exact(&self) -> Instant {
        self.exact.fetch_add(1, Ordering::Relaxed);
        Instant::now()
    }

    /// Whether `at` has passed. Exact, and cheap as long as it is far.
    pub(crate) fn has_passed(&self, at: Instant) -> bool {
        let left = at.saturating_duration_since(self.now());
        left.is_zero() || (left <= TICK && at <= self.exact())
    }

    /// How often it was read exactly.
    pub(crate) fn exact_reads(&self) -> u64 {
        self.exact.load(Ordering::Relaxed)
    }
}

fn read(clock: ClockId) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    let seconds = Duration::from_secs(tv_sec.unsigned_abs());
    seconds.saturating_add(Duration::from_nanos(tv_nsec.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tick_is_never_later_than_now_and_time_goes_on() {
        let clock = Clock::start();
        let first = clock.now();
        // Ticks come, however long that takes.
        while clock.now() == first {
            assert!(clock.now() <= Instant::now());
        }
        assert!(first < clock.now() && clock.now() <= Instant::now());
    }

    #[test]
    fn a_far_deadline_is_looked_at_without_reading_the_counter() {
        let clock = Clock::start();
        let before = clock.exact_reads();
        assert!(!clock.has_passed(Instant::now() + Duration::from_secs(60)));
        assert!(clock.has_passed(clock.epoch));
        assert_eq!(clock.exact_reads(), before);
    }

    #[test]
    fn a_near_deadline_has_passed_neither_too_early_nor_a_tick_late() {
        let clock = Clock::start();
        let at = Instant::now() + Duration::from_micros(200);
        while !clock.has_passed(at) {}
        assert!(at <= Instant::now());
        assert!(clock.has_passed(Instant::now()));
        assert!(clock.exact_reads() > 1);
    }
}
