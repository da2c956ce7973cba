//! The consumer's half of one direction: its index, what it knows of the producer's, and the two
//! rules of binding section 4 that are its: the space-at check and going to sleep.

use super::RingFault;
use super::need::need;
use super::words::{Fence, RingWords, Word};
use crate::layout::{Direction, RingLayout, Slots};

/// Private state of a consumer. Own indexes are never read back from the ring.
#[derive(Clone, Debug)]
pub(super) struct Consumer {
    direction: Direction,
    slots: Slots,
    /// Number of the next message.
    index: u32,
    /// `index` when it was last published and space-at was checked.
    published: u32,
    /// The producer's index as last seen.
    producer: u32,
}

impl Consumer {
    /// A consumer whose next message is number `index`.
    pub(super) fn new(direction: Direction, layout: &RingLayout, index: u32) -> Self {
        Self {
            direction,
            slots: layout.slots_of(direction),
            index,
            published: index,
            producer: index,
        }
    }

    /// Number of the next message.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Whether a message can be taken. Looks at the producer's index only if all that is known of
    /// was taken.
    pub(super) fn has_message(&mut self, words: &impl RingWords) -> Result<bool, RingFault> {
        if self.is_empty() {
            let seen = words.load(Word::Producer(self.direction));
            self.see(seen)?;
        }
        Ok(!self.is_empty())
    }

    /// Offset of the slot with the next message, for which [`Consumer::has_message`] has said yes.
    pub(super) fn slot(&self) -> u64 {
        self.slots.offset(self.index)
    }

    /// The next message was copied out.
    pub(super) fn advance(&mut self) {
        self.index = self.index.wrapping_add(1);
    }

    /// Gives the slots of taken messages back; whether the producer must be notified. `None`:
    /// nothing was taken.
    pub(super) fn publish(&mut self, words: &impl RingWords) -> Option<bool> {
        if self.index == self.published {
            return None;
        }
        words.store(Word::Consumer(self.direction), self.index);
        words.fence(Fence::Consumed);
        let at = words.load(Word::SpaceAt(self.direction));
        let notify = need(self.index, self.published, at);
        self.published = self.index;
        Some(notify)
    }

    /// Asks to be notified when the producer's index moves on from the messages taken.
    pub(super) fn arm(&self, words: &impl RingWords) {
        words.store(Word::WakeAt(self.direction), self.index);
    }

    /// After [`Consumer::arm`] and a fence: whether there is a message.
    pub(super) fn recheck(&mut self, words: &impl RingWords) -> Result<bool, RingFault> {
        self.see(words.recheck(Word::Producer(self.direction)))?;
        Ok(!self.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.producer == self.index
    }

    /// Takes over the producer's index. It never goes back, and never passes the slots that were
    /// given back.
    fn see(&mut self, index: u32) -> Result<(), RingFault> {
        let (low, high) = (
            self.producer,
            self.published.wrapping_add(self.slots.count()),
        );
        if index.wrapping_sub(low) > high.wrapping_sub(low) {
            return Err(RingFault::ProducerIndex {
                direction: self.direction,
                got: index,
                low,
                high,
            });
        }
        self.producer = index;
        Ok(())
    }
}
