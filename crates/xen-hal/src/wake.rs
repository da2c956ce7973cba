//! What it costs on this machine to be woken by another core, measured once: an eventfd, as event
//! channels are behind one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

/// Round trips that are measured, after one that is not; the median counts. A millisecond or two.
const ROUNDS: usize = 15;

/// Time from a wake-up to the woken thread's first step. `None`: this process has one core, or it
/// cannot be measured.
#[must_use]
pub fn wake_cost() -> Option<Duration> {
    if thread::available_parallelism().ok()?.get() < 2 {
        return None;
    }
    measure().ok()
}

fn measure() -> io::Result<Duration> {
    let [there, back] = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC));
    let (there, back) = (there?, back?);
    let mut trips = thread::scope(|scope| {
        // An eventfd does not fail, so neither thread waits for one that has given up.
        let echo = thread::Builder::new().spawn_scoped(scope, || {
            for _ in 0..=ROUNDS {
                take(&there)?;
                give(&back)?;
            }
            Ok::<_, io::Error>(())
        })?;
        let mut trips = Vec::with_capacity(ROUNDS);
        for round in 0..=ROUNDS {
            let start = Instant::now();
            give(&there)?;
            take(&back)?;
            if round > 0 {
                trips.push(start.elapsed());
            }
        }
        drop(echo);
        Ok::<_, io::Error>(trips)
    })?;
    trips.sort_unstable();
    let median = trips.get(ROUNDS / 2).copied().unwrap_or_default();
    // There and back.
    Ok(median / 2)
}

fn give(eventfd: &OwnedFd) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::io::write(eventfd.as_fd(), &1_u64.to_ne_bytes()))?;
    Ok(())
}

fn take(eventfd: &OwnedFd) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::io::read(eventfd.as_fd(), &mut [0; 8]))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_takes_time_where_there_are_two_cores() {
        let cores = thread::available_parallelism().unwrap().get();
        let cost = wake_cost();
        assert_eq!(cost.is_some(), cores > 1);
        assert!(cost.is_none_or(|cost| !cost.is_zero()));
    }
}
