//! What a device side knows that the ring does not say: enough for another process to go on.

/// A device queue at rest. Plain data; [`crate::DeviceQueue::from_state`] checks it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueState {
    /// Queue size.
    pub size: u16,
    /// Position in the available ring that is taken next.
    pub next_avail: u16,
    /// Position in the used ring that is written next.
    pub next_used: u16,
    /// Heads taken and not yet returned, ascending.
    pub in_flight: Vec<u16>,
}

/// Why a state does not describe a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Made for another queue.
    #[error("the state is of a queue of {state} entries, the ring has {layout}")]
    Size {
        /// Size in the state.
        state: u16,
        /// Size of the ring.
        layout: u16,
    },
    /// A head that the ring does not have.
    #[error("head {head} in flight is outside of a ring of {size}")]
    HeadOutOfRange {
        /// The head.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// A head that is in flight twice.
    #[error("head {head} is in flight twice")]
    HeadTwice {
        /// The head.
        head: u16,
    },
    /// The indexes do not fit the heads.
    #[error("the indexes say that {indexes} chains are in flight, the list has {heads}")]
    Count {
        /// `next_avail` minus `next_used`.
        indexes: u16,
        /// Heads in the list.
        heads: usize,
    },
}
