//! What both ends of a bus share: the bounds of an instance, and the faults of a peer that end it (binding section 4).

use crate::wire::{DevNum, MaxMessageSize};
use thiserror::Error;

/// The bounds of one bus instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest frame, both directions.
    pub max_message_size: MaxMessageSize,
    /// Requests that may be outstanding at once, over all devices and bus requests: the slots of a ring direction.
    pub slots: u16,
}

/// Private events that may wait for the owner of a bus: one for each device number is what the binding knows
/// (REMOVE_REQUEST), and equal ones are one.
pub(crate) const MAX_PRIVATE_EVENTS: usize = 1 << 16;

/// What a correct peer never does. It ends the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PeerFault {
    /// More requests outstanding than the ring has slots.
    #[error("peer has more than {slots} requests outstanding")]
    TooManyRequests {
        /// The bound.
        slots: u16,
    },
    /// A second PING before the first was answered.
    #[error("peer sent a second PING before the answer to its first")]
    SecondPing,
    /// More distinct private events than there are device numbers.
    #[error("peer sent more than {bound} different private events")]
    TooManyPrivateEvents {
        /// The bound.
        bound: usize,
    },
    /// A GET_DEVICES answer that leads nowhere.
    #[error("peer's device enumeration does not progress past number {offset}")]
    NoProgress {
        /// Where it was asked.
        offset: DevNum,
    },
}
