//! The driver side of the virtio-msg bus over Xen in user space: finds its bus in XenStore, shares
//! memory with the backend, and drives devices.
//!
//! [`Frontend`] is one bus instance, [`Disk`] a block device on it, [`Rng`] an
//! entropy device. Nothing that the backend
//! writes is believed unchecked; a guest that runs this does not trust its backend.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod bring_up;
mod clock;
mod disk;
mod error;
mod frontend;
mod instance;
mod link;
mod news;
mod pool;
mod rng;
mod runs;

pub use disk::{
    BLK_DEVICE_ID, Disk, DiskOptions, Finished, MAX_REQUEST, Operation, SECTOR, Status,
};
pub use error::{FrontendError, backend_command};
pub use frontend::{Frontend, Limits, Wants, Watched, open_platform};
pub use instance::Instance;
pub use link::{Link, LinkOptions};
pub use pool::{Block, Pool, PoolFull};
pub use rng::{RNG_DEVICE_ID, RNG_REQUEST, Rng};
pub use runs::Runs;
