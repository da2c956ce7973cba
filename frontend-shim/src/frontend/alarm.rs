//! The end of a long sleep.
//!
//! A sleep with a time-out makes the kernel read its counter and set a timer, once for every
//! request, and the time-out hardly ever comes. One timer that is set once for the earliest deadline
//! serves all sleeps until then: deadlines of later requests are later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::clock::Clock;

/// A sleep that is no longer gets a time-out of its own.
const SHORT: Duration = Duration::from_millis(20);

/// A timer behind a descriptor.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: OwnedFd,
    /// When it goes off.
    set: Option<Instant>,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { timer, set: None })
    }

    /// Sees to it that a sleep which also waits for this descriptor ends at `deadline` or before.
    /// Gives the time-out that such a sleep needs, if it needs one.
    pub(super) fn cover(
        &mut self,
        deadline: Instant,
        clock: &Clock,
    ) -> io::Result<Option<Duration>> {
        if self.set.is_some_and(|set| set <= deadline) {
            return Ok(None);
        }
        let left = deadline.saturating_duration_since(clock.exact());
        let Some(once) = Timespec::try_from(left).ok().filter(|_| left > SHORT) else {
            return Ok(Some(left));
        };
        let timer = Itimerspec {
            it_interval: Timespec::default(),
            it_value: once,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer)?;
        self.set = Some(deadline);
        Ok(None)
    }

    /// Its descriptor was readable.
    pub(super) fn went_off(&mut self) -> io::Result<()> {
        self.set = None;
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.timer, &mut [0; 8])) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Alarm {
    /// Readable once it has gone off.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn it_is_set_for_the_earliest_deadline_only_and_goes_off_then() {
        let clock = Clock::start();
        let mut alarm = Alarm::new().unwrap();
        let begin = Instant::now();
        let hour = Duration::from_secs(3600);
        let soon = begin + 10 * SHORT;
        assert_eq!(alarm.cover(begin + hour, &clock).unwrap(), None);
        assert_eq!(alarm.cover(soon, &clock).unwrap(), None);
        let reads = clock.exact_reads();
        for later in 0..100 {
            let deadline = soon + Duration::from_nanos(later);
            assert_eq!(alarm.cover(deadline, &clock).unwrap(), None);
        }
        assert_eq!(clock.exact_reads(), reads);
        let ready = poll(&mut [PollFd::new(&alarm, PollFlags::IN)], None);
        assert_eq!(ready, Ok(1));
        assert!(soon <= Instant::now());
        alarm.went_off().unwrap();
        let none = Timespec::default();
        let ready = poll(&mut [PollFd::new(&alarm, PollFlags::IN)], Some(&none));
        assert_eq!(ready, Ok(0));
        assert_eq!(alarm.set, None);
    }

    #[test]
    fn a_short_sleep_gets_a_time_out_and_no_alarm() {
        let clock = Clock::start();
        let mut alarm = Alarm::new().unwrap();
        let passed = Instant::now();
        assert_eq!(alarm.cover(passed, &clock).unwrap(), Some(Duration::ZERO));
        let left = alarm.cover(Instant::now() + SHORT, &clock).unwrap();
        assert!(left.is_some_and(|left| left <= SHORT));
        assert_eq!(alarm.set, None);
    }
}
