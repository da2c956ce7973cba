//! A flood of writes to nodes that the backend watches.
//!
//! Attack: It writes its state, and hundreds of nodes below it, tens of thousands of times, also
//! while the backend is busy elsewhere.
//!
//! Outcome: Events of one path coalesce, at most 1,024 different ones wait, and more become one
//! event per watch; one turn handles 64 and looks at the guest once. The victim loses no chain.
//!
//! Line: none.
//!
//! Class: 5 (XSA-349)

use std::time::Duration;

use crate::rig::memory::held;
use crate::rig::neighbours::{TURNS, withstands};
use crate::rig::stage::Stage;

/// Different nodes below the watched one; a guest may have 1,000 of all kinds.
const NODES: usize = 500;
/// Bytes by which the backend may have grown: 1,024 events of such short paths at most.
const GROWTH: i64 = 256 << 10;
/// Events that wait at most, over those that one turn handles, and a few turns for what follows.
const TURNS_TO_QUIET: usize = 1024 / 64 + 8;

#[test]
fn writes_before_every_turn_take_nothing_from_the_neighbour() {
    /// Writes between two turns.
    const WRITES: usize = 70;
    let mut node = 0;
    let work = withstands(|attacker| {
        for _ in 0..WRITES / 2 {
            attacker.write("state", "4");
            attacker.write(&format!("state/{node}"), "");
            node = (node + 1) % NODES;
        }
    });
    assert!(work.requests >= TURNS, "the backend looks: {work:?}");
}

#[test]
fn what_was_written_while_the_backend_was_away_is_soon_dealt_with() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let before = held();
    for round in 0..20 {
        for node in 0..NODES {
            stage.guest.write(&format!("state/{node}"), "");
        }
        if round % 5 == 0 {
            stage.guest.write("state", "4");
        }
    }
    stage.rig.machine.barrier();
    let service = stage.rig.service();
    let turns = (0..).take_while(|_| service.turn(Some(Duration::ZERO)).unwrap());
    let turns = turns.take(1000).count();
    assert!(turns <= TURNS_TO_QUIET, "{turns} turns");
    let growth = held() - before;
    assert!(growth < GROWTH, "{growth} bytes");
    stage.assert_state("4");
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}
