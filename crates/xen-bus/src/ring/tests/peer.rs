//! Indexes that a peer cannot legally have (binding section 4).

use super::*;

const TO_DEVICE: Direction = Direction::ToDevice;

#[test]
fn a_producer_index_must_be_possible() {
    for got in [SLOTS + 1, u32::MAX, 0x8000_0000] {
        let mut pair = Pair::new();
        pair.poke(Word::Producer(TO_DEVICE), got);
        let fault = RingFault::ProducerIndex {
            direction: TO_DEVICE,
            got,
            low: 0,
            high: SLOTS,
        };
        assert_eq!(pair.backend.try_recv(&mut [0; 264]), Err(fault));
        assert_eq!(pair.backend.prepare_sleep(false), Err(fault));
        assert_eq!(pair.backend.note_event(), Err(fault));
    }
}

#[test]
fn a_producer_index_never_goes_back() {
    let mut pair = Pair::new();
    pair.poke(Word::Producer(TO_DEVICE), 2);
    assert!(recv(&mut pair.backend).is_some() && recv(&mut pair.backend).is_some());
    pair.poke(Word::Producer(TO_DEVICE), 1);
    let fault = pair.backend.try_recv(&mut [0; 264]).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "to-device producer index is 0x1, 0x2 to 0x4 is possible"
    );
}

#[test]
fn slots_that_were_not_given_back_are_not_free() {
    let mut pair = Pair::new();
    pair.poke(Word::Producer(TO_DEVICE), SLOTS);
    while recv(&mut pair.backend).is_some() {}
    pair.poke(Word::Producer(TO_DEVICE), SLOTS + 1);
    assert!(pair.backend.try_recv(&mut [0; 264]).is_err());
    let _ = pair.backend.consume();
    assert!(recv(&mut pair.backend).is_some());
}

#[test]
fn a_consumer_index_must_be_possible() {
    for got in [SLOTS + 1, u32::MAX, 0x8000_0000] {
        let mut pair = Pair::new();
        for number in 0..4 {
            pair.frontend.try_send(&frame(number, 8)).unwrap();
        }
        let _ = pair.frontend.flush();
        pair.poke(Word::Consumer(TO_DEVICE), got);
        let fault = RingFault::ConsumerIndex {
            direction: TO_DEVICE,
            got,
            low: 0,
            high: SLOTS,
        };
        assert_eq!(
            pair.frontend.try_send(&[0; 8]),
            Err(SendError::Fault(fault))
        );
        assert_eq!(pair.frontend.prepare_sleep(true), Err(fault));
    }
}

#[test]
fn messages_that_were_not_published_cannot_be_taken() {
    let mut pair = Pair::new();
    for number in 0..4 {
        pair.frontend.try_send(&frame(number, 8)).unwrap();
    }
    pair.poke(Word::Consumer(TO_DEVICE), 1);
    assert_eq!(
        pair.frontend.has_room(),
        Err(RingFault::ConsumerIndex {
            direction: TO_DEVICE,
            got: 1,
            low: 0,
            high: 0
        })
    );
}

#[test]
fn own_indexes_are_not_read_back() {
    let mut pair = Pair::new();
    for word in [Word::Producer, Word::Consumer, Word::WakeAt, Word::SpaceAt] {
        pair.poke(word(Direction::ToDriver), 0xdead_beef);
    }
    pair.poke(Word::Consumer(TO_DEVICE), 0xdead_beef);
    pair.frontend.try_send(&frame(9, 8)).unwrap();
    let _ = pair.frontend.flush();
    assert_eq!(recv(&mut pair.backend), Some(frame(9, 8)));
    pair.poke(Word::Consumer(Direction::ToDriver), 0);
    pair.backend.try_send(&frame(8, 8)).unwrap();
    let _ = pair.backend.flush();
    assert_eq!(recv(&mut pair.frontend), Some(frame(8, 8)));
}
