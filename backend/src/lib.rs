//! The device side of the virtio-msg bus over Xen: a service in dom0 or in a driver domain that
//! finds guests in XenStore, meets each over a message ring and an event channel, and serves
//! virtio devices from memory that the guest granted.
//!
//! From the outside in: [`Service`] is the event loop, a session is one bus instance, a link is
//! its connection while messages flow, a slot is one device on it.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod cleanup;
mod devices;
mod gauges;
mod grants;
mod guest_log;
mod host;
mod instance;
mod link;
mod lock;
mod negotiation;
mod opening;
mod retry;
mod service;
mod session;
mod sharing;
mod slot;
mod space;
mod start;
mod timers;

pub use devices::MAX_DEVICES;
pub use gauges::{Gauges, InstanceGauges, LinkGauges};
pub use grants::GrantBuffers;
pub use guest_log::GUEST_LINES_PER_PERIOD;
pub use host::Host;
pub use instance::InstanceId;
pub use service::{GUESTS_PER_TURN, LoopCounters, MAX_SESSIONS, Service, ServiceError};
pub use start::{StartError, open_host, run, run_dir};
/// What serves requests that wait, and why: `EngineChoice::of_this_machine` says it of any machine.
pub use virtio_devices::{EngineChoice, EngineKind};
