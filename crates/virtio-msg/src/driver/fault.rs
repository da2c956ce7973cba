//! Why a driver gave up on a device, and why it refused a call of its own user.

use crate::features::Features;
use crate::status::Status;
use crate::wire::MsgId;
use thiserror::Error;

/// Why the driver side gave up. All but the time-outs are the device's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DriverFault {
    /// Device type 0.
    #[error("there is no device behind the number")]
    NoDevice,
    /// Queue counts that cannot be.
    #[error(
        "device claims {max_virtqueues} queues, {admin_count} of them admin queues from {admin_start} on"
    )]
    BadQueueCount {
        /// All queues.
        max_virtqueues: u32,
        /// First admin queue.
        admin_start: u32,
        /// Number of admin queues.
        admin_count: u32,
    },
    /// No answer in time.
    #[error("no answer to message {0} in time")]
    Timeout(MsgId),
    /// The status did not become 0 in time.
    #[error("device status did not become 0 in time")]
    ResetTimeout,
    /// An answer of another kind, or one that does not echo what was asked.
    #[error("answer {answered} does not fit request {asked}")]
    WrongAnswer {
        /// The request.
        asked: MsgId,
        /// The response.
        answered: MsgId,
    },
    /// VERSION_1 or ACCESS_PLATFORM is not offered.
    #[error("device offers {0}, without VERSION_1 and ACCESS_PLATFORM")]
    MissingFeatures(Features),
    /// FEATURES_OK did not stand.
    #[error("device refused the features {0}")]
    FeaturesRefused(Features),
    /// A status write that did not take.
    #[error("device status is {got:?} after {wrote:?} was written")]
    StatusNotTaken {
        /// What was written.
        wrote: Status,
        /// What was answered.
        got: Status,
    },
    /// Configuration space changed during each of many reads.
    #[error("configuration space did not hold still for one read")]
    ConfigUnstable,
    /// A GET_VQUEUE answer that contradicts itself.
    #[error("device's description of queue {0} contradicts itself")]
    QueueInconsistent(u16),
    /// A queue was enabled before we did it.
    #[error("queue {0} is enabled after a reset")]
    QueueBusy(u16),
    /// GET_VQUEUE does not show what SET_VQUEUE asked for.
    #[error("device did not take the set-up of queue {0}")]
    QueueRefused(u16),
    /// RESET_VQUEUE did not clear the queue: only a device reset is left.
    #[error("queue {0} is still enabled after its reset")]
    QueueStillEnabled(u16),
    /// NEEDS_RESET before the device was started.
    #[error("device needs a reset before it was started")]
    NeedsReset,
}

/// Why a queue operation was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueueError {
    /// The queue is not in the state that the call is for.
    #[error("queue {0} is not waiting for this")]
    WrongState(u16),
    /// Size or addresses that SET_VQUEUE must refuse.
    #[error(
        "queue {index} cannot stand there: size at most {max_size}, a power of two; addresses aligned, not 0"
    )]
    Unsound {
        /// The queue.
        index: u16,
        /// Largest size.
        max_size: u16,
    },
    /// RING_RESET was not negotiated.
    #[error("the device cannot reset a single queue")]
    NoRingReset,
}

/// Why a write to configuration space was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WriteConfigError {
    /// The device does not run.
    #[error("the device does not run")]
    NotRunning,
    /// No bytes, or bytes outside configuration space.
    #[error("{len} bytes at {offset} are not inside a configuration space of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u32,
        /// How many.
        len: usize,
        /// What there is.
        size: u32,
    },
    /// More than one message carries, so it could not be all or nothing.
    #[error("{len} bytes do not fit one message, which carries {room}")]
    TooLong {
        /// How many.
        len: usize,
        /// What fits.
        room: usize,
    },
}
