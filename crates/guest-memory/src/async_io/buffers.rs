//! The memory of one transfer: leases that outlive the call, and which of their bytes are moved.

use crate::{Access, GuestRange, LeasedRange, MAX_IOVECS};

/// Leases of guest memory, in order, and the bytes of it that the next transfer moves: none until
/// [`IoBuffers::select`] has said which.
#[derive(Debug, Default)]
pub struct IoBuffers {
    leases: Vec<LeasedRange>,
    /// Inside the memory of `leases`.
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers in `iovecs` lead into the memory of `leases`, which are `Send`; here nothing
// is read or written through them.
unsafe impl Send for IoBuffers {}
// SAFETY: as above.
unsafe impl Sync for IoBuffers {}

impl IoBuffers {
    /// Adds memory at the end.
    pub fn push(&mut self, lease: LeasedRange) {
        self.iovecs.clear();
        self.leases.push(lease);
    }

    /// Lets go of all memory, and keeps room for so many leases.
    pub fn clear(&mut self, room: usize) {
        self.iovecs.clear();
        self.iovecs.shrink_to(room);
        self.leases.clear();
        self.leases.shrink_to(room);
    }

    /// All memory, in order.
    pub fn ranges(&self) -> impl Iterator<Item = GuestRange<'_>> {
        self.leases.iter().map(LeasedRange::range)
    }

    /// Says which bytes the next transfer moves: `len` of them, `skip` bytes behind the first.
    /// False: there are not so many, or more than [`MAX_IOVECS`] pieces of them; then none are.
    pub fn select(&mut self, skip: u64, len: u64) -> bool {
        self.iovecs.clear();
        let (mut skip, mut left) = (skip, len);
        for lease in &self.leases {
            let range = lease.range();
            let whole = range.len() as u64;
            let from = skip.min(whole);
            let part = left.min(whole - from);
            skip -= from;
            if part == 0 {
                continue;
            }
            let Ok(piece) = range.subrange(from, part) else {
                break;
            };
            self.iovecs.push(libc::iovec {
                iov_base: piece.base().as_ptr().cast(),
                iov_len: piece.len(),
            });
            left -= part;
        }
        let fine = left == 0 && self.iovecs.len() <= MAX_IOVECS;
        if !fine {
            self.iovecs.clear();
        }
        fine
    }

    /// Whether each selected piece lies at a multiple of `address` and is a multiple of `len` long.
    #[must_use]
    pub fn are_aligned(&self, address: usize, len: usize) -> bool {
        self.iovecs.iter().all(|iovec| {
            iovec.iov_base.addr().is_multiple_of(address) && iovec.iov_len.is_multiple_of(len)
        })
    }

    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Whether all of the memory may be used so.
    pub(super) fn allows(&self, access: Access) -> bool {
        self.ranges().all(|range| range.access().allows(access))
    }
}
