//! A message ring whose other side lies (binding section 4). The user sees
//! `bus 0: the connection ended: the backend broke the message ring: to-driver producer index is …`.

use std::time::{Duration, Instant};

use frontend_shim::{Frontend, Limits};
use tests::{Honest, RawBackend};

use crate::stage::{Stage, assert_says};

/// Words of the ring that the backend writes (section 4).
const CONSUMER: u64 = 128;
const PRODUCER: u64 = 192;

#[test]
fn an_index_that_is_impossible_ends_the_connection() {
    for (word, values, name) in [
        (PRODUCER, [0x8000_0000, u32::MAX, 0x0000_1000], "producer"),
        (CONSUMER, [0x8000_0000, u32::MAX, 0x0000_1000], "consumer"),
    ] {
        for value in values {
            let stage = Stage::new();
            let error = stage.play(
                |backend, done| {
                    backend.offer(&[]);
                    backend.connect();
                    backend.serve(&mut Honest, |backend| backend.received() > 0);
                    backend.scribble(word, value);
                    while !done() {
                        backend.notify();
                    }
                },
                |mut frontend| {
                    // Nothing is answered any more: each question costs this.
                    let answer = Duration::from_millis(20);
                    let limits = frontend.limits();
                    frontend.set_limits(Limits { answer, ..limits });
                    frontend.connect(tests::LIMIT).unwrap();
                    ask_until_it_fails(&mut frontend)
                },
            );
            assert_says(&error, &["bus 0", "message ring", name]);
        }
    }
}

#[test]
fn a_consumer_index_that_stays_is_a_backend_that_does_not_answer() {
    let stage = Stage::new();
    let error = stage.play(
        |backend, done| {
            backend.offer(&[]);
            backend.connect();
            while !done() {
                backend.notify();
                std::thread::yield_now();
            }
        },
        |mut frontend| {
            frontend.connect(tests::LIMIT).unwrap();
            frontend.devices().unwrap_err().to_string()
        },
    );
    assert_says(&error, &["bus 0", "domain 0", "no answer", "GET_DEVICES"]);
}

#[test]
fn a_storm_of_events_without_work_is_limited() {
    let stage = Stage::new();
    let (wakes, took) = stage.play(storm, |mut frontend| {
        frontend.connect(tests::LIMIT).unwrap();
        let begin = Instant::now();
        let end = begin + Duration::from_millis(300);
        while frontend.wait(Some(end)).unwrap() {
            frontend.pump().unwrap();
        }
        let wakes = frontend.link().unwrap().counters().spurious_wakes;
        (wakes, begin.elapsed())
    });
    // 64 are free, then one a millisecond.
    let most = 64 + 2 + u64::try_from(took.as_millis()).unwrap();
    assert!(wakes > 64, "no storm: {wakes} wakes in {took:?}");
    assert!(wakes <= most, "{wakes} wakes in {took:?}");
}

/// Notifies without a reason until the guest has ended.
fn storm(backend: &mut RawBackend, done: &dyn Fn() -> bool) {
    backend.offer(&[]);
    backend.connect();
    while !done() {
        backend.notify();
    }
}

/// Why the connection ended.
fn ask_until_it_fails(frontend: &mut Frontend) -> String {
    // A consumer index is looked at when the slots known to be free are used up.
    for _ in 0..1000 {
        if let Err(error) = frontend.devices() {
            let text = error.to_string();
            if text.contains("connection ended") {
                return text;
            }
        }
    }
    panic!("it never ended")
}
