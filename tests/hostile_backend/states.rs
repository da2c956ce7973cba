//! A backend that goes away in each connection state (binding section 3). While it connects, the
//! user sees `bus 0: not connected after …, the backend in domain 0 is in state …`, then
//! `bus 0: the connection ended: the backend closed it`, or a request that was never answered.
//! When the frontend has gone, nothing of it is granted any more.

use std::time::Duration;

use frontend_shim::{Disk, Frontend, Operation};
use tests::{Holdings, Honest, LIMIT, RawBackend};

use crate::stage::{Stage, assert_says};

/// For what never comes.
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_backend_that_never_offers_anything() {
    let stage = Stage::new();
    let error = stage.play(
        |_, _| {},
        |mut frontend| frontend.connect(SHORT).unwrap_err(),
    );
    assert_says(
        &error.to_string(),
        &[
            "bus 0",
            "domain 0",
            "state 1",
            "start `vmsg --platform hosted:",
            ",0 backend`",
        ],
    );
}

#[test]
fn a_backend_that_offers_and_does_not_go_on() {
    let stage = Stage::new();
    let error = stage.play(
        |backend, _| backend.offer(&[]),
        |mut frontend| frontend.connect(SHORT).unwrap_err(),
    );
    assert_says(
        &error.to_string(),
        &["bus 0", "domain 0", "state 2", "does not go on"],
    );
    assert_nothing_granted(&stage);
}

#[test]
fn a_backend_that_is_gone_when_the_keys_are_there() {
    for state in ["1", "5", "6", "7", "garbage", ""] {
        let stage = Stage::new();
        let error = stage.play(
            |backend, _| {
                backend.offer(&[]);
                backend.wait_for("3");
                backend.write_state(state);
            },
            |mut frontend| frontend.connect(SHORT).unwrap_err(),
        );
        assert_says(&error.to_string(), &["bus 0", "domain 0", "not connected"]);
        assert_nothing_granted(&stage);
    }
}

#[test]
fn a_backend_that_closes_while_messages_flow() {
    for state in ["1", "2", "3", "5", "6", "garbage"] {
        let stage = Stage::new();
        let error = stage.play(
            |backend, _| {
                connect(backend);
                backend.write_state(state);
            },
            fails,
        );
        assert_says(&error, &["bus 0", "connection ended"]);
        assert_nothing_granted(&stage);
    }
}

#[test]
fn a_backend_that_comes_back_with_another_session() {
    let stage = Stage::new();
    let error = stage.play(
        |backend, _| {
            connect(backend);
            backend.offer(&[("session", b"78")]);
        },
        fails,
    );
    assert_says(&error, &["bus 0", "connection ended"]);
}

#[test]
fn a_backend_whose_directory_is_removed() {
    let stage = Stage::new();
    let bus = stage.bus;
    let error = stage.play(
        move |backend, _| {
            connect(backend);
            let directory = bus.back("state").replace("/state", "");
            backend.toolstack.remove(&directory);
        },
        fails,
    );
    assert_says(&error, &["bus 0", "connection ended"]);
    assert_nothing_granted(&stage);
}

#[test]
fn a_backend_that_dies_without_a_word() {
    let stage = Stage::new();
    let error = stage.play(
        |backend, _| {
            connect(backend);
            backend.drop_link();
        },
        fails,
    );
    assert_says(&error, &["device 0", "no answer"]);
    assert_nothing_granted(&stage);
}

/// Connects, and serves until the frontend has begun with its device.
fn connect(backend: &mut RawBackend) {
    backend.offer(&[]);
    backend.connect();
    backend.serve(&mut Honest, |backend| backend.received() > 3);
}

/// Why nothing can be done any more.
#[track_caller]
fn fails(mut frontend: Frontend) -> String {
    frontend.connect(LIMIT).unwrap();
    let read = Operation::Flush;
    let error = Disk::open(&mut frontend, 0)
        .and_then(|mut disk| disk.run(&mut frontend, read))
        .unwrap_err();
    error.to_string()
}

/// A frontend that has gone leaves nothing.
#[track_caller]
fn assert_nothing_granted(stage: &Stage) {
    let holdings = stage.machine.holdings(stage.bus.guest);
    assert_eq!(holdings, Holdings::default());
}
