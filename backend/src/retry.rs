//! What this host refuses for now, such as one more descriptor: when to try it again, ever less often
//! while it keeps failing, and when to say so. Faults of the host do not count as the guest's lines
//! in the log, so that they are bounded here.

use std::time::{Duration, Instant};

/// Wait after the first failure. Doubles with each.
const FIRST: Duration = Duration::from_millis(250);
/// Longest wait: what an administrator mended is seen soon, and a thousand instances that wait cost
/// little.
const LONGEST: Duration = Duration::from_secs(8);
/// A failure that lasts is told once in this time.
const TELL_PERIOD: Duration = Duration::from_secs(60);

/// Something that may fail for want of a resource of this host.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    delay: Option<Duration>,
    told: Option<Instant>,
}

impl Retry {
    /// It failed: how long to wait before the next try.
    pub(crate) fn failed(&mut self) -> Duration {
        let delay = self.delay.map_or(FIRST, |delay| (delay * 2).min(LONGEST));
        self.delay = Some(delay);
        delay
    }

    /// Whether to say at `now` that it fails.
    pub(crate) fn tells(&mut self, now: Instant) -> bool {
        let over = |told| now.saturating_duration_since(told) >= TELL_PERIOD;
        let tell = self.told.is_none_or(over);
        if tell {
            self.told = Some(now);
        }
        tell
    }

    /// It works. What was said lately is not said again even so: it may fail by turns.
    pub(crate) fn succeeded(&mut self) {
        self.delay = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_begin_anew_after_a_success() {
        let mut retry = Retry::default();
        let waits: Vec<_> = (0..8).map(|_| retry.failed().as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        retry.succeeded();
        assert_eq!(retry.failed(), FIRST);
    }

    #[test]
    fn a_failure_is_told_once_in_a_minute_also_if_it_comes_and_goes() {
        let mut retry = Retry::default();
        let start = Instant::now();
        let told = (0..180).filter(|second| {
            retry.succeeded();
            retry.tells(start + Duration::from_secs(*second))
        });
        assert_eq!(told.collect::<Vec<_>>(), [0, 60, 120]);
    }
}
