//! The split virtqueue, device side and driver side, over guest memory (VIRTIO 1.4, 2.7).
//!
//! [`DeviceQueue`] takes chains from a driver that it does not trust; [`DriverQueue`] offers chains
//! to a device that it does not trust. Both keep private indexes, copy each shared field exactly
//! once, check the copy and use only the copy. Whatever breaks the ring's rules is an error that
//! names index and descriptor, and that latches: a broken queue is never touched again for input.
//!
//! What this crate does not do: it does not translate buffers ([`Segment`]s carry bus addresses),
//! does not send notifications (it says when one is due), has no packed ring and no IN_ORDER.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod chain;
mod descriptor;
mod device;
mod driver;
mod fault;
mod indirect;
mod layout;
#[cfg(not(all(test, loom)))]
mod memory;
#[cfg(all(test, loom))]
#[path = "model.rs"]
mod memory;
mod notify;
mod ring;
mod state;
mod walk;

pub use chain::{Chain, ChainRefusal, MAX_CHAIN_BYTES, Segment, Taken};
pub use device::DeviceQueue;
pub use driver::{AddError, DriverFault, DriverQueue, Used};
pub use fault::{DescriptorAt, QueueFault};
pub use indirect::MAX_INDIRECT_ENTRIES;
pub use layout::{MAX_QUEUE_SIZE, QueueLayout, RingFeatures, RingPart, SetupError};
pub use notify::need_event;
pub use state::{QueueState, StateError};
