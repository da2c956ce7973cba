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

use crate::rig::neighbours::{TURNS, withstands};

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
