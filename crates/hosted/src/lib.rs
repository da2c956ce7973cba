//! The hosted platform: a broker that plays hypervisor and XenStore, so that the same
//! backend and frontend run as plain processes on a machine without Xen.
//!
//! The processes' side is `xen_hal::hosted`. A broker lives in a directory: each domain has two
//! sockets there (`xen_hal::hosted::layout`), one for the hypervisor, one that speaks XenStore's own wire.
//!
//! It refuses what Xen refuses, with Xen's errno, because a fake that is kinder than Xen hides
//! mistakes. What it does not play: memory and processors of a domain, live migration, virtual
//! interrupts, and a fence between processes of one user.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod broker;
mod dir;
mod evtchn;
mod grants;
mod hypervisor;
mod nodes;
mod sources;
mod store;

pub use broker::{Broker, Running, Stopper};
pub use dir::BrokerError;
pub use hypervisor::MAX_GUESTS;
