//! The order of accesses, as binding section 4 spells it out.

use std::cell::{Cell, RefCell};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Load(Word),
    Recheck(Word),
    Store(Word, u32),
    Fence(Fence),
    Read(u64, usize),
    Write(u64),
}

/// Words of the backend's side that write down what is done to them.
struct Recorder {
    ops: RefCell<Vec<Op>>,
    /// What a load of the peer's to-device producer and to-driver consumer index gives.
    produced: Cell<u32>,
    consumed: Cell<u32>,
    /// What the re-check of the same gives.
    rechecked: Cell<(u32, u32)>,
}

impl Recorder {
    fn peer(&self, word: Word, produced: u32, consumed: u32) -> u32 {
        match word {
            Word::Producer(Direction::ToDevice) => produced,
            Word::Consumer(Direction::ToDriver) => consumed,
            _ => 0,
        }
    }
}

impl RingWords for &Recorder {
    fn load(&self, word: Word) -> u32 {
        self.ops.borrow_mut().push(Op::Load(word));
        self.peer(word, self.produced.get(), self.consumed.get())
    }
    fn recheck(&self, word: Word) -> u32 {
        self.ops.borrow_mut().push(Op::Recheck(word));
        let (produced, consumed) = self.rechecked.get();
        self.peer(word, produced, consumed)
    }
    fn store(&self, word: Word, value: u32) {
        self.ops.borrow_mut().push(Op::Store(word, value));
    }
    fn fence(&self, fence: Fence) {
        self.ops.borrow_mut().push(Op::Fence(fence));
    }
    fn read(&self, offset: u64, into: &mut [u8]) {
        self.ops.borrow_mut().push(Op::Read(offset, into.len()));
        into.fill(0);
        if let [.., low, _] = into {
            *low = 100;
        }
    }
    fn write(&self, offset: u64, _: &[u8]) {
        self.ops.borrow_mut().push(Op::Write(offset));
    }
}

const PRODUCER: Word = Word::Producer(Direction::ToDriver);
const SPACE_AT: Word = Word::SpaceAt(Direction::ToDevice);
const WAKE_AT: Word = Word::WakeAt(Direction::ToDriver);
const CONSUMER: Word = Word::Consumer(Direction::ToDevice);

fn backend(recorder: &Recorder) -> MessageRing<&Recorder> {
    MessageRing::fresh(recorder, layout(), Role::Backend)
}

fn recorder() -> Recorder {
    Recorder {
        ops: RefCell::new(Vec::new()),
        produced: Cell::new(0),
        consumed: Cell::new(0),
        rechecked: Cell::new((0, 0)),
    }
}

#[test]
fn flush_stores_fences_and_looks_at_wake_at() {
    let recorder = recorder();
    let mut ring = backend(&recorder);
    ring.try_send(&[0; 8]).unwrap();
    ring.try_send(&[0; 8]).unwrap();
    assert!(ring.flush());
    let slots = layout().slot_offset(Direction::ToDriver, 0);
    assert_eq!(
        recorder.ops.take(),
        [
            Op::Write(slots),
            Op::Write(slots + 320),
            Op::Store(PRODUCER, 2),
            Op::Fence(Fence::Produced),
            Op::Load(WAKE_AT),
        ]
    );
    assert!(!ring.flush());
    assert_eq!(recorder.ops.take(), []);
}

#[test]
fn a_slot_is_read_once_and_before_it_is_given_back() {
    let recorder = recorder();
    recorder.produced.set(1);
    let mut ring = backend(&recorder);
    assert_eq!(ring.try_recv(&mut [0; 264]), Ok(Some(100)));
    assert!(ring.consume());
    assert_eq!(
        recorder.ops.take(),
        [
            Op::Load(Word::Producer(Direction::ToDevice)),
            Op::Read(320, 8),
            Op::Read(328, 92),
            Op::Store(CONSUMER, 1),
            Op::Fence(Fence::Consumed),
            Op::Load(SPACE_AT),
        ]
    );
}

/// What a side does that has one message taken, four sent and a fifth to send.
fn prepare_sleep(recorder: &Recorder) -> (Sleep, Vec<Op>) {
    recorder.produced.set(1);
    let mut ring = backend(recorder);
    ring.try_recv(&mut [0; 264]).unwrap();
    for _ in 0..4 {
        ring.try_send(&[0; 8]).unwrap();
    }
    recorder.ops.take();
    let sleep = ring.prepare_sleep(true).unwrap();
    (sleep, recorder.ops.take())
}

#[test]
fn before_sleep_all_is_published_then_armed_then_fenced_then_looked_at_again() {
    let recorder = recorder();
    recorder.rechecked.set((1, 0));
    let (sleep, ops) = prepare_sleep(&recorder);
    assert!(sleep.notify && sleep.may_wait);
    assert_eq!(
        ops,
        [
            Op::Store(CONSUMER, 1),
            Op::Fence(Fence::Consumed),
            Op::Load(SPACE_AT),
            Op::Store(PRODUCER, 4),
            Op::Fence(Fence::Produced),
            Op::Load(WAKE_AT),
            Op::Load(Word::Producer(Direction::ToDevice)),
            Op::Load(Word::Consumer(Direction::ToDriver)),
            Op::Store(Word::WakeAt(Direction::ToDevice), 1),
            Op::Store(Word::SpaceAt(Direction::ToDriver), 0),
            Op::Fence(Fence::Armed),
            Op::Recheck(Word::Producer(Direction::ToDevice)),
            Op::Recheck(Word::Consumer(Direction::ToDriver)),
        ]
    );
}

#[test]
fn whatever_changed_before_the_recheck_keeps_the_side_awake() {
    for rechecked in [(2, 0), (1, 1), (2, 1)] {
        let recorder = recorder();
        recorder.rechecked.set(rechecked);
        let (sleep, _) = prepare_sleep(&recorder);
        assert!(sleep.notify && !sleep.may_wait, "{rechecked:?}");
    }
}

#[test]
fn a_side_with_nothing_to_send_does_not_ask_for_space() {
    let recorder = recorder();
    let sleep = backend(&recorder).prepare_sleep(false).unwrap();
    assert!(!sleep.notify && sleep.may_wait);
    assert_eq!(
        recorder.ops.take(),
        [
            Op::Load(Word::Producer(Direction::ToDevice)),
            Op::Store(Word::WakeAt(Direction::ToDevice), 0),
            Op::Fence(Fence::Armed),
            Op::Recheck(Word::Producer(Direction::ToDevice)),
        ]
    );
}
