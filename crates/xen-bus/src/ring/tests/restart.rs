//! Binding section 9: a backend that is killed at any step takes the ring up again.

use super::*;

fn reattach(pair: &mut Pair, state: RingState) {
    let window = window(&pair.area, Access::Write);
    pair.backend = MessageRing::reattach(window, layout(), SESSION, state).unwrap();
}

#[test]
fn a_resumed_ring_goes_on_where_its_record_stands() {
    let mut pair = Pair::new();
    for number in 0..3 {
        pair.frontend.try_send(&frame(number, 8)).unwrap();
    }
    let _ = pair.frontend.flush();
    assert!(recv(&mut pair.backend).is_some());
    pair.backend.try_send(&frame(10, 8)).unwrap();
    let _ = pair.backend.flush();
    let state = pair.backend.state();

    reattach(&mut pair, state);
    assert_eq!(pair.backend.state(), state);
    assert_eq!(recv(&mut pair.backend), Some(frame(1, 8)));
    pair.backend.try_send(&frame(11, 8)).unwrap();
    let _ = pair.backend.flush();
    assert_eq!(recv(&mut pair.frontend), Some(frame(10, 8)));
    assert_eq!(recv(&mut pair.frontend), Some(frame(11, 8)));
}

#[test]
fn what_the_record_took_is_given_back_even_if_the_ring_did_not_say_so() {
    let mut pair = Pair::new();
    for number in 0..4 {
        pair.frontend.try_send(&frame(number, 8)).unwrap();
    }
    let _ = pair.frontend.flush();
    assert_eq!(pair.frontend.has_room(), Ok(false));
    let state = RingState {
        consumed: 1,
        ..RingState::default()
    };
    reattach(&mut pair, state);
    assert_eq!(pair.frontend.has_room(), Ok(true));
    assert_eq!(recv(&mut pair.backend), Some(frame(1, 8)));
}

#[test]
fn a_standing_answer_that_the_peer_has_taken_is_no_fault() {
    let mut pair = Pair::new();
    for number in 0..2 {
        pair.backend.try_send(&frame(number, 8)).unwrap();
    }
    let _ = pair.backend.flush();
    assert!(recv(&mut pair.frontend).is_some() && recv(&mut pair.frontend).is_some());
    let _ = pair.frontend.consume();
    // killed after publishing the second answer, before the record said so
    let state = RingState {
        produced: 1,
        consumed: 0,
        standing: 1,
    };
    reattach(&mut pair, state);
    assert_eq!(pair.backend.has_room(), Ok(true));
    pair.backend.try_send(&frame(1, 8)).unwrap();
    let _ = pair.backend.flush();
    assert_eq!(recv(&mut pair.frontend), None, "the peer has it already");
    for number in 2..6 {
        pair.backend.try_send(&frame(number, 8)).unwrap();
    }
    let _ = pair.backend.flush();
    for number in 2..6 {
        assert_eq!(recv(&mut pair.frontend), Some(frame(number, 8)));
    }
}

#[test]
fn what_stands_is_written_without_asking_the_peer_for_room() {
    let mut pair = Pair::new();
    for number in 0..4 {
        pair.backend.try_send(&frame(number, 8)).unwrap();
    }
    let _ = pair.backend.flush();
    let state = RingState {
        produced: 3,
        consumed: 0,
        standing: 1,
    };
    reattach(&mut pair, state);
    pair.poke(Word::Consumer(Direction::ToDriver), 0xdead_beef);
    pair.backend.try_send(&frame(3, 8)).unwrap();
    assert!(pair.backend.has_room().is_err());
}

#[test]
fn an_index_is_not_taken_back_while_answers_stand() {
    let mut pair = Pair::new();
    for number in 0..3 {
        pair.backend.try_send(&frame(number, 8)).unwrap();
    }
    let _ = pair.backend.flush();
    let state = RingState {
        produced: 0,
        consumed: 0,
        standing: 3,
    };
    reattach(&mut pair, state);
    for number in 0..3 {
        assert!(!pair.backend.flush());
        assert_eq!(
            pair.backend.prepare_sleep(false).map(|sleep| sleep.notify),
            Ok(false)
        );
        pair.backend.try_send(&frame(number, 8)).unwrap();
        // the peer sees three messages throughout
        assert_eq!(pair.frontend.note_event(), Ok(true));
    }
    assert!(pair.backend.flush());
    for number in 0..3 {
        assert_eq!(recv(&mut pair.frontend), Some(frame(number, 8)));
    }
    assert_eq!(recv(&mut pair.frontend), None);
}

#[test]
fn a_changed_header_is_found() {
    let pair = Pair::new();
    let window = window(&pair.area, Access::Write);
    let ring = MessageRing::reattach(window, layout(), Session(1), RingState::default());
    assert!(matches!(
        ring,
        Err(OpenError::Header {
            field: "session",
            ..
        })
    ));
}
