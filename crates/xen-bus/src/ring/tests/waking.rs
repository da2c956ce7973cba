//! Who is notified when.

use super::*;

#[test]
fn the_first_message_into_a_fresh_ring_notifies_and_the_second_does_not() {
    let mut pair = Pair::new();
    pair.frontend.try_send(&frame(1, 8)).unwrap();
    assert!(pair.frontend.flush());
    assert!(!pair.frontend.flush(), "nothing new");
    pair.frontend.try_send(&frame(2, 8)).unwrap();
    assert!(!pair.frontend.flush(), "the consumer is still awake");
}

#[test]
fn a_sleeping_consumer_is_woken_once_per_batch() {
    let mut pair = Pair::new();
    let sleep = pair.backend.prepare_sleep(false).unwrap();
    assert_eq!((sleep.notify, sleep.may_wait), (false, true));
    for number in 0..3 {
        pair.frontend.try_send(&frame(number, 8)).unwrap();
    }
    assert!(pair.frontend.flush());
    assert!(pair.backend.note_event().unwrap());
    let sleep = pair.backend.prepare_sleep(false).unwrap();
    assert!(!sleep.may_wait, "there are messages");
}

#[test]
fn a_full_ring_is_left_when_the_consumer_gives_slots_back() {
    let mut pair = Pair::new();
    for number in 0..4 {
        pair.frontend.try_send(&frame(number, 8)).unwrap();
    }
    assert_eq!(pair.frontend.try_send(&[0; 8]), Err(SendError::Full));
    let sleep = pair.frontend.prepare_sleep(true).unwrap();
    assert_eq!(
        (sleep.notify, sleep.may_wait),
        (true, true),
        "publishes first"
    );

    assert!(recv(&mut pair.backend).is_some());
    assert_eq!(
        pair.frontend.has_room(),
        Ok(false),
        "a slot taken is not yet given back"
    );
    assert!(pair.backend.consume(), "the producer waits for space");
    assert!(pair.frontend.note_event().unwrap());
    pair.frontend.try_send(&frame(4, 8)).unwrap();
    assert!(recv(&mut pair.backend).is_some());
    assert!(!pair.backend.consume(), "the producer waits no more");
}

#[test]
fn a_sleeper_that_wants_space_goes_on_if_there_is_some() {
    let mut pair = Pair::new();
    let sleep = pair.frontend.prepare_sleep(true).unwrap();
    assert!(!sleep.may_wait);
}

#[test]
fn going_to_sleep_gives_slots_back() {
    let mut pair = Pair::new();
    for number in 0..4 {
        pair.frontend.try_send(&frame(number, 8)).unwrap();
    }
    assert!(pair.frontend.prepare_sleep(true).unwrap().may_wait);
    while recv(&mut pair.backend).is_some() {}
    let sleep = pair.backend.prepare_sleep(false).unwrap();
    assert_eq!((sleep.notify, sleep.may_wait), (true, true));
    assert_eq!(pair.frontend.has_room(), Ok(true));
}

#[test]
fn an_event_without_work_is_counted() {
    let mut pair = Pair::new();
    assert!(!pair.backend.note_event().unwrap());
    pair.frontend.try_send(&frame(1, 8)).unwrap();
    let _ = pair.frontend.flush();
    assert!(pair.backend.note_event().unwrap());
    assert!(recv(&mut pair.backend).is_some());
    let _ = pair.backend.consume();
    assert_eq!(
        pair.backend.counters(),
        RingCounters {
            received: 1,
            sent: 0,
            publishes: 1,
            notifications: 1,
            spurious_wakes: 1,
        }
    );
    assert_eq!(
        pair.frontend.counters(),
        RingCounters {
            sent: 1,
            publishes: 1,
            notifications: 1,
            ..RingCounters::default()
        }
    );
}
