//! The ring of binding section 4 under a model checker: every interleaving, and every value that
//! the C11 memory model lets a load return, up to a bound of preemptions.
//!
//! Two real [`MessageRing`]s share modelled words and really sleep on modelled events, so a lost
//! wake-up is a dead-lock, which loom reports. Each rule is then taken away in turn, by words that
//! lose a fence, a re-check or a store, and the model must fail.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xen-bus --release --test loom_ring`

#![cfg(loom)]

use std::cell::Cell;
use std::sync::Arc;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;
use xen_bus::layout::{Direction, RingLayout};
use xen_bus::ring::{Fence, MessageRing, RingState, RingWords, Role, SendError, Word};

/// Preemptions per execution. Every control below fails within this bound.
const PREEMPTIONS: usize = 3;

/// What the words of one side lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    Fence(Fence),
    /// The re-check for messages sees what was seen before.
    MessageRecheck,
    /// The re-check for space sees what was seen before.
    SpaceRecheck,
    /// Nobody is told that space is awaited.
    SpaceAt,
    /// Indexes are stored without release.
    Release,
}

/// Words that both sides see: four for each direction.
const WORDS: usize = 8;

/// The memory and the two events that both sides share. It is held by a plain `Arc`, because
/// loom's own cannot be dropped while a dead-lock unwinds.
struct Shared {
    words: [AtomicU32; WORDS],
    /// One number per slot: a frame carries its own number.
    slots: Vec<AtomicU32>,
    frontend: Notify,
    backend: Notify,
}

impl Shared {
    fn new(layout: &RingLayout, start: u32) -> Self {
        Self {
            words: std::array::from_fn(|_| AtomicU32::new(start)),
            slots: (0..2 * layout.slots()).map(|_| AtomicU32::new(0)).collect(),
            frontend: Notify::new(),
            backend: Notify::new(),
        }
    }
}

/// [`RingWords`] of one side.
struct LoomWords {
    shared: Arc<Shared>,
    layout: RingLayout,
    lost: Lost,
    /// What this side read last from each word.
    seen: [Cell<u32>; WORDS],
}

/// Where a word stands in [`Shared::words`]: two to each writer's line.
fn place(word: Word) -> usize {
    let offset = usize::try_from(word.offset()).unwrap();
    (offset / 64 - 1) * 2 + offset % 64 / 4
}

impl LoomWords {
    fn slot(&self, offset: u64) -> &AtomicU32 {
        let first = self.layout.slot_offset(Direction::ToDevice, 0);
        let slot = (offset - first) / u64::from(self.layout.stride());
        &self.shared.slots[usize::try_from(slot).unwrap()]
    }
}

impl RingWords for LoomWords {
    fn load(&self, word: Word) -> u32 {
        let order = match word {
            Word::Producer(_) | Word::Consumer(_) => Ordering::Acquire,
            Word::WakeAt(_) | Word::SpaceAt(_) => Ordering::Relaxed,
        };
        let value = self.shared.words[place(word)].load(order);
        self.seen[place(word)].set(value);
        value
    }

    fn recheck(&self, word: Word) -> u32 {
        match (self.lost, word) {
            (Lost::MessageRecheck, Word::Producer(_)) | (Lost::SpaceRecheck, Word::Consumer(_)) => {
                self.seen[place(word)].get()
            }
            _ => self.load(word),
        }
    }

    fn store(&self, word: Word, value: u32) {
        let order = match (word, self.lost) {
            (Word::SpaceAt(_), Lost::SpaceAt) => return,
            (Word::Producer(_) | Word::Consumer(_), Lost::Release) => Ordering::Relaxed,
            (Word::Producer(_) | Word::Consumer(_), _) => Ordering::Release,
            (Word::WakeAt(_) | Word::SpaceAt(_), _) => Ordering::Relaxed,
        };
        self.shared.words[place(word)].store(value, order);
    }

    fn fence(&self, here: Fence) {
        if self.lost != Lost::Fence(here) {
            fence(Ordering::SeqCst);
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        if let [n0, n1, n2, n3, _, _, size, _] = into {
            let number = self.slot(offset).load(Ordering::Relaxed);
            [*n0, *n1, *n2, *n3] = number.to_le_bytes();
            *size = 8;
        }
    }

    fn write(&self, offset: u64, frame: &[u8]) {
        let number = u32::from_le_bytes(frame[..4].try_into().unwrap());
        self.slot(offset).store(number, Ordering::Relaxed);
    }
}

/// What one side has to do before it ends.
#[derive(Clone, Copy)]
struct Task {
    role: Role,
    send: u32,
    receive: u32,
    lost: Lost,
}

/// Sends and receives everything, in the order in which a real loop does it.
fn run(task: Task, shared: &Arc<Shared>, layout: RingLayout, start: u32) {
    let words = LoomWords {
        shared: shared.clone(),
        layout,
        lost: task.lost,
        seen: std::array::from_fn(|_| Cell::new(start)),
    };
    let state = RingState {
        produced: start,
        consumed: start,
        standing: 0,
    };
    let mut ring = MessageRing::resumed(words, layout, task.role, state);
    let (own, peer) = match task.role {
        Role::Frontend => (&shared.frontend, &shared.backend),
        Role::Backend => (&shared.backend, &shared.frontend),
    };
    let (mut sent, mut received) = (0, 0);
    let mut buf = [0; 8];
    loop {
        while let Some(len) = ring.try_recv(&mut buf).unwrap() {
            assert_eq!(len, 8);
            let expected = start.wrapping_add(received).to_le_bytes();
            assert_eq!(buf[..4], expected, "garbage in a slot");
            received += 1;
        }
        if ring.consume() {
            peer.notify();
        }
        while sent < task.send {
            let mut frame = [0; 8];
            frame[..4].copy_from_slice(&start.wrapping_add(sent).to_le_bytes());
            match ring.try_send(&frame) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        if ring.flush() {
            peer.notify();
        }
        if sent == task.send && received == task.receive {
            return;
        }
        let sleep = ring.prepare_sleep(sent < task.send).unwrap();
        if sleep.notify {
            peer.notify();
        }
        if sleep.may_wait {
            own.wait();
        }
    }
}

/// Explores a ring of `slots` slots whose indexes start at `start`: `to_device` messages one way,
/// `to_driver` the other.
fn model(slots: u32, start: u32, to_device: u32, to_driver: u32, lost: [Lost; 2]) {
    let [lost_by_frontend, lost_by_backend] = lost;
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 20_000;
    builder.check(move || {
        let layout = RingLayout::with_slots(slots);
        let shared = Arc::new(Shared::new(&layout, start));
        let frontend = Task {
            role: Role::Frontend,
            send: to_device,
            receive: to_driver,
            lost: lost_by_frontend,
        };
        let backend = Task {
            role: Role::Backend,
            send: to_driver,
            receive: to_device,
            lost: lost_by_backend,
        };
        let of_frontend = shared.clone();
        let thread = thread::spawn(move || run(frontend, &of_frontend, layout, start));
        run(backend, &shared, layout, start);
        thread.join().unwrap();
    });
}

/// The first message after this index wraps to 0 on its successor.
const BEFORE_WRAP: u32 = u32::MAX - 1;

const NOTHING: [Lost; 2] = [Lost::Nothing, Lost::Nothing];

#[test]
fn one_slot_one_direction_across_the_wrap() {
    model(1, BEFORE_WRAP, 3, 0, NOTHING);
}

#[test]
fn two_slots_one_direction_across_the_wrap() {
    model(2, BEFORE_WRAP, 4, 0, NOTHING);
}

#[test]
fn one_slot_both_directions_on_one_event() {
    model(1, u32::MAX, 1, 2, NOTHING);
}

/// Each names what it takes away; loom must find the dead-lock or the garbage.
mod controls {
    use super::*;

    /// The frontend is the only producer, the backend the only consumer.
    fn one_way(lost_by_producer: Lost, lost_by_consumer: Lost) {
        model(1, BEFORE_WRAP, 3, 0, [lost_by_producer, lost_by_consumer]);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_the_fence_after_a_producer_index() {
        one_way(Lost::Fence(Fence::Produced), Lost::Nothing);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_the_fence_after_a_consumer_index() {
        one_way(Lost::Nothing, Lost::Fence(Fence::Consumed));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_the_fence_after_wake_at() {
        one_way(Lost::Nothing, Lost::Fence(Fence::Armed));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_the_fence_after_space_at() {
        one_way(Lost::Fence(Fence::Armed), Lost::Nothing);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_looking_again_for_messages() {
        one_way(Lost::Nothing, Lost::MessageRecheck);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_looking_again_for_space() {
        one_way(Lost::SpaceRecheck, Lost::Nothing);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn without_space_at() {
        one_way(Lost::SpaceAt, Lost::Nothing);
    }

    #[test]
    #[should_panic(expected = "garbage in a slot")]
    fn without_release() {
        one_way(Lost::Release, Lost::Nothing);
    }
}
