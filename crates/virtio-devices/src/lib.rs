//! Virtio device models that know neither Xen nor messages.
//!
//! [`DeviceModel`] is the seam: whoever speaks with the driver gives a device its queues and
//! passes on what it reports. [`blk`] is the block device, [`rng`] the entropy device. [`Engine`] does what
//! may wait; all devices of a process share one.
//!
//! Guest memory is reached only through an [`AddressSpace`](guest_memory::AddressSpace), during a
//! call, or through leases, beyond one.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod blk;
mod borrowed;
mod engine;
mod features;
mod model;
mod queue;
mod ranges;
pub mod rng;

pub use engine::{Engine, EngineChoice, EngineKind};
pub use model::{ConfigWrite, DeviceDescription, DeviceEvent, DeviceModel, Progress, ResetReason};
