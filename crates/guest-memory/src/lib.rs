//! Memory that a hostile peer can write at any time: areas, ranges and leases, never a slice.
//!
//! An [`Area`] owns one mapping. A [`GuestRange`] is a checked window into it for the length of a
//! borrow; a [`Lease`] or [`LeasedRange`] is a counted right to touch it that outlives a call (a
//! virtqueue, I/O in flight). The mapping is undone when nobody is left, not before.
//! An [`AddressSpace`] says what a bus address means at this moment (binding section 5); memory
//! that is only lent for one buffer comes by way of [`Transient`].
//!
//! Numbers are loaded and stored by atomics, bytes are copied by moves that the compiler does not
//! look into, so a peer that writes at the same moment yields stale or mixed bytes, never undefined
//! behaviour. A `&[u8]` over such memory would be undefined behaviour, so there is no way to one:
//!
//! ```
//! use guest_memory::{Access, Area};
//! let area = Area::anonymous(4096)?;
//! let range = area.range(0, 16, Access::Read)?;
//! let bytes: [u8; 16] = range.read_array(0)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! ```compile_fail,E0614
//! # use guest_memory::{Access, Area};
//! # let area = Area::anonymous(4096)?;
//! # let range = area.range(0, 16, Access::Read)?;
//! let bytes: &[u8] = &*range;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! ```compile_fail,E0308
//! # use guest_memory::{Access, Area};
//! # let area = Area::anonymous(4096)?;
//! # let range = area.range(0, 16, Access::Read)?;
//! let bytes: &[u8] = &range;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! ```compile_fail,E0277
//! # use guest_memory::{Access, Area};
//! # let area = Area::anonymous(4096)?;
//! # let range = area.range(0, 16, Access::Read)?;
//! fn bytes_of(_: impl AsRef<[u8]>) {}
//! bytes_of(range);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A range cannot outlive the area or the lease that it was made from:
//!
//! ```compile_fail,E0505
//! # use guest_memory::{Access, Area};
//! # let area = Area::anonymous(4096)?;
//! let range = area.range(0, 16, Access::Read)?;
//! drop(area);
//! range.read_array::<16>(0)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! ```compile_fail,E0505
//! # use guest_memory::{Access, Area};
//! # let area = Area::anonymous(4096)?;
//! let lease = area.lease();
//! let range = lease.range(0, 16, Access::Read)?;
//! drop(lease);
//! range.read_array::<16>(0)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A [`LeasedArray`] has its checks behind it, and its right in its type:
//!
//! ```compile_fail,E0599
//! # use guest_memory::{Access, Area, LeasedArray, ReadOnly};
//! # use std::sync::atomic::Ordering::Relaxed;
//! # let window = Area::anonymous(4096)?.lease().window(0, 64, Access::Write)?;
//! let array = LeasedArray::<u16, 1, ReadOnly>::new(&window, 0, 5)?;
//! array.store(0, [1], Relaxed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Beside memory, the few system calls on files that move it, or that only raw calls reach: vectored
//! I/O, io_uring and Linux AIO ([`AsyncIo`]), locks as QEMU takes them ([`lock_byte`]), discards of a
//! block device.
//!
//! What this crate does not do: grants, event channels, XenStore (`xen-hal`), and any meaning of
//! the bytes.

#![expect(
    unsafe_code,
    reason = "memory that another domain writes can only be reached through raw pointers"
)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod area;
mod array;
mod async_io;
mod blkdev;
mod copy;
mod cursor;
mod iovec;
mod lease;
mod mmap;
mod ofd;
mod range;
mod space;
mod transient;

pub use area::{Area, Backing, UnmapError};
pub use array::{LeasedArray, ReadOnly, ReadWrite, Right, Word};
pub use async_io::{AsyncIo, IoBuffers, NotTaken, Transfer, probe_io_uring, probe_linux_aio};
pub use blkdev::discard_blocks;
pub use cursor::{Cursor, Surroundings};
pub use iovec::{MAX_IOVECS, preadv2, pwritev2};
pub use lease::{Lease, LeasedRange};
pub use ofd::{ForeignLock, foreign_lock, lock_byte};
pub use range::{GuestRange, RangeError};
pub use rustix::io::ReadWriteFlags;
pub use space::{AddressSpace, FlatSpace, TranslateError};
pub use transient::{Loan, NoRoom, Part, Return, Transient};

/// What may be done with memory. `Write` includes reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Loads only.
    Read,
    /// Loads and stores.
    Write,
}

impl Access {
    /// True if memory with this right may be used for `wanted`.
    #[inline]
    #[must_use]
    pub const fn allows(self, wanted: Access) -> bool {
        matches!(self, Access::Write) || matches!(wanted, Access::Read)
    }
}
