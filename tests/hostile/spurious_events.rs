//! A storm of events that mean nothing.
//!
//! Attack: It sends a million events without having put anything into its ring.
//!
//! Outcome: Events coalesce in the port; the backend acknowledges at most one a turn, and after 64
//! without work at most one a millisecond (binding section 4). They are counted, and cost the victim
//! no chain.
//!
//! Line: none; IDLE of `vmsg stat` grows.
//!
//! Class: 6 (XSA-332, XSA-391)

use std::time::{Duration, Instant};

use crate::rig::neighbours::{TURNS, withstands};
use crate::rig::stage::Stage;

/// Events of the whole run.
const EVENTS: u64 = 1_000_000;

#[test]
fn a_million_events_cost_a_turn_each_at_most_and_the_victim_nothing() {
    let work = withstands(|attacker| {
        for _ in 0..EVENTS / TURNS {
            attacker.notify();
        }
    });
    assert_eq!(work.frames, 0);
    assert_ne!(work.spurious_events, 0, "they are counted");
    assert!(work.spurious_events <= TURNS, "{work:?}");
}

#[test]
fn after_64_events_without_work_the_next_are_acknowledged_late() {
    /// Events in a row that are acknowledged at once.
    const FREE: u64 = 64;
    let mut stage = Stage::new();
    let disk = stage.hostile_disk();
    let acknowledged = |stage: &mut Stage| {
        let guest = stage.bus.guest.0;
        let instances = stage.rig.service().gauges().instances.into_iter();
        let mut links = instances.filter(|instance| instance.frontend == guest);
        links.next().unwrap().link.unwrap().spurious_events
    };
    let (first, start) = (acknowledged(&mut stage), Instant::now());
    let mut late = 0;
    for _ in 0..10 * FREE {
        let before = acknowledged(&mut stage);
        stage.guest.notify();
        stage.rig.machine.barrier();
        stage.rig.service().turn(Some(Duration::ZERO)).unwrap();
        match acknowledged(&mut stage) - before {
            0 => {
                late += 1;
                let timer = stage.rig.service().next_timer();
                assert!(timer.is_some(), "nobody comes back for it");
            }
            one => assert_eq!(one, 1, "events coalesce"),
        }
    }
    let passed = u64::try_from(start.elapsed().as_millis()).unwrap();
    let all = acknowledged(&mut stage) - first;
    assert!(late > 0, "all {all} events were acknowledged at once");
    // One for each millisecond at most: that the test is slow allows more, and forbids nothing.
    assert!(all <= FREE + passed + 1, "{all} events in {passed} ms");
    drop(disk);
    stage.finish();
}
