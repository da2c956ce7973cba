//! The shared memory of a ring as its logic sees it: eight words, four kinds of access and a fence
//! (binding section 4).
//!
//! The trait exists so that one and the same logic runs over guest memory and under a model
//! checker, which may lose a fence or a re-check to show that each is needed.

use crate::layout::Direction;

/// A word that both sides see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// How many messages the producer has published.
    Producer(Direction),
    /// The consumer index at which the producer, finding the ring full, waits for space.
    SpaceAt(Direction),
    /// How many messages the consumer has taken.
    Consumer(Direction),
    /// The producer index at which the consumer sleeps.
    WakeAt(Direction),
}

impl Word {
    /// Byte offset in the ring.
    #[must_use]
    pub const fn offset(self) -> u64 {
        match self {
            Word::Producer(Direction::ToDevice) => 64,
            Word::SpaceAt(Direction::ToDevice) => 68,
            Word::Consumer(Direction::ToDevice) => 128,
            Word::WakeAt(Direction::ToDevice) => 132,
            Word::Producer(Direction::ToDriver) => 192,
            Word::SpaceAt(Direction::ToDriver) => 196,
            Word::Consumer(Direction::ToDriver) => 256,
            Word::WakeAt(Direction::ToDriver) => 260,
        }
    }
}

/// Where a full fence stands, and what it keeps in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// Between publishing a producer index and reading wake-at.
    Produced,
    /// Between publishing a consumer index and reading space-at.
    Consumed,
    /// Between arming wake-at and space-at and reading the peer's indexes again.
    Armed,
}

/// Access to the memory of one ring. Implementations check bounds when they are made.
pub trait RingWords {
    /// Reads a word: an index with acquire ordering, wake-at and space-at relaxed.
    fn load(&self, word: Word) -> u32;

    /// Reads an index again after [`Fence::Armed`], as [`RingWords::load`] does.
    fn recheck(&self, word: Word) -> u32 {
        self.load(word)
    }

    /// Writes a word: an index with release ordering, wake-at and space-at relaxed.
    fn store(&self, word: Word, value: u32);

    /// A sequentially consistent fence.
    fn fence(&self, fence: Fence);

    /// Copies bytes of a slot out; `offset` counts from the start of the ring.
    fn read(&self, offset: u64, into: &mut [u8]);

    /// Copies a frame into a slot; `offset` counts from the start of the ring.
    fn write(&self, offset: u64, frame: &[u8]);
}
