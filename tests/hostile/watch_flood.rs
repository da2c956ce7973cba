//! A flood of writes to nodes that the backend watches.
//!
//! Attack: It writes its state, and hundreds of nodes below it, tens of thousands of times, or
//! makes and removes thousands of nodes with long names.
//!
//! Outcome: The store lets the guest wait while what it caused is unread. In the backend events of
//! one path coalesce, at most 1,024 different ones wait, and more become one event per watch; one
//! turn handles 64 and looks at the guest once. The victim loses no chain.
//!
//! Line: none.
//!
//! Class: 5 (XSA-349)

use std::thread;
use std::time::Duration;

use tests::Bus;
use xenstore::{Client, Tree as _};

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
fn a_flood_of_short_names_is_soon_dealt_with() {
    withstands_flood(GROWTH, |store, bus| {
        for round in 0..20 {
            for node in 0..NODES {
                store
                    .write(&bus.front(&format!("state/{node}")), "")
                    .unwrap();
            }
            if round % 5 == 0 {
                store.write(&bus.front("state"), "4").unwrap();
            }
        }
    });
}

#[test]
fn a_flood_of_long_names_is_soon_dealt_with() {
    const NAMES: usize = 7200;
    const LEN: usize = 300;
    withstands_flood(GROWTH_OF_LONG_NAMES, |store, bus| {
        for name in 0..NAMES {
            let path = bus.front(&long_name(name, LEN));
            store.write(&path, "").unwrap();
            store.rm(&path).unwrap();
        }
    });
}

/// While a thread of the guest writes, the backend takes its turns, and grows by less than `growth`
/// bytes; then it is quiet soon, and serves.
#[track_caller]
fn withstands_flood(growth: i64, write: impl FnOnce(&mut Client, Bus) + Send) {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let bus = stage.guest.bus;
    let mut store = stage.rig.machine.store(bus.guest);
    let before = held();
    let mut most = 0;
    thread::scope(|scope| {
        let writing = scope.spawn(move || write(&mut store, bus));
        while !writing.is_finished() {
            let wait = Some(Duration::from_millis(1));
            stage.rig.service().turn(wait).unwrap();
            most = most.max(held() - before);
        }
        writing.join().unwrap();
    });
    assert!(most < growth, "{most} bytes");
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
