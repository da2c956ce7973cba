//! The trait that every device implements, and what passes through it.
//!
//! A device is given its queues and gives them back; it sees no message, no status register and
//! no Xen. Whoever drives it (the backend's session) calls it from one thread and answers the
//! driver. Nothing here waits.

use std::fmt;
use std::os::fd::BorrowedFd;

use guest_memory::AddressSpace;
use virtqueue::{DeviceQueue, QueueFault, QueueState};

/// "Xen" in ASCII, as no vendor id is registered for this bus.
pub(crate) const VENDOR_ID: u32 = 0x006e_6558;

/// What a device is before a driver has said anything; constant for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDescription {
    /// Virtio device id: 2 is a block device.
    pub device_id: u32,
    /// Virtio vendor id.
    pub vendor_id: u32,
    /// Offered features, bit n of the value is feature bit n.
    pub features: u128,
    /// The configuration space at its first reading.
    pub config: Vec<u8>,
    /// The largest size of each queue, by index.
    pub queue_max: Vec<u16>,
}

/// One virtio device.
///
/// Call [`poll`](Self::poll) after any other call that takes `&mut self`, while it answers
/// [`Progress::More`], and when [`wake_fd`](Self::wake_fd) is readable.
pub trait DeviceModel: Send + fmt::Debug {
    /// What the device offers.
    fn describe(&self) -> DeviceDescription;

    /// Serves `queue` from now on: the driver has set DRIVER_OK and accepted `features`.
    ///
    /// A queue that runs is not replaced: the call is ignored until its `Stopped` was reported.
    fn start_queue(&mut self, index: u16, queue: DeviceQueue, features: u128);

    /// Takes nothing more from the queue, and returns at once. Requests in flight complete;
    /// then a `poll` reports [`DeviceEvent::Stopped`], and from that report on nothing touches
    /// the rings and buffers of the queue. Repeating it, or stopping a queue that does not run,
    /// does nothing and reports nothing.
    fn stop_queue(&mut self, index: u16);

    /// The driver says that the queue has buffers. Any index, any time, any number of times.
    fn kick(&mut self, index: u16);

    /// Serves at most `budget` buffers, all queues in turn, and appends what happened to `out`.
    /// `space` must translate as it did for the driver whose queues run.
    fn poll(
        &mut self,
        space: &dyn AddressSpace,
        budget: usize,
        out: &mut Vec<DeviceEvent>,
    ) -> Progress;

    /// The driver has settled on `features`; before its first queue is set up. Reports what that
    /// changes in configuration space.
    fn negotiated(&mut self, _features: u128, _out: &mut Vec<DeviceEvent>) {}

    /// No queue runs any more, no [`ConfigWrite::Later`] is left to report, and the driver begins
    /// anew or is gone: what it chose is undone. Reports what that changes in configuration space.
    fn reset(&mut self, _out: &mut Vec<DeviceEvent>) {}

    /// A driver that accepted `features` writes `data` at `offset` of the configuration space.
    fn write_config(&mut self, _offset: u32, _data: &[u8], _features: u128) -> ConfigWrite {
        ConfigWrite::Refused
    }

    /// What the device is made of may have changed: looks again. `poll` reports what is new.
    fn refresh(&mut self) {}

    /// Becomes readable when `poll` has something to do without a kick. It may stay readable for
    /// what `poll` has found already: wait for the edge.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;
}

/// Whether `poll` left work behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do until a kick or the wake descriptor.
    Idle,
    /// The budget ended first: poll again, after others had their turn.
    More,
}

/// What becomes of a write to configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigWrite {
    /// It has no effect.
    Refused,
    /// It has taken effect.
    Accepted,
    /// `poll` will report [`DeviceEvent::ConfigWritten`], once, whatever happens before. Until then
    /// the device does I/O, and refuses other such writes.
    Later,
}

/// What a device tells the one that drives it.
#[derive(Debug)]
pub enum DeviceEvent {
    /// The queue has used buffers and the driver asked to be notified: send EVENT_USED.
    Used(u16),
    /// The queue has ended; see [`DeviceModel::stop_queue`].
    Stopped(u16, QueueState),
    /// The device changed its configuration: bytes at `offset` are `data` now.
    ConfigChanged {
        /// Byte offset in the configuration space.
        offset: u32,
        /// The new bytes.
        data: Vec<u8>,
    },
    /// The end of a write that was answered [`ConfigWrite::Later`].
    ConfigWritten {
        /// Whether it has taken effect.
        accepted: bool,
    },
    /// The driver broke a queue: set DEVICE_NEEDS_RESET. Said once per queue and start.
    NeedsReset(ResetReason),
}

/// How the driver broke a queue. Requests in flight still complete.
#[derive(Debug, thiserror::Error)]
pub enum ResetReason {
    /// The rings or descriptors are malformed.
    #[error("queue {queue}: {fault}")]
    Queue {
        /// Index of the queue.
        queue: u16,
        /// What was malformed.
        #[source]
        fault: QueueFault,
    },
    /// A request has no status byte that could be written, so its failure cannot be told.
    #[error("queue {queue}: the status byte of buffer {head} is not writable memory")]
    Status {
        /// Index of the queue.
        queue: u16,
        /// Head descriptor of the request.
        head: u16,
    },
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use guest_memory::TranslateError;
    use virtqueue::DescriptorAt;

    use super::*;

    #[test]
    fn a_reset_says_why_an_indirect_table_cannot_be_read() {
        let why = TranslateError::Unknown { addr: 0x1000 };
        let reason = ResetReason::Queue {
            queue: 0,
            fault: QueueFault::IndirectTable {
                at: DescriptorAt::Ring(3),
                source: why,
            },
        };
        let fault = reason.source().unwrap();
        assert!(reason.to_string().ends_with(&fault.to_string()));
        assert_eq!(fault.source().unwrap().to_string(), why.to_string());
    }
}
