//! The barriers of VIRTIO 1.4, 2.7.13 and 2.7.14, under a model checker: every interleaving,
//! and every value that the C11 memory model lets a load return, up to a bound of preemptions.
//!
//! The real [`DriverQueue`] and [`DeviceQueue`] share modelled words and really sleep on modelled
//! events, so a lost wake-up is a dead-lock, which loom reports. Then each barrier is taken away in
//! turn, and the model must fail.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p virtqueue --release --lib`

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test, in the place of a module"
)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use guest_memory::{Access, Area, FlatSpace, LeasedRange, RangeError, ReadWrite, Right};
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use loom::thread;

use crate::ring::{DeviceRings, Rings};
use crate::{Chain, DeviceQueue, DriverQueue, RingFeatures, Segment};

/// Preemptions per execution. Every control below fails within this bound.
const PREEMPTIONS: usize = 3;

/// As the real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Kick,
    DeviceRearm,
    Signal,
    DriverRearm,
}

/// The barrier that a model does without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    Fence(Step),
    /// Nothing is stored with release.
    Release,
    /// Nothing is loaded with acquire.
    Acquire,
}

std::thread_local! {
    /// loom runs all threads of a model on the thread of the test.
    static LOST: Cell<Lost> = const { Cell::new(Lost::Nothing) };
}

/// As the real one, unless it is the one that is lost.
pub(crate) fn fence(step: Step) {
    if LOST.get() != Lost::Fence(step) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// A word as loom models it.
pub(crate) trait Modelled: Copy {
    type Atomic: std::fmt::Debug;
    fn zero() -> Self::Atomic;
    fn load(atomic: &Self::Atomic) -> Self;
    fn store(atomic: &Self::Atomic, value: Self);
}

macro_rules! modelled {
    ($word:ty, $atomic:ty) => {
        impl Modelled for $word {
            type Atomic = $atomic;
            fn zero() -> $atomic {
                <$atomic>::new(0)
            }
            fn load(atomic: &$atomic) -> Self {
                atomic.load(Ordering::Relaxed)
            }
            fn store(atomic: &$atomic, value: Self) {
                atomic.store(value, Ordering::Relaxed);
            }
        }
    };
}

modelled!(u16, AtomicU16);
modelled!(u32, AtomicU32);
modelled!(u64, AtomicU64);

/// In place of the real one: the same fences beside the same relaxed accesses.
#[derive(Debug)]
pub(crate) struct LeasedArray<W: Modelled, const N: usize, R> {
    words: Arc<Vec<[W::Atomic; N]>>,
    right: PhantomData<R>,
}

impl<W: Modelled, const N: usize, R: Right> LeasedArray<W, N, R> {
    /// Modelled words instead of those of the window.
    pub(crate) fn new(_: &LeasedRange, _: u64, order: u32) -> Result<Self, RangeError> {
        Ok(Self {
            words: Arc::new(
                (0..1 << order)
                    .map(|_| std::array::from_fn(|_| W::zero()))
                    .collect(),
            ),
            right: PhantomData,
        })
    }

    /// The same words with another right.
    fn share<Q>(&self) -> LeasedArray<W, N, Q> {
        LeasedArray {
            words: self.words.clone(),
            right: PhantomData,
        }
    }

    pub(crate) fn last(&self) -> usize {
        self.words.len() - 1
    }

    pub(crate) fn get(&self, index: usize, order: Ordering) -> Option<[W; N]> {
        (index < self.words.len()).then(|| self.load(index, order))
    }

    pub(crate) fn load(&self, index: usize, order: Ordering) -> [W; N] {
        let element = &self.words[index % self.words.len()];
        let value = std::array::from_fn(|word| W::load(&element[word]));
        if order != Ordering::Relaxed && LOST.get() != Lost::Acquire {
            loom::sync::atomic::fence(order);
        }
        value
    }
}

impl<W: Modelled, const N: usize> LeasedArray<W, N, ReadWrite> {
    pub(crate) fn store(&self, index: usize, value: [W; N], order: Ordering) {
        if order != Ordering::Relaxed && LOST.get() != Lost::Release {
            loom::sync::atomic::fence(order);
        }
        for (word, value) in self.words[index % self.words.len()].iter().zip(value) {
            W::store(word, value);
        }
    }
}

impl Rings<ReadWrite> {
    /// A cleared ring of `size`.
    fn modelled(window: &LeasedRange, size: u16) -> Self {
        let order = size.trailing_zeros();
        Self {
            desc: LeasedArray::new(window, 0, order).unwrap(),
            avail_head: LeasedArray::new(window, 0, 1).unwrap(),
            avail_slots: LeasedArray::new(window, 0, order).unwrap(),
            used_event: LeasedArray::new(window, 0, 0).unwrap(),
            used_head: LeasedArray::new(window, 0, 1).unwrap(),
            used_slots: LeasedArray::new(window, 0, order).unwrap(),
            avail_event: LeasedArray::new(window, 0, 0).unwrap(),
        }
    }

    /// The device's view of the same words.
    fn share(&self) -> DeviceRings {
        Rings {
            desc: self.desc.share(),
            avail_head: self.avail_head.share(),
            avail_slots: self.avail_slots.share(),
            used_event: self.used_event.share(),
            used_head: self.used_head.share(),
            used_slots: self.used_slots.share(),
            avail_event: self.avail_event.share(),
        }
    }
}

/// The two event channels.
struct Bells {
    kick: Notify,
    signal: Notify,
}

/// Request `number` has this address and this many bytes.
fn request(number: u32) -> Segment {
    Segment {
        addr: 0x1000 + u64::from(number),
        len: 1 + number,
    }
}

fn serve(mut queue: DeviceQueue, space: &FlatSpace, bells: &Bells, requests: u32) {
    let mut chain = Chain::new();
    let mut served = 0;
    while served < requests {
        while queue.pop(space, &mut chain).unwrap() {
            assert_eq!(chain.writable(), [request(served)], "garbage");
            queue.push_used(chain.head(), 1 + served).unwrap();
            served += 1;
        }
        if queue.publish() {
            bells.signal.notify();
        }
        if served < requests && !queue.rearm() {
            bells.kick.wait();
            queue.disarm();
        }
    }
}

fn drive(mut queue: DriverQueue, bells: &Bells, requests: u32) {
    let (mut sent, mut done) = (0, 0);
    while done < requests {
        while sent < requests && queue.add(&[], &[request(sent)]).is_ok() {
            sent += 1;
        }
        if queue.publish() {
            bells.kick.notify();
        }
        let before = done;
        while let Some(used) = queue.pop_used().unwrap() {
            assert_eq!(used.len, 1 + done, "garbage");
            done += 1;
        }
        if done == before && !queue.rearm() {
            bells.signal.wait();
            queue.disarm();
        }
    }
}

/// Explores `requests` requests through a ring of `size`.
fn model(size: u16, requests: u32, event_idx: bool, lost: Lost) {
    LOST.set(lost);
    let features = RingFeatures {
        indirect: false,
        event_idx,
    };
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 20_000;
    builder.check(move || {
        let area = Area::anonymous(4096).unwrap();
        let space = FlatSpace::new(0, &area);
        let window = area.lease().window(0, 0, Access::Read).unwrap();
        let rings = Rings::modelled(&window, size);
        let device = DeviceQueue::over(rings.share(), size, features);
        let driver = DriverQueue::over(rings, size, features);
        // A plain Arc: loom's own cannot be dropped while a dead-lock unwinds.
        let bells = Arc::new(Bells {
            kick: Notify::new(),
            signal: Notify::new(),
        });
        let of_device = bells.clone();
        let thread = thread::spawn(move || serve(device, &space, &of_device, requests));
        drive(driver, &bells, requests);
        thread.join().unwrap();
    });
}

#[test]
fn no_wakeup_is_lost_by_flags() {
    model(1, 2, false, Lost::Nothing);
}

#[test]
fn no_wakeup_is_lost_with_event_idx() {
    model(1, 3, true, Lost::Nothing);
}

#[test]
fn no_wakeup_is_lost_in_a_ring_of_two() {
    model(2, 3, true, Lost::Nothing);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_of_step_2() {
    model(1, 3, true, Lost::Fence(Step::Kick));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_of_step_4() {
    model(1, 3, true, Lost::Fence(Step::DeviceRearm));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_of_step_6() {
    model(1, 3, true, Lost::Fence(Step::Signal));
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_fence_of_step_8() {
    model(1, 3, true, Lost::Fence(Step::DriverRearm));
}

#[test]
#[should_panic(expected = "garbage")]
fn without_release() {
    model(1, 3, true, Lost::Release);
}

#[test]
#[should_panic(expected = "garbage")]
fn without_acquire() {
    model(1, 3, true, Lost::Acquire);
}
