//! How much the log says about one guest: a bounded number of lines, whatever the guest does
//! (binding section 10; Xen's own backends learnt it from guests that filled dom0's disk).
//!
//! What a guest can cause as often as it likes asks [`GuestLog::admits`] first. What it did is not
//! lost: lines that are not written are counted, and the count is. Faults of the host do not ask.
//! [`in_full`] says why something failed, down to the first cause.

use std::error::Error;
use std::mem;
use std::time::{Duration, Instant};

use crate::instance::InstanceId;

/// Lines in a minute: a connection from its first state to its last takes about ten.
pub const GUEST_LINES_PER_PERIOD: u32 = 64;
/// The minute that they are counted in: a guest that reconnects without end for a day writes some 10 MB.
const PERIOD: Duration = Duration::from_secs(60);

/// The log's budget for one bus instance.
#[derive(Debug)]
pub(crate) struct GuestLog {
    id: InstanceId,
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl GuestLog {
    pub(crate) fn new(id: InstanceId) -> Self {
        Self {
            id,
            began: None,
            lines: 0,
            suppressed: 0,
        }
    }

    /// Whom the lines are about.
    pub(crate) fn id(&self) -> InstanceId {
        self.id
    }

    /// Whether one more line may be written; if not, it is counted.
    pub(crate) fn admits(&mut self) -> bool {
        self.admits_at(Instant::now())
    }

    fn admits_at(&mut self, now: Instant) -> bool {
        let over = |began| now.saturating_duration_since(began) >= PERIOD;
        if self.began.is_none_or(over) {
            self.tell_suppressed();
            self.began = Some(now);
            self.lines = 0;
        }
        if self.lines < GUEST_LINES_PER_PERIOD {
            self.lines += 1;
            return true;
        }
        if self.suppressed == 0 {
            tracing::warn!(id = %self.id, "{GUEST_LINES_PER_PERIOD} lines in a minute: more are counted, not written");
        }
        self.suppressed = self.suppressed.saturating_add(1);
        false
    }

    fn tell_suppressed(&mut self) {
        let suppressed = mem::take(&mut self.suppressed);
        if suppressed > 0 {
            tracing::warn!(id = %self.id, "{suppressed} more lines suppressed");
        }
    }
}

impl Drop for GuestLog {
    fn drop(&mut self) {
        self.tell_suppressed();
    }
}

/// An error and what caused it, in one line, for the log and for the node `error`.
pub(crate) fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors say their cause themselves.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use xen_types::DomId;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn a_cause_is_said_once() {
        for (text, said) in [
            ("the ring", "the ring: no more pages"),
            ("the ring: no more pages", "the ring: no more pages"),
        ] {
            let source = io::Error::other("no more pages");
            assert_eq!(in_full(&Layer { text, source }), said);
        }
    }

    #[test]
    fn a_guest_has_so_many_lines_a_period_and_the_rest_is_counted() {
        let mut log = GuestLog::new(InstanceId {
            frontend: DomId(1),
            handle: 0,
        });
        let start = Instant::now();
        let mut written = |at: Duration| {
            let now = start + at;
            (0..1000).filter(|_| log.admits_at(now)).count()
        };
        let all = GUEST_LINES_PER_PERIOD as usize;
        assert_eq!(written(Duration::ZERO), all);
        assert_eq!(written(PERIOD - Duration::from_nanos(1)), 0);
        assert_eq!(written(PERIOD), all);
        assert_eq!(written(PERIOD), 0);
        assert_eq!(log.suppressed, 2000 - u64::from(GUEST_LINES_PER_PERIOD));
    }
}
