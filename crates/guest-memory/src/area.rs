//! An area: the one owner of a mapping, with counted leases (binding, memory contract).
//!
//! Does not know how the mapping came about: that is its [`Backing`].

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::lease::Lease;
use crate::{Access, GuestRange, RangeError};

/// How a mapping is undone.
pub trait Backing: Send + Sync + fmt::Debug {
    /// Undoes the mapping of `len` bytes at `base`. Called exactly once, when nobody can touch the
    /// memory any more.
    ///
    /// # Errors
    /// What the host said. Reaches the caller of [`Area::unmap`]; nobody sees it when the mapping
    /// goes with its last lease, so a backing that must not fail silently keeps its own record.
    fn unmap(&mut self, base: NonNull<u8>, len: usize) -> io::Result<()>;
}

/// The owner of one contiguous mapping of memory that others can write.
///
/// Dropping an area without [`Area::unmap`] unmaps when the last lease goes.
#[derive(Debug)]
pub struct Area {
    mapping: Arc<Mapping>,
    /// Of the mapping: a look-up needs no second look into memory.
    extent: Extent,
}

/// Why an area was not unmapped.
#[derive(Debug, thiserror::Error)]
pub enum UnmapError {
    /// Somebody still holds leases; nothing changed.
    #[error("an area of {} bytes is still in use: {leases} leases are out", area.len())]
    Leased {
        /// The area, given back.
        area: Area,
        /// How many leases were out.
        leases: usize,
    },
    /// The host refused to undo the mapping; the area is gone all the same.
    #[error("the host could not undo a mapping")]
    Host(#[from] io::Error),
}

impl Area {
    /// Takes ownership of a mapping.
    ///
    /// # Safety
    /// Until `backing.unmap` is called, the `len` bytes at `base` stay mapped, readable, and with
    /// [`Access::Write`] writable. No Rust reference and no Rust allocation covers them. `base` is
    /// aligned to 16, `len` is at most `isize::MAX`.
    #[must_use]
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        len: usize,
        access: Access,
        backing: Box<dyn Backing>,
    ) -> Self {
        let extent = Extent { base, len, access };
        Self {
            mapping: Arc::new(Mapping {
                extent,
                backing: Some(backing),
            }),
            extent,
        }
    }

    /// Bytes of the area.
    #[must_use]
    pub fn len(&self) -> usize {
        self.extent.len
    }

    /// True if the area has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extent.len == 0
    }

    /// How the memory is mapped.
    #[must_use]
    pub fn access(&self) -> Access {
        self.extent.access
    }

    /// A window of `len` bytes at `offset`. A window may end exactly at the end of the area and may
    /// be empty.
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
        self.whole().narrow(offset, len, access)
    }

    /// All of the area, with the right that the mapping gives.
    #[inline]
    #[must_use]
    pub fn whole(&self) -> GuestRange<'_> {
        let Extent { base, len, access } = self.extent;
        // SAFETY: this is the extent of `self.mapping`, which is not undone before it is dropped
        // or taken out of `self`, so not before the end of this borrow.
        unsafe { GuestRange::new(base, len, access) }
    }

    /// A counted right to use the memory.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease::new(Arc::clone(&self.mapping))
    }

    /// How many leases are out. Another thread may give one back at any moment.
    #[must_use]
    pub fn leases(&self) -> usize {
        Arc::strong_count(&self.mapping) - 1
    }

    /// Undoes the mapping now.
    ///
    /// # Errors
    /// [`UnmapError::Leased`] gives the area back if leases are out; [`UnmapError::Host`] if the
    /// host failed.
    pub fn unmap(mut self) -> Result<(), UnmapError> {
        match Arc::get_mut(&mut self.mapping) {
            Some(mapping) => Ok(mapping.unmap()?),
            None => Err(UnmapError::Leased {
                // The last lease may have gone since; then the caller finds none and tries again.
                leases: self.leases(),
                area: self,
            }),
        }
    }
}

/// Where a mapping lies, and what it may be used for.
#[derive(Clone, Copy, Debug)]
struct Extent {
    base: NonNull<u8>,
    len: usize,
    access: Access,
}

// SAFETY: a place and no right to it; the memory there is reached through accesses only that may
// come from any thread at any time.
unsafe impl Send for Extent {}
// SAFETY: as above.
unsafe impl Sync for Extent {}

/// A mapping, shared by its area and the leases; the last one undoes it.
pub(crate) struct Mapping {
    extent: Extent,
    backing: Option<Box<dyn Backing>>,
}

impl Mapping {
    /// All of the memory, with the right that the mapping gives.
    #[inline]
    pub(crate) fn whole(&self) -> GuestRange<'_> {
        let Extent { base, len, access } = self.extent;
        // SAFETY: `Area::from_raw` promises that the memory stays mapped with this right until
        // `unmap`, which needs `&mut self` and so the end of this borrow.
        unsafe { GuestRange::new(base, len, access) }
    }

    fn unmap(&mut self) -> io::Result<()> {
        match self.backing.take() {
            Some(mut backing) => backing.unmap(self.extent.base, self.extent.len),
            None => Ok(()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure: see `Backing::unmap`.
        let _ = self.unmap();
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("extent", &self.extent)
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts how often it was asked to unmap.
    #[derive(Debug)]
    struct Counting {
        unmaps: Arc<AtomicUsize>,
        fail: bool,
    }

    impl Backing for Counting {
        fn unmap(&mut self, _: NonNull<u8>, _: usize) -> io::Result<()> {
            self.unmaps.fetch_add(1, Ordering::Relaxed);
            if self.fail {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            Ok(())
        }
    }

    fn counting(access: Access, fail: bool) -> (Area, Arc<AtomicUsize>) {
        let unmaps = Arc::new(AtomicUsize::new(0));
        let memory: &'static mut [u128] = Box::leak(vec![0; 16].into_boxed_slice());
        let backing = Counting {
            unmaps: Arc::clone(&unmaps),
            fail,
        };
        let base = NonNull::from(memory).cast();
        // SAFETY: the memory is leaked and nobody else has a reference to it.
        let area = unsafe { Area::from_raw(base, 256, access, Box::new(backing)) };
        (area, unmaps)
    }

    #[test]
    fn ranges_are_half_open_and_may_be_empty() {
        let area = Area::anonymous(4096).unwrap();
        for (offset, len) in [(0, 4096), (4095, 1), (4096, 0), (0, 0), (17, 3)] {
            let range = area.range(offset, len, Access::Write).unwrap();
            assert_eq!(range.len() as u64, len);
        }
        for (offset, len) in [
            (4097, 0),
            (4096, 1),
            (0, 4097),
            (1, 4096),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
            (1, u64::MAX),
        ] {
            assert_eq!(
                area.range(offset, len, Access::Read).unwrap_err(),
                RangeError::OutOfBounds {
                    offset,
                    len,
                    size: 4096
                }
            );
        }
    }

    #[test]
    fn read_mapping_refuses_write_ranges() {
        let (area, _) = counting(Access::Read, false);
        area.range(0, 16, Access::Read).unwrap();
        assert_eq!(
            area.range(0, 16, Access::Write).unwrap_err(),
            RangeError::ReadOnly
        );
        assert_eq!(
            area.lease().range(0, 16, Access::Write).unwrap_err(),
            RangeError::ReadOnly
        );
    }

    #[test]
    fn unmap_waits_for_every_lease() {
        let (area, unmaps) = counting(Access::Write, false);
        let first = area.lease();
        let second = first.clone();
        let window = first.window(0, 16, Access::Write).unwrap();
        assert_eq!(area.leases(), 3);

        let UnmapError::Leased { area, leases } = area.unmap().unwrap_err() else {
            panic!("the host was asked")
        };
        assert_eq!(leases, 3);
        assert_eq!(unmaps.load(Ordering::Relaxed), 0);
        window.range().write(0, b"still here").unwrap();

        drop((first, second, window));
        assert_eq!(area.leases(), 0);
        area.unmap().unwrap();
        assert_eq!(unmaps.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn dropped_area_lives_until_its_last_lease() {
        let (area, unmaps) = counting(Access::Write, false);
        let lease = area.lease();
        drop(area);
        let range = lease.range(0, 4, Access::Write).unwrap();
        range.write(0, b"live").unwrap();
        assert_eq!(range.read_array(0), Ok(*b"live"));
        assert_eq!(unmaps.load(Ordering::Relaxed), 0);
        drop(lease);
        assert_eq!(unmaps.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn failed_unmap_is_told_and_not_repeated() {
        let (area, unmaps) = counting(Access::Write, true);
        assert!(matches!(area.unmap(), Err(UnmapError::Host(_))));
        assert_eq!(unmaps.load(Ordering::Relaxed), 1);
    }
}
