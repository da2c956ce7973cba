//! A point in time, passed in by the caller: this crate reads no clock.

use core::ops::Add;
use core::time::Duration;

/// Nanoseconds since some fixed moment of the caller's choice; never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the end of time, 584 years on.
    fn add(self, wait: Duration) -> Instant {
        Instant(
            self.0
                .saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}
