//! How long single requests took, from one look at the clock for all that are found together: where a
//! program has no cheap clock, more looks would be what is measured.

use std::time::{Duration, Instant};

/// Requests in flight, and what those that have ended took.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// The last look.
    now: Instant,
    /// Of each slot, the last look before its request.
    since: Vec<Instant>,
    ended: Vec<Duration>,
}

impl Latencies {
    /// For requests in so many slots.
    pub(crate) fn new(slots: usize) -> Self {
        let now = Instant::now();
        Self {
            now,
            since: vec![now; slots],
            ended: Vec::new(),
        }
    }

    /// A request begins right after [`Latencies::look`].
    pub(crate) fn begin(&mut self, slot: usize) {
        self.since[slot] = self.now;
    }

    /// The requests in these slots have ended: the end of these is the begin of the next.
    pub(crate) fn look(&mut self, ended: &[usize]) {
        self.now = Instant::now();
        let took = ended.iter().map(|slot| self.now - self.since[*slot]);
        self.ended.extend(took);
    }

    /// How many have ended.
    pub(crate) fn len(&self) -> usize {
        self.ended.len()
    }

    /// Of all that have ended, in ascending order.
    pub(crate) fn sorted(mut self) -> Vec<Duration> {
        self.ended.sort_unstable();
        self.ended
    }
}

/// In microseconds, of sorted latencies.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = sorted.len() * percent / 100;
    sorted
        .get(at.min(sorted.len().saturating_sub(1)))
        .map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_from_the_look_before_it_to_the_look_after_it() {
        let mut latencies = Latencies::new(2);
        latencies.begin(0);
        latencies.begin(1);
        latencies.look(&[0]);
        let first = latencies.now;
        latencies.begin(0);
        latencies.look(&[1, 0]);
        let took = [
            first - latencies.since[1],
            latencies.now - latencies.since[1],
            latencies.now - first,
        ];
        assert_eq!(latencies.ended, took);
    }

    #[test]
    fn a_percentile_is_one_of_the_latencies() {
        let sorted: Vec<_> = (1..=4).map(Duration::from_micros).collect();
        assert_eq!(
            [50, 99, 100].map(|percent| percentile(&sorted, percent)),
            [3.0, 4.0, 4.0]
        );
        assert_eq!(percentile(&[], 50), 0.0);
    }
}
