//! One queue as a driver knows it, and what GET_VQUEUE may say of it (virtio-msg sections 5.8 to 5.10).

use super::fault::DriverFault;
use crate::queue::QueueSetup;
use crate::wire::VqueueResponse;

/// A split queue has at most this many descriptors.
const MAX_QUEUE_SIZE: u32 = 1 << 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Asked for, not answered.
    Unknown,
    /// The device does not have it, or it is an admin queue.
    Absent,
    /// Not configured.
    Free { max_size: u16 },
    /// Not configured, and the user was asked for memory.
    Wanted { max_size: u16 },
    /// SET_VQUEUE sent.
    Enabling { max_size: u16, setup: QueueSetup },
    /// Confirmed by GET_VQUEUE.
    Enabled { max_size: u16, setup: QueueSetup },
    /// RESET_VQUEUE sent.
    Resetting,
}

/// What an answer means for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    None,
    Enabled,
    Reset,
}

impl Queue {
    pub(super) fn is_enabled(self) -> bool {
        matches!(self, Queue::Enabled { .. })
    }

    /// The largest size of a queue that waits for memory.
    pub(super) fn free_size(self) -> Option<u16> {
        match self {
            Queue::Free { max_size } | Queue::Wanted { max_size } => Some(max_size),
            _ => None,
        }
    }

    /// Takes a GET_VQUEUE answer. What state the queue is in tells what it must say.
    pub(super) fn answered(
        &mut self,
        index: u16,
        answer: &VqueueResponse,
    ) -> Result<News, DriverFault> {
        let max_size = u16::try_from(answer.max_size.min(MAX_QUEUE_SIZE)).unwrap_or_default();
        if !is_consistent(answer) {
            return Err(DriverFault::QueueInconsistent(index));
        }
        let configured = answer.cur_size != 0;
        let (next, news) = match *self {
            Queue::Unknown if configured => return Err(DriverFault::QueueBusy(index)),
            Queue::Unknown if max_size == 0 => (Queue::Absent, News::None),
            Queue::Unknown => (Queue::Free { max_size }, News::None),
            Queue::Enabling {
                max_size: before,
                setup,
            } => {
                if before != max_size || *answer != enabled(index, answer.max_size, setup) {
                    return Err(DriverFault::QueueRefused(index));
                }
                (Queue::Enabled { max_size, setup }, News::Enabled)
            }
            Queue::Resetting if configured => return Err(DriverFault::QueueStillEnabled(index)),
            Queue::Resetting if max_size == 0 => (Queue::Absent, News::Reset),
            Queue::Resetting => (Queue::Free { max_size }, News::Reset),
            state => (state, News::None),
        };
        *self = next;
        Ok(news)
    }
}

/// What the device says of a queue that it took as asked.
fn enabled(index: u16, max_size: u32, setup: QueueSetup) -> VqueueResponse {
    VqueueResponse {
        index: index.into(),
        max_size,
        cur_size: setup.size.into(),
        flags: VqueueResponse::ENABLED,
        descriptor_addr: setup.desc,
        driver_addr: setup.driver,
        device_addr: setup.device,
    }
}

/// The list of section 5.8.
fn is_consistent(answer: &VqueueResponse) -> bool {
    let addresses = [
        answer.descriptor_addr,
        answer.driver_addr,
        answer.device_addr,
    ];
    let fields_agree = if answer.cur_size == 0 {
        answer.flags == 0 && addresses == [0; 3]
    } else {
        !addresses.contains(&0)
    };
    answer.flags & !VqueueResponse::ENABLED == 0
        && answer.cur_size <= answer.max_size
        && fields_agree
}
