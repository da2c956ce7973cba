//! How a ratio is measured: both sides do the same number of operations by turns, A B A B, so that
//! what disturbs the machine disturbs both; each pair of turns gives one ratio.
//!
//! Where both sides keep one processor busy with threads of this process alone, the time is the
//! processor time of the process: on a quiet machine it is what passes, and on a busy one it does
//! not count what others did in between. Everything else is by the clock on the wall, which is told
//! beside the ratio in any case.

use std::ops::Add;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; everything was cleaned up")]
pub struct Interrupted;

/// Operations of the first turn, from which the length of the others is reckoned.
const FIRST: u64 = 16;

/// How many rounds, how long, and whether to go on.
#[derive(Debug)]
pub(crate) struct Rounds<'a> {
    /// Pairs of turns; odd, so that there is a middle one.
    pub(crate) count: usize,
    /// How long one turn of the slower side takes, about.
    pub(crate) turn: Duration,
    /// Set by Ctrl-C.
    pub(crate) stop: &'a AtomicBool,
}

/// One side: does so many operations, and says how long that took.
pub(crate) type Side<'a> = dyn FnMut(u64) -> anyhow::Result<Took> + 'a;

/// How long something took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    wall: Duration,
    /// Processor time of the process, where that means anything.
    processor: Option<Duration>,
}

/// Begins to run when it is made.
#[derive(Debug)]
pub(crate) struct Watch {
    wall: Instant,
    processor: Duration,
}

/// A figure with the range that it was found in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// What a pair of sides measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// Our time divided by the peer's.
    pub(crate) time: Spread,
    /// The same by the clock on the wall, if `time` is not.
    pub(crate) wall: Option<Spread>,
    /// Nanoseconds of one operation.
    pub(crate) ours: Spread,
    /// Of the peer's.
    pub(crate) peer: Spread,
}

impl Rounds<'_> {
    /// An error once Ctrl-C was pressed.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Interrupted),
            false => Ok(()),
        }
    }

    /// Measures two sides by turns.
    pub(crate) fn pair(&self, ours: &mut Side<'_>, peer: &mut Side<'_>) -> anyhow::Result<Pair> {
        let operations = self.calibrate(ours)?.min(self.calibrate(peer)?);
        let (mut times, mut walls) = (Vec::new(), Vec::new());
        let (mut our_ns, mut peer_ns) = (Vec::new(), Vec::new());
        let mut by_processor = true;
        for _ in 0..self.count {
            self.check()?;
            let (a, b) = (ours(operations)?, peer(operations)?);
            walls.push(each(a.wall, operations) / each(b.wall, operations));
            let (a, b) = match (a.processor, b.processor) {
                (Some(a), Some(b)) => (each(a, operations), each(b, operations)),
                _ => {
                    by_processor = false;
                    (each(a.wall, operations), each(b.wall, operations))
                }
            };
            times.push(a / b);
            our_ns.push(a);
            peer_ns.push(b);
        }
        Ok(Pair {
            time: Spread::of(&mut times),
            wall: by_processor.then(|| Spread::of(&mut walls)),
            ours: Spread::of(&mut our_ns),
            peer: Spread::of(&mut peer_ns),
        })
    }

    /// Nanoseconds of one operation of one side alone: for detail, never against a target.
    pub(crate) fn alone(&self, side: &mut Side<'_>) -> anyhow::Result<Spread> {
        let operations = self.calibrate(side)?;
        let mut ns = Vec::new();
        for _ in 0..self.count {
            self.check()?;
            let took = side(operations)?;
            ns.push(each(took.processor.unwrap_or(took.wall), operations));
        }
        Ok(Spread::of(&mut ns))
    }

    /// Warms a side up; operations that fill a turn.
    fn calibrate(&self, side: &mut Side<'_>) -> anyhow::Result<u64> {
        let mut operations = FIRST;
        loop {
            self.check()?;
            let begin = Instant::now();
            side(operations)?;
            let took = begin.elapsed();
            if took * 4 >= self.turn {
                let turns = self.turn.as_secs_f64() / took.as_secs_f64();
                return Ok(scaled(operations, turns).max(1));
            }
            operations = operations.saturating_mul(4);
        }
    }
}

impl Spread {
    /// Of at least one number.
    pub(crate) fn of(numbers: &mut [f64]) -> Self {
        numbers.sort_by(f64::total_cmp);
        let at = |index: usize| numbers.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: at(numbers.len() / 2),
            low: at(0),
            high: at(numbers.len().saturating_sub(1)),
        }
    }

    /// A number that is always the same.
    pub(crate) fn exact(number: f64) -> Self {
        Self {
            median: number,
            low: number,
            high: number,
        }
    }

    /// The spread of 1/x.
    pub(crate) fn inverse(self) -> Self {
        Self {
            median: 1.0 / self.median,
            low: 1.0 / self.high,
            high: 1.0 / self.low,
        }
    }
}

impl Took {
    /// By the clock on the wall alone.
    pub(crate) fn by_wall(wall: Duration) -> Self {
        Self {
            wall,
            processor: None,
        }
    }

    /// So many times as long.
    pub(crate) fn scaled(self, factor: f64) -> Self {
        Self {
            wall: self.wall.mul_f64(factor),
            processor: self.processor.map(|time| time.mul_f64(factor)),
        }
    }

    /// The same without processor time: the work was not done by this process alone, or waited.
    pub(crate) fn without_processor(self) -> Self {
        Self::by_wall(self.wall)
    }
}

impl Add for Took {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            processor: self
                .processor
                .zip(other.processor)
                .map(|(one, other)| one + other),
        }
    }
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self {
            processor: processor_time(),
            wall: Instant::now(),
        }
    }

    pub(crate) fn took(&self) -> Took {
        let wall = self.wall.elapsed();
        Took {
            wall,
            processor: Some(processor_time().saturating_sub(self.processor)),
        }
    }
}

impl Default for Took {
    /// Nothing, to add to.
    fn default() -> Self {
        Self {
            wall: Duration::ZERO,
            processor: Some(Duration::ZERO),
        }
    }
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The sum of what `once` says of itself, `count` times.
pub(crate) fn summed(
    count: u64,
    mut once: impl FnMut() -> anyhow::Result<Took>,
) -> anyhow::Result<Took> {
    (0..count).try_fold(Took::default(), |sum, _| Ok(sum + once()?))
}

/// Nanoseconds of one of `operations`.
fn each(time: Duration, operations: u64) -> f64 {
    time.as_secs_f64() * 1e9 / operations as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of operations, positive and far below 2^53"
)]
fn scaled(operations: u64, factor: f64) -> u64 {
    (operations as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let spread = Spread::of(&mut [3.0, 1.0, 2.0, 9.0, 0.5]);
        assert_eq!(
            spread,
            Spread {
                median: 2.0,
                low: 0.5,
                high: 9.0
            }
        );
        let inverse = spread.inverse();
        assert_eq!((inverse.low, inverse.high), (1.0 / 9.0, 2.0));
    }

    #[test]
    fn both_sides_do_the_same_work_by_turns() {
        let stop = AtomicBool::new(false);
        let rounds = Rounds {
            count: 3,
            turn: Duration::ZERO,
            stop: &stop,
        };
        let log = std::cell::RefCell::new(Vec::new());
        let side = |name, ns| {
            let log = &log;
            move |operations| {
                log.borrow_mut().push((name, operations));
                Ok(Took::by_wall(Duration::from_nanos(ns * operations)))
            }
        };
        let pair = rounds
            .pair(&mut side('a', 100), &mut side('b', 400))
            .unwrap();
        assert_eq!(pair.time, Spread::exact(0.25));
        assert_eq!(pair.ours.median, 100.0);
        let log = log.into_inner();
        let (names, counts): (String, Vec<u64>) = log[2..].iter().copied().unzip();
        assert_eq!(names, "ababab");
        assert!(counts.iter().all(|count| *count == counts[0]));
    }

    #[test]
    fn ctrl_c_ends_the_rounds() {
        let stop = AtomicBool::new(true);
        let rounds = Rounds {
            count: 1,
            turn: Duration::ZERO,
            stop: &stop,
        };
        let error = rounds
            .alone(&mut |_| Ok(Took::by_wall(Duration::ZERO)))
            .unwrap_err();
        assert!(error.is::<Interrupted>());
    }
}
