//! Whether to look for the peer's next event for a while before sleeping, and for how long.
//!
//! Being woken has a price: some microseconds on one core, tens of them if another core has to
//! leave its idle state. If the next event usually comes within that price, looking for it is
//! cheaper than sleeping. And whoever looks no longer than that never pays more than twice what
//! the better choice would have cost. The clock, and how to look and sleep, are the caller's.

use std::hint;
use std::time::Duration;

/// Longest time that is ever spent on looking: then somebody else can use the core.
pub const MAX_SPIN: Duration = Duration::from_micros(50);

/// As which a longer pause counts: a guest that comes back after an hour is known as busy after a
/// dozen events, not after a day.
const LONG_PAUSE: Duration = Duration::from_micros(500);

/// Weight of the past in the estimate of the next pause: so many parts of one more.
const PAST: u32 = 3;

/// What one waiter knows of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Price of being woken, at most [`MAX_SPIN`]; zero: never look.
    wake: Duration,
    /// Moving average of the time until the next event.
    pause: Duration,
}

impl Patience {
    /// Never looks: the only choice where both sides share one core.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            wake: Duration::ZERO,
            pause: LONG_PAUSE,
        }
    }

    /// For a waiter that pays `wake` for being woken, as measured. Sleeps until it knows its events.
    #[must_use]
    pub fn new(wake: Duration) -> Self {
        Self {
            wake: wake.min(MAX_SPIN),
            pause: LONG_PAUSE,
        }
    }

    /// Waits for an event, at most for `limit` (`None`: as long as it takes); whether there is one.
    /// `ask` waits for an event, at most as long as it is told, and says whether there is one;
    /// `elapsed` is the time since this call began.
    ///
    /// # Errors
    /// Those of `ask`.
    pub fn wait<E>(
        &mut self,
        limit: Option<Duration>,
        elapsed: impl Fn() -> Duration,
        mut ask: impl FnMut(Option<Duration>) -> Result<bool, E>,
    ) -> Result<bool, E> {
        if limit == Some(Duration::ZERO) || self.wake.is_zero() {
            return ask(limit);
        }
        let spin = limit.map_or(self.spin(), |limit| limit.min(self.spin()));
        while elapsed() < spin {
            if ask(Some(Duration::ZERO))? {
                self.found(elapsed());
                return Ok(true);
            }
            hint::spin_loop();
        }
        let answer = ask(limit.map(|limit| limit.saturating_sub(elapsed())));
        self.woken(elapsed());
        answer
    }

    /// How long to look for an event now before sleeping. Zero: sleep at once.
    fn spin(&self) -> Duration {
        if self.pause <= self.wake {
            self.wake
        } else {
            Duration::ZERO
        }
    }

    /// An event was found `after` the wait had begun, without sleeping.
    fn found(&mut self, after: Duration) {
        self.learn(after);
    }

    /// An event, or the end of the wait, came `after` it had begun, and this side had slept.
    fn woken(&mut self, after: Duration) {
        // When the event was sent nobody knows; this side noticed it so much later.
        self.learn(after.saturating_sub(self.wake));
    }

    fn learn(&mut self, pause: Duration) {
        self.pause = (self.pause * PAST + pause.min(LONG_PAUSE)) / (PAST + 1);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const WAKE: Duration = micros(30);

    const fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// A peer that sends an event `pause` after each wait began, and a clock that goes on by the
    /// time that looking and being woken take.
    struct World {
        pause: Duration,
        wake: Duration,
        now: Cell<Duration>,
        looks: Cell<u32>,
        slept: Cell<bool>,
    }

    impl World {
        /// One wait; how long it took, and whether this side slept.
        fn wait(patience: &mut Patience, pause: Duration, wake: Duration) -> (Duration, bool) {
            let world = World {
                pause,
                wake,
                now: Cell::default(),
                looks: Cell::default(),
                slept: Cell::default(),
            };
            let found = patience.wait(None, || world.now.get(), |limit| world.ask(limit));
            assert_eq!(found, Ok(true));
            (world.now.get(), world.slept.get())
        }

        fn ask(&self, limit: Option<Duration>) -> Result<bool, ()> {
            let now = self.now.get();
            match limit {
                Some(Duration::ZERO) => {
                    self.looks.set(self.looks.get() + 1);
                    self.now.set(now + Duration::from_nanos(200));
                    Ok(now >= self.pause)
                }
                _ => {
                    self.slept.set(true);
                    self.now.set(now.max(self.pause) + self.wake);
                    Ok(true)
                }
            }
        }
    }

    #[test]
    fn it_begins_by_sleeping_and_soon_looks_for_a_busy_peer() {
        let mut patience = Patience::new(WAKE);
        let slept = (0..100)
            .take_while(|_| World::wait(&mut patience, micros(5), WAKE).1)
            .count();
        assert!((1..16).contains(&slept), "{slept}");
        let (took, slept) = World::wait(&mut patience, micros(5), WAKE);
        assert!(!slept && took < micros(6), "{took:?}");
    }

    #[test]
    fn a_slow_peer_is_never_looked_for() {
        let mut patience = Patience::new(WAKE);
        for _ in 0..100 {
            let waited = World::wait(&mut patience, micros(200), WAKE);
            assert_eq!(waited, (micros(230), true));
        }
    }

    #[test]
    fn a_pause_ends_the_looking_and_does_not_keep_it_away() {
        let mut patience = Patience::new(WAKE);
        for _ in 0..50 {
            World::wait(&mut patience, micros(2), WAKE);
        }
        let hour = Duration::from_secs(3600);
        World::wait(&mut patience, hour, WAKE);
        assert_eq!(World::wait(&mut patience, hour, WAKE).0, hour + WAKE);
        for _ in 0..16 {
            World::wait(&mut patience, micros(2), WAKE);
        }
        assert!(!World::wait(&mut patience, micros(2), WAKE).1);
    }

    #[test]
    fn on_one_core_it_never_looks() {
        let mut patience = Patience::none();
        for _ in 0..100 {
            assert!(World::wait(&mut patience, Duration::ZERO, Duration::ZERO).1);
        }
    }

    #[test]
    fn who_does_not_want_to_wait_asks_once() {
        let mut patience = Patience::new(WAKE);
        let mut asked = Vec::new();
        let answer = patience.wait(
            Some(Duration::ZERO),
            || unreachable!(),
            |limit| {
                asked.push(limit);
                Ok::<_, ()>(false)
            },
        );
        assert_eq!((answer, asked), (Ok(false), vec![Some(Duration::ZERO)]));
    }

    proptest! {
        #[test]
        fn looking_never_costs_more_than_sleeping_would(
            wake in 1u64..1_000,
            pauses in prop::collection::vec(0u64..2_000, 0..100),
        ) {
            let wake = micros(wake);
            let mut patience = Patience::new(wake);
            for pause in pauses.into_iter().map(micros) {
                let (took, _) = World::wait(&mut patience, pause, wake);
                prop_assert!(patience.spin() <= MAX_SPIN);
                // One look more than there was time for.
                prop_assert!(took <= pause + wake + micros(1), "{took:?}");
            }
        }
    }
}
