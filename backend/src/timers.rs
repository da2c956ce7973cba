//! When which session wants a turn even without an event. What it costs grows with the number of
//! sessions that have a deadline, never with the number of those that have none.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// Deadlines by session key, at most one each.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Instant, usize)>,
    by_key: HashMap<usize, Instant>,
}

impl Timers {
    /// Sets, moves or (`None`) drops the deadline of `key`.
    pub(crate) fn set(&mut self, key: usize, deadline: Option<Instant>) {
        let before = match deadline {
            Some(at) => self.by_key.insert(key, at),
            None => self.by_key.remove(&key),
        };
        if before == deadline {
            return;
        }
        if let Some(at) = before {
            self.order.remove(&(at, key));
        }
        if let Some(at) = deadline {
            self.order.insert((at, key));
        }
    }

    /// The next deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out a key whose deadline is not after `now`, the earliest first.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<usize> {
        let (at, key) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.set(key, None);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    #[test]
    fn the_earliest_comes_first_and_only_when_due() {
        let mut timers = Timers::default();
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        timers.set(7, Some(at(2)));
        timers.set(8, Some(at(1)));
        timers.set(9, Some(at(3)));
        timers.set(9, None);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.take_due(now), None);
        assert_eq!(timers.take_due(at(5)), Some(8));
        assert_eq!(timers.take_due(at(5)), Some(7));
        assert_eq!((timers.take_due(at(5)), timers.next()), (None, None));
    }

    proptest! {
        #[test]
        fn they_behave_like_a_search_through_everybody(
            steps in prop::collection::vec((0usize..4, prop::option::of(0u64..8), 0u64..8), 1..60),
        ) {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let (mut timers, mut model) = (Timers::default(), BTreeMap::new());
            for (key, deadline, now) in steps {
                timers.set(key, deadline.map(at));
                match deadline {
                    Some(deadline) => model.insert(key, deadline),
                    None => model.remove(&key),
                };
                let first = model.iter().map(|(key, at)| (*at, *key)).min();
                prop_assert_eq!(timers.next(), first.map(|(seconds, _)| at(seconds)));
                let due = first.filter(|(at, _)| *at <= now).map(|(_, key)| key);
                prop_assert_eq!(timers.take_due(at(now)), due);
                if let Some(key) = due {
                    model.remove(&key);
                }
            }
        }
    }
}
