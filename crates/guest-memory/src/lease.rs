//! Leases: the counted right to touch an area, for what outlives a call.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::area::Mapping;
use crate::{Access, GuestRange, RangeError};

/// Keeps a mapping alive. Cheap to clone; each clone counts.
#[derive(Clone, Debug)]
pub struct Lease {
    mapping: Arc<Mapping>,
}

impl Lease {
    pub(crate) fn new(mapping: Arc<Mapping>) -> Self {
        Self { mapping }
    }

    /// Bytes of the area.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.whole().len()
    }

    /// True if the area has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the memory is mapped.
    #[must_use]
    pub fn access(&self) -> Access {
        self.mapping.whole().access()
    }

    /// As [`crate::Area::range`].
    ///
    /// # Errors
    /// The window leaves the area, or asks for a right that the mapping does not give.
    #[inline]
    pub fn range(
        &self,
        offset: u64,
        len: u64,
        access: Access,
    ) -> Result<GuestRange<'_>, RangeError> {
        self.mapping.whole().narrow(offset, len, access)
    }

    /// All of the area, with the right that the mapping gives.
    #[inline]
    #[must_use]
    pub fn whole(&self) -> GuestRange<'_> {
        self.mapping.whole()
    }

    /// A checked window that holds a lease of its own.
    ///
    /// # Errors
    /// As [`Lease::range`].
    #[inline]
    pub fn window(&self, offset: u64, len: u64, access: Access) -> Result<LeasedRange, RangeError> {
        let range = self.range(offset, len, access)?;
        Ok(LeasedRange {
            base: range.base(),
            len: range.len(),
            access,
            lease: self.clone(),
        })
    }
}

/// A lease together with a checked window: what outlives a call.
#[derive(Clone, Debug)]
pub struct LeasedRange {
    base: NonNull<u8>,
    len: usize,
    access: Access,
    lease: Lease,
}

// SAFETY: `base` points into the mapping that `lease` keeps alive, and is reached by copies and
// atomic accesses only, which may come from any thread.
unsafe impl Send for LeasedRange {}
// SAFETY: as above.
unsafe impl Sync for LeasedRange {}

impl LeasedRange {
    /// The memory.
    #[inline]
    #[must_use]
    pub fn range(&self) -> GuestRange<'_> {
        // SAFETY: `Lease::window` checked the window and the right against the mapping, which
        // `self.lease` keeps alive for this borrow.
        unsafe { GuestRange::new(self.base, self.len, self.access) }
    }

    /// A part of the window, with a lease of its own.
    ///
    /// # Errors
    /// The part leaves the window, or asks for a right that the window does not give.
    pub fn window(&self, offset: u64, len: u64, access: Access) -> Result<LeasedRange, RangeError> {
        let range = self.range().narrow(offset, len, access)?;
        Ok(LeasedRange {
            base: range.base(),
            len: range.len(),
            access,
            lease: self.lease.clone(),
        })
    }

    /// Where the window begins, for a foreign driver that reaches its queues by pointer. Whoever
    /// follows it answers for what this crate otherwise sees to: the memory stays mapped only while
    /// the lease is held, others write it at any time, and no range is used meanwhile.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// The lease behind the window.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Bytes of the window.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if the window has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
