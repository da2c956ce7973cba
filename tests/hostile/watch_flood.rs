//! A flood of writes to nodes that the backend watches.
//!
//! Attack: It writes its state, and hundreds of nodes below it, tens of thousands of times, also
//! while the backend is busy elsewhere; or makes and removes thousands of nodes with long names.
//!
//! Outcome: Events of one path coalesce, at most 1,024 different ones wait, and more become one
//! event per watch; one turn handles 64 and looks at the guest once. The victim loses no chain.
//!
//! Line: none.
//!
//! Class: 5 (XSA-349)

use std::time::Duration;

use xenstore::Tree as _;

use crate::rig::memory::held;
use crate::rig::neighbours::{TURNS, withstands};
use crate::rig::stage::Stage;

/// Different nodes below the watched one; a guest may have 1,000 of all kinds.
const NODES: usize = 500;
/// Bytes by which the backend may have grown: 1,024 events of such short paths at most.
const GROWTH: i64 = 256 << 10;
/// As [`GROWTH`], of the long names below, each kept twice.
const GROWTH_OF_LONG_NAMES: i64 = 2 << 20;
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
    assert_soon_quiet(&mut stage);
    let growth = held() - before;
    assert!(growth < GROWTH, "{growth} bytes");
    stage.assert_state("4");
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

/// Each turn handles fewer than the guest makes for it, so that they pile up where they wait.
#[test]
fn thousands_of_different_long_names_take_the_room_of_1024() {
    /// Names for each turn, of so many bytes: more than a turn handles, and not so many that the
    /// store holds the guest up.
    const NAMES: usize = 120;
    const LEN: usize = 300;
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let before = held();
    let mut most = 0;
    for round in 0..60 {
        for name in 0..NAMES {
            let node = long_name(round * NAMES + name, LEN);
            stage.guest.write(&node, "");
            let path = stage.guest.bus.front(&node);
            stage.guest.store.rm(&path).unwrap();
        }
        stage.rig.machine.barrier();
        stage.rig.service().turn(Some(Duration::ZERO)).unwrap();
        most = most.max(held() - before);
    }
    assert!(most < GROWTH_OF_LONG_NAMES, "{most} bytes");
    assert_soon_quiet(&mut stage);
    stage.assert_state("4");
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

/// A node below the watched one that no other number has.
fn long_name(number: usize, len: usize) -> String {
    format!("state/{number:0len$}")
}

/// The backend has dealt with all that waits within as many turns as 1,024 events take.
#[track_caller]
fn assert_soon_quiet(stage: &mut Stage) {
    let service = stage.rig.service();
    let turns = (0..).take_while(|_| service.turn(Some(Duration::ZERO)).unwrap());
    let turns = turns.take(1000).count();
    assert!(turns <= TURNS_TO_QUIET, "{turns} turns");
}
