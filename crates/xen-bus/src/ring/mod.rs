//! One side of a message ring (binding section 4): messages in, messages out, and who must be
//! woken when.
//!
//! Every access to shared memory goes through [`RingWords`]; [`GuestWords`] is the one that
//! production uses. The ring never waits and never notifies: it says when to. It copies frames and
//! does not look into them, beyond the length that says how much to copy.

mod consumer;
mod guest;
mod need;
mod producer;
mod words;

pub use guest::{GuestWords, OpenError, RING_MAGIC, RING_VERSION};
pub use words::{Fence, RingWords, Word};

use consumer::Consumer;
use producer::Producer;

use crate::layout::{Direction, RingLayout};

/// Bytes of a virtio-msg header.
const HEADER_LEN: usize = 8;

/// Which side of the bus a ring end belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The driver's domain.
    Frontend,
    /// The device's domain.
    Backend,
}

impl Role {
    /// The direction in which this side sends.
    #[must_use]
    pub const fn outgoing(self) -> Direction {
        match self {
            Role::Frontend => Direction::ToDevice,
            Role::Backend => Direction::ToDriver,
        }
    }

    /// The direction in which this side receives.
    #[must_use]
    pub const fn incoming(self) -> Direction {
        match self {
            Role::Frontend => Direction::ToDriver,
            Role::Backend => Direction::ToDevice,
        }
    }
}

/// The peer broke the ring; it ends the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// A producer index that goes back or passes the slots that are free.
    #[error("{direction} producer index is {got:#x}, {low:#x} to {high:#x} is possible")]
    ProducerIndex {
        /// The direction.
        direction: Direction,
        /// What the peer wrote.
        got: u32,
        /// The lowest index that it can have.
        low: u32,
        /// The highest, counting modulo 2^32.
        high: u32,
    },
    /// A consumer index that goes back or passes what was published.
    #[error("{direction} consumer index is {got:#x}, {low:#x} to {high:#x} is possible")]
    ConsumerIndex {
        /// The direction.
        direction: Direction,
        /// What the peer wrote.
        got: u32,
        /// The lowest index that it can have.
        low: u32,
        /// The highest, counting modulo 2^32.
        high: u32,
    },
}

/// Why a frame was not written into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No slot is free: normal, try again when the peer has made room.
    #[error("the ring is full")]
    Full,
    /// The frame is longer than the session's message size.
    #[error("the frame has {len} bytes, the message size is {max}")]
    TooLong {
        /// Bytes of the frame.
        len: usize,
        /// The message size.
        max: u16,
    },
    /// The peer broke the ring.
    #[error(transparent)]
    Fault(#[from] RingFault),
}

/// What [`MessageRing::prepare_sleep`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Sleep {
    /// The peer must be notified, before anything else.
    pub notify: bool,
    /// Nothing is to be done: an event will come when that changes. Otherwise go on.
    pub may_wait: bool,
}

/// What one side counted since it opened the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Messages taken out.
    pub received: u64,
    /// Messages written.
    pub sent: u64,
    /// Times that a producer or consumer index was published.
    pub publishes: u64,
    /// Times that the peer had to be notified.
    pub notifications: u64,
    /// Events of the peer that found nothing to do.
    pub spurious_wakes: u64,
}

/// Where one side stands in a ring: what a restart record keeps (binding section 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RingState {
    /// Number of the next message to send.
    pub produced: u32,
    /// Number of the next message to take.
    pub consumed: u32,
    /// How many messages, from `produced` on, may have been published without the record saying
    /// so. They are to be sent again first, with the same contents.
    pub standing: u32,
}

/// One side of a message ring.
#[derive(Debug)]
pub struct MessageRing<W = GuestWords> {
    words: W,
    layout: RingLayout,
    incoming: Consumer,
    outgoing: Producer,
    /// Space-at is armed: [`MessageRing::note_event`] looks for space as well.
    awaits_space: bool,
    counters: RingCounters,
}

impl<W: RingWords> MessageRing<W> {
    /// One side of a fresh ring, whose words are all 0.
    pub fn fresh(words: W, layout: RingLayout, role: Role) -> Self {
        Self {
            words,
            layout,
            incoming: Consumer::new(role.incoming(), &layout, 0),
            outgoing: Producer::fresh(role.outgoing(), &layout),
            awaits_space: false,
            counters: RingCounters::default(),
        }
    }

    /// One side of a ring in use, taken up again where `state` says. Publishes the consumer index,
    /// and the producer index unless messages stand: then it is published after the last of them.
    ///
    /// Whatever the ring held before counts as an event for both sides: drain it, and notify the
    /// peer once.
    pub fn resumed(words: W, layout: RingLayout, role: Role, state: RingState) -> Self {
        let RingState {
            produced,
            consumed,
            standing,
        } = state;
        words.store(Word::Consumer(role.incoming()), consumed);
        if standing == 0 {
            words.store(Word::Producer(role.outgoing()), produced);
        }
        Self {
            words,
            layout,
            incoming: Consumer::new(role.incoming(), &layout, consumed),
            outgoing: Producer::resumed(role.outgoing(), &layout, produced, standing),
            awaits_space: false,
            counters: RingCounters::default(),
        }
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &RingLayout {
        &self.layout
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> RingCounters {
        self.counters
    }

    /// Where this side stands; nothing stands.
    #[must_use]
    pub fn state(&self) -> RingState {
        RingState {
            produced: self.outgoing.index(),
            consumed: self.incoming.index(),
            standing: 0,
        }
    }

    /// Copies the next message into `buf`, which should have room for the message size.
    ///
    /// The length is what the frame's own `msg_size` says, but at least a header and at most the
    /// message size and `buf`: a frame that lies about it fails the parser's check.
    ///
    /// # Errors
    /// The peer's index is impossible.
    pub fn try_recv(&mut self, buf: &mut [u8]) -> Result<Option<usize>, RingFault> {
        if !self.incoming.has_message(&self.words)? {
            return Ok(None);
        }
        let slot = self.incoming.slot();
        let len = copy_out(&self.words, slot, self.layout.message_size(), buf);
        self.incoming.advance();
        self.counters.received += 1;
        Ok(Some(len))
    }

    /// Writes a frame into the next slot. The peer sees it after [`MessageRing::flush`].
    ///
    /// # Errors
    /// No slot is free, the frame is too long, or the peer's index is impossible.
    pub fn try_send(&mut self, frame: &[u8]) -> Result<(), SendError> {
        let max = self.layout.message_size();
        if frame.len() > usize::from(max) {
            return Err(SendError::TooLong {
                len: frame.len(),
                max,
            });
        }
        if !self.has_room()? {
            return Err(SendError::Full);
        }
        self.outgoing.push(&self.words, frame);
        self.counters.sent += 1;
        Ok(())
    }

    /// Whether [`MessageRing::try_send`] would find a slot: for a side that records a message
    /// before it writes it.
    ///
    /// # Errors
    /// The peer's index is impossible.
    pub fn has_room(&mut self) -> Result<bool, RingFault> {
        self.outgoing.has_room(&self.words)
    }

    /// Publishes what was sent; whether the peer must be notified.
    #[must_use]
    pub fn flush(&mut self) -> bool {
        let published = self.outgoing.publish(&self.words);
        self.count(published)
    }

    /// Gives the slots of received messages back; whether the peer must be notified.
    #[must_use]
    pub fn consume(&mut self) -> bool {
        let published = self.incoming.publish(&self.words);
        self.count(published)
    }

    /// Before waiting for an event: publishes both indexes, asks to be notified about the next
    /// message and, if this side has more to send than there is room for (`wants_space`), about
    /// the next free slot, and looks at all of it again.
    ///
    /// # Errors
    /// An index of the peer is impossible.
    pub fn prepare_sleep(&mut self, wants_space: bool) -> Result<Sleep, RingFault> {
        // both, in this order: a side that sleeps owes the other neither messages nor slots
        let notify = self.consume() | self.flush();
        let go_on = Sleep {
            notify,
            may_wait: false,
        };
        if self.incoming.has_message(&self.words)? || (wants_space && self.has_room()?) {
            return Ok(go_on);
        }
        self.incoming.arm(&self.words);
        if wants_space {
            self.outgoing.arm(&self.words);
        }
        self.words.fence(Fence::Armed);
        if self.incoming.recheck(&self.words)?
            || (wants_space && self.outgoing.recheck(&self.words)?)
        {
            return Ok(go_on);
        }
        self.awaits_space = wants_space;
        Ok(Sleep {
            notify,
            may_wait: true,
        })
    }

    /// An event of the peer came and was acknowledged: whether it brought something to do, a
    /// message or awaited space. One without is legal, and counted.
    ///
    /// # Errors
    /// An index of the peer is impossible.
    pub fn note_event(&mut self) -> Result<bool, RingFault> {
        let work = self.incoming.has_message(&self.words)?
            || (self.awaits_space && self.outgoing.has_room(&self.words)?);
        if !work {
            self.counters.spurious_wakes += 1;
        }
        Ok(work)
    }

    fn count(&mut self, published: Option<bool>) -> bool {
        let notify = published.unwrap_or(false);
        self.counters.publishes += u64::from(published.is_some());
        self.counters.notifications += u64::from(notify);
        notify
    }
}

/// Copies a frame out of a slot, each byte once; how many bytes.
fn copy_out(words: &impl RingWords, slot: u64, message_size: u16, buf: &mut [u8]) -> usize {
    let mut header = [0; HEADER_LEN];
    words.read(slot, &mut header);
    let [.., size_low, size_high] = header;
    let msg_size = usize::from(u16::from_le_bytes([size_low, size_high]));
    let len = msg_size
        .clamp(HEADER_LEN, message_size.into())
        .min(buf.len());
    match buf
        .get_mut(..len)
        .and_then(|frame| frame.split_at_mut_checked(HEADER_LEN))
    {
        Some((head, payload)) => {
            head.copy_from_slice(&header);
            words.read(slot + HEADER_LEN as u64, payload);
            len
        }
        None => 0,
    }
}

#[cfg(test)]
mod tests;
