//! A frontend that does not wait for the backend's states.
//!
//! Attack: It writes state 1 and then 3 at once, with the session of before, with none, or again and
//! again, instead of waiting for state 2.
//!
//! Outcome: What the backend finds, not what was written in between, decides (binding section 3). In
//! state 2 it waits until 3 comes with its own session; in 4 it waits for 4, or lets go of everything
//! when it has seen 1. A frontend that then does it right is served.
//!
//! Class: 4 (XSA-350)

use tests::Random;

use crate::rig::stage::Stage;

const LINE: &str = "INFO detached: nothing of the guest is held id=domain … bus 0";

/// Both states at once: the backend sees the second alone.
fn write_1_and_3(stage: &mut Stage) {
    stage.guest.write("state", "1");
    stage.guest.write("state", "3");
    stage.rig.settle();
}

/// A correct start from here on.
#[track_caller]
fn assert_starts(mut stage: Stage) {
    stage.guest.drop_link();
    stage.guest.write("state", "1");
    let mut disk = stage.hostile_disk();
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn before_any_session() {
    let mut stage = Stage::new();
    write_1_and_3(&mut stage);
    // Without a session it is a leftover.
    stage.assert_state("2");
    assert_starts(stage);
}

#[test]
fn with_a_session_that_was_guessed() {
    let mut stage = Stage::new();
    for session in ["0", "1", "4294967295"] {
        stage.guest.write("session", session);
        write_1_and_3(&mut stage);
        stage.assert_state("2");
    }
    let holdings = stage.rig.machine.holdings(xen_types::DomId::DOM0);
    assert_eq!(holdings, stage.honest_holdings);
    assert_starts(stage);
}

#[test]
fn while_connected() {
    let mut stage = Stage::new();
    stage.hostile_disk();
    write_1_and_3(&mut stage);
    // As if it had not seen 4 yet.
    stage.assert_state("4");
    stage.assert_honest_served();
    assert_starts(stage);
}

#[test]
fn while_connected_and_seen_in_between() {
    let mut stage = Stage::new();
    stage.hostile_disk();
    stage.guest.write("state", "1");
    stage.rig.settle();
    stage.assert_state("2");
    stage.log.line(LINE);
    let holdings = stage.rig.machine.holdings(xen_types::DomId::DOM0);
    assert_eq!(holdings, stage.honest_holdings);
    // The keys are those of the session before.
    stage.guest.write("state", "3");
    stage.rig.settle();
    stage.assert_state("2");
    assert_starts(stage);
}

#[test]
fn every_state_in_any_order() {
    let mut random = Random::seeded(11);
    let mut stage = Stage::new();
    stage.hostile_disk();
    for _ in 0..500 {
        let state = random.below(10).to_string();
        stage.guest.write("state", &state);
        if random.below(3) == 0 {
            stage.rig.settle();
        }
    }
    stage.assert_honest_served();
    stage.guest.drop_link();
    stage.guest.write("state", "6");
    stage.rig.settle();
    assert_starts(stage);
}
