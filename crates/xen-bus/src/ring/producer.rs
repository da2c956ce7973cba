//! The producer's half of one direction: its index, what it knows of the consumer's, and the two
//! rules of binding section 4 that are its: the wake-at check and waiting for space.

use super::RingFault;
use super::need::need;
use super::words::{Fence, RingWords, Word};
use crate::layout::{Direction, RingLayout, Slots};

/// Private state of a producer. Own indexes are never read back from the ring.
#[derive(Clone, Debug)]
pub(super) struct Producer {
    direction: Direction,
    slots: Slots,
    /// Number of the next message.
    index: u32,
    /// `index` at the previous wake-at check.
    checked: u32,
    /// The highest producer index that the consumer may have seen. Ahead of `index` only while
    /// messages that stood at a restart are being written again.
    visible: u32,
    /// The consumer's index as last seen.
    consumer: u32,
}

impl Producer {
    /// The producer of a ring in which nothing was ever sent.
    pub(super) fn fresh(direction: Direction, layout: &RingLayout) -> Self {
        Self {
            direction,
            slots: layout.slots_of(direction),
            index: 0,
            checked: 0,
            visible: 0,
            consumer: 0,
        }
    }

    /// A producer after a restart: its next message is number `index`, and the first `standing`
    /// messages from there may have been published and taken already.
    pub(super) fn resumed(
        direction: Direction,
        layout: &RingLayout,
        index: u32,
        standing: u32,
    ) -> Self {
        let visible = index.wrapping_add(standing);
        Self {
            direction,
            slots: layout.slots_of(direction),
            index,
            checked: index,
            visible,
            // there was room for all that stands, so the consumer is not further behind than this
            consumer: visible.wrapping_sub(layout.slots()),
        }
    }

    /// Number of the next message.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Whether a message can be written. Looks at the consumer's index only if the ring is full
    /// by what is known of it.
    pub(super) fn has_room(&mut self, words: &impl RingWords) -> Result<bool, RingFault> {
        if self.is_full() {
            let seen = words.load(Word::Consumer(self.direction));
            self.see(seen)?;
        }
        Ok(!self.is_full())
    }

    /// Writes a frame into the next slot, for which [`Producer::has_room`] has said yes.
    pub(super) fn push(&mut self, words: &impl RingWords, frame: &[u8]) {
        words.write(self.slots.offset(self.index), frame);
        self.index = self.index.wrapping_add(1);
    }

    /// Publishes what was written; whether the consumer must be notified. `None`: there was
    /// nothing new.
    pub(super) fn publish(&mut self, words: &impl RingWords) -> Option<bool> {
        // an index that the consumer has seen is never taken back
        let owes = self.visible.wrapping_sub(self.index);
        if self.index == self.checked || (1..=self.slots.count()).contains(&owes) {
            return None;
        }
        words.store(Word::Producer(self.direction), self.index);
        words.fence(Fence::Produced);
        let at = words.load(Word::WakeAt(self.direction));
        let notify = need(self.index, self.checked, at);
        self.checked = self.index;
        self.visible = self.index;
        Some(notify)
    }

    /// Asks to be notified when the consumer's index moves on from what was last seen.
    pub(super) fn arm(&self, words: &impl RingWords) {
        words.store(Word::SpaceAt(self.direction), self.consumer);
    }

    /// After [`Producer::arm`] and a fence: whether the consumer's index has moved, so that a
    /// message can be written.
    pub(super) fn recheck(&mut self, words: &impl RingWords) -> Result<bool, RingFault> {
        self.see(words.recheck(Word::Consumer(self.direction)))?;
        Ok(!self.is_full())
    }

    fn is_full(&self) -> bool {
        self.index.wrapping_sub(self.consumer) == self.slots.count()
    }

    /// Takes over the consumer's index. It never goes back, and never passes what was published.
    fn see(&mut self, index: u32) -> Result<(), RingFault> {
        let (low, high) = (self.consumer, self.visible);
        if index.wrapping_sub(low) > high.wrapping_sub(low) {
            return Err(RingFault::ConsumerIndex {
                direction: self.direction,
                got: index,
                low,
                high,
            });
        }
        self.consumer = index;
        Ok(())
    }
}
