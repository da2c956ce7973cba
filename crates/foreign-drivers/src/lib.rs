//! Runs the drivers of the library `virtio-drivers` over the bus, unmodified: drivers that nobody
//! here wrote, against the backend. For tests of interoperability, and for a guest that has such a
//! driver and no other.
//!
//! ```no_run
//! use foreign_drivers::{ForeignBus, SharedMemory};
//! use frontend_shim::Frontend;
//! use std::time::Duration;
//! use virtio_drivers::device::blk::VirtIOBlk;
//!
//! let mut frontend = Frontend::open(&"xen".parse()?, 0)?;
//! frontend.connect(Duration::from_secs(10))?;
//! let bus = ForeignBus::new(frontend)?;
//! let mut disk = bus.open(0, VirtIOBlk::<SharedMemory, _>::new)?;
//! let mut sector = [0; 512];
//! disk.read_blocks(0, &mut sector)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What the library is never told: EVENT_IDX, because it loses a notification when the 16-bit index
//! wraps. What it cannot tell: its memory trait has no `self`, so a thread can run such drivers on
//! one bus at a time ([`ForeignBus::new`]), several buses on several threads.
//!
//! # A device that lies
//!
//! The transport takes the device for hostile like all of the frontend; the library does so in part.
//! - Its rings are reached by pointer, not by this workspace's ranges: the device may change what is
//!   read at any time.
//! - Calls that block spin until the device answers. One that never answers holds them for ever; a
//!   device that is known to be gone is answered for, with "not ready". Use the calls that do not
//!   block, and [`ForeignBus::wait`], which has a limit and gives the reason.
//! - A used entry that is not the next request gives `WrongToken`; the queue is stuck from then on.
//! - The used length is handed on unchecked: `VirtIORng::request_entropy` may name more bytes than
//!   the buffer has. Buffers are copied (`Hal::share`), so nothing is written past their end.
//! - It panics where the caller breaks its contract (an empty buffer, a length that is no multiple of
//!   512); nothing that a device writes does that for a disk or an entropy source.

#![expect(
    unsafe_code,
    reason = "the library's memory trait is unsafe, and gets buffers as raw pointers"
)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod bus;
mod error;
mod hal;
mod memory;
mod transport;

pub use bus::ForeignBus;
pub use error::ForeignError;
pub use hal::SharedMemory;
pub use transport::BusTransport;
