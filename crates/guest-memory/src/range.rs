//! A range: pointer, length and right, for the length of a borrow. Never a slice.
//!
//! Numbers are little-endian, as every field on this bus and in every virtqueue.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use crate::{Access, copy};

/// A window into memory that others can write. Copies in and out; no reference to a byte of it
/// ever exists.
#[derive(Clone, Copy)]
pub struct GuestRange<'a> {
    base: NonNull<u8>,
    len: usize,
    access: Access,
    mapped: PhantomData<&'a ()>,
}

// SAFETY: the memory is reached through accesses only that may come from any thread at any time.
unsafe impl Send for GuestRange<'_> {}
// SAFETY: as above.
unsafe impl Sync for GuestRange<'_> {}

/// Why a range cannot do what was asked. Always a mistake of the caller or a check of a peer's
/// number that failed; the memory was not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Bytes outside of the range.
    #[error("{len} bytes at offset {offset} do not fit into a range of {size} bytes")]
    OutOfBounds {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes that there are.
        size: usize,
    },
    /// A store into memory that may only be read.
    #[error("the range may only be read")]
    ReadOnly,
    /// An atomic access that is not aligned to its size.
    #[error("an atomic access of {size} bytes at offset {offset} is not aligned")]
    Misaligned {
        /// Offset inside the range.
        offset: u64,
        /// Bytes of the access, and the alignment that it needs.
        size: usize,
    },
}

impl<'a> GuestRange<'a> {
    /// # Safety
    /// For all of `'a`, the `len` bytes at `base` are mapped, readable, and with
    /// [`Access::Write`] writable, and no Rust reference covers them.
    #[inline]
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize, access: Access) -> Self {
        Self {
            base,
            len,
            access,
            mapped: PhantomData,
        }
    }

    /// A range without bytes.
    pub(crate) const fn empty() -> Self {
        Self {
            base: NonNull::dangling(),
            len: 0,
            access: Access::Read,
            mapped: PhantomData,
        }
    }

    /// Where it begins, for who hands the memory to the kernel.
    #[inline]
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes of the range.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if the range has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What may be done with it.
    #[inline]
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether its first byte lies at a multiple of `bytes` in this process, as direct I/O asks.
    #[inline]
    #[must_use]
    pub fn is_aligned(&self, bytes: usize) -> bool {
        self.base.addr().get().is_multiple_of(bytes)
    }

    /// The part of `len` bytes at `offset`, with the same right.
    ///
    /// # Errors
    /// The part is not inside.
    #[inline]
    pub fn subrange(&self, offset: u64, len: u64) -> Result<GuestRange<'a>, RangeError> {
        self.narrow(offset, len, self.access)
    }

    /// The part of `len` bytes at `offset`, for `access`.
    #[inline]
    pub(crate) fn narrow(
        &self,
        offset: u64,
        len: u64,
        access: Access,
    ) -> Result<GuestRange<'a>, RangeError> {
        if !self.access.allows(access) {
            return Err(RangeError::ReadOnly);
        }
        let out_of_bounds = RangeError::OutOfBounds {
            offset,
            len,
            size: self.len,
        };
        let size = usize::try_from(len).map_err(|_| out_of_bounds)?;
        Ok(GuestRange {
            base: self.at(offset, size)?,
            len: size,
            access,
            mapped: PhantomData,
        })
    }

    /// The part of `len` bytes at `offset`, for `access`.
    ///
    /// # Safety
    /// The bytes are inside and `access` is allowed.
    #[inline]
    pub(crate) unsafe fn part(&self, offset: u64, len: u32, access: Access) -> GuestRange<'a> {
        let (offset, len) = (usize::try_from(offset).unwrap_or(usize::MAX), len as usize);
        GuestRange {
            // SAFETY: the caller's promise.
            base: unsafe { self.base.add(offset) },
            len,
            access,
            mapped: PhantomData,
        }
    }

    /// Copies from `offset` on into `into`.
    ///
    /// # Errors
    /// The bytes are not all inside.
    #[inline]
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), RangeError> {
        let source = self.at(offset, into.len())?;
        // SAFETY: `at` checked the bounds, `new` promises that the bytes are readable.
        unsafe { copy::load(source, into) };
        Ok(())
    }

    /// Copies `N` bytes from `offset` on. Each byte is read exactly once.
    ///
    /// # Errors
    /// The bytes are not all inside.
    #[inline]
    pub fn read_array<const N: usize>(&self, offset: u64) -> Result<[u8; N], RangeError> {
        let source = self.at(offset, N)?;
        // SAFETY: `at` checked the bounds, `new` promises that the bytes are readable.
        Ok(unsafe { copy::load_array(source) })
    }

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    /// The bytes are not all inside, or may only be read.
    #[inline]
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), RangeError> {
        let target = self.writable_at(offset, from.len())?;
        // SAFETY: `writable_at` checked the bounds and the right; `new` promises the rest.
        unsafe { copy::store(target, from) };
        Ok(())
    }

    /// Clears `len` bytes from `offset` on.
    ///
    /// # Errors
    /// The bytes are not all inside, or may only be read.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), RangeError> {
        const ZEROES: [u8; 256] = [0; 256];
        let part = self.narrow(offset, len, Access::Write)?;
        let mut done = 0;
        while done < part.len {
            let (zeroes, _) = ZEROES.split_at((part.len - done).min(ZEROES.len()));
            part.write(done as u64, zeroes)?;
            done += zeroes.len();
        }
        Ok(())
    }

    /// One 16-bit number, never torn. An order other than `Relaxed` holds for all later accesses.
    ///
    /// # Errors
    /// The number is not inside or not aligned to 2.
    #[inline]
    pub fn load_u16(&self, offset: u64, order: Ordering) -> Result<u16, RangeError> {
        let source = self.at(offset, 2)?;
        let cell = aligned::<u16>(source, offset)?;
        // SAFETY: readable by `new`, aligned by `aligned`; all access to it is atomic.
        let cell = unsafe { AtomicU16::from_ptr(cell) };
        let value = cell.load(Ordering::Relaxed);
        fence_unless_relaxed(order);
        Ok(u16::from_le(value))
    }

    /// One 32-bit number, never torn. An order other than `Relaxed` holds for all later accesses.
    ///
    /// # Errors
    /// The number is not inside or not aligned to 4.
    #[inline]
    pub fn load_u32(&self, offset: u64, order: Ordering) -> Result<u32, RangeError> {
        let source = self.at(offset, 4)?;
        let cell = aligned::<u32>(source, offset)?;
        // SAFETY: readable by `new`, aligned by `aligned`; all access to it is atomic.
        let cell = unsafe { AtomicU32::from_ptr(cell) };
        let value = cell.load(Ordering::Relaxed);
        fence_unless_relaxed(order);
        Ok(u32::from_le(value))
    }

    /// Stores one 16-bit number in one piece. An order other than `Relaxed` holds for all earlier
    /// accesses.
    ///
    /// # Errors
    /// The number is not inside, not aligned to 2, or may only be read.
    #[inline]
    pub fn store_u16(&self, offset: u64, value: u16, order: Ordering) -> Result<(), RangeError> {
        let target = self.writable_at(offset, 2)?;
        let cell = aligned::<u16>(target, offset)?;
        // SAFETY: writable by `writable_at`, aligned by `aligned`; all access to it is atomic.
        let cell = unsafe { AtomicU16::from_ptr(cell) };
        fence_unless_relaxed(order);
        cell.store(value.to_le(), Ordering::Relaxed);
        Ok(())
    }

    /// Stores one 32-bit number in one piece. An order other than `Relaxed` holds for all earlier
    /// accesses.
    ///
    /// # Errors
    /// The number is not inside, not aligned to 4, or may only be read.
    #[inline]
    pub fn store_u32(&self, offset: u64, value: u32, order: Ordering) -> Result<(), RangeError> {
        let target = self.writable_at(offset, 4)?;
        let cell = aligned::<u32>(target, offset)?;
        // SAFETY: writable by `writable_at`, aligned by `aligned`; all access to it is atomic.
        let cell = unsafe { AtomicU32::from_ptr(cell) };
        fence_unless_relaxed(order);
        cell.store(value.to_le(), Ordering::Relaxed);
        Ok(())
    }

    #[inline]
    fn writable_at(&self, offset: u64, len: usize) -> Result<NonNull<u8>, RangeError> {
        if !self.access.allows(Access::Write) {
            return Err(RangeError::ReadOnly);
        }
        self.at(offset, len)
    }

    /// The first of `len` bytes at `offset`, all of them inside.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> Result<NonNull<u8>, RangeError> {
        match usize::try_from(offset) {
            Ok(start) if start <= self.len && len <= self.len - start => {
                // SAFETY: `start` is at most the length of the range.
                Ok(unsafe { self.base.add(start) })
            }
            _ => Err(RangeError::OutOfBounds {
                offset,
                len: len as u64,
                size: self.len,
            }),
        }
    }
}

impl fmt::Debug for GuestRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestRange")
            .field("len", &self.len)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

#[inline]
fn aligned<T>(at: NonNull<u8>, offset: u64) -> Result<*mut T, RangeError> {
    let cell = at.cast::<T>();
    if cell.is_aligned() {
        Ok(cell.as_ptr())
    } else {
        Err(RangeError::Misaligned {
            offset,
            size: size_of::<T>(),
        })
    }
}

/// Orders by a fence beside a relaxed access, because Rust promises only relaxed atomic loads on
/// memory that is mapped read-only (`std::sync::atomic`, "Atomic accesses to read-only memory").
#[inline]
pub(crate) fn fence_unless_relaxed(order: Ordering) {
    if order != Ordering::Relaxed {
        fence(order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Area;
    use proptest::prelude::*;

    const SIZE: usize = 4096;

    proptest! {
        #[test]
        fn reads_and_writes_behave_like_a_vector(
            writes in proptest::collection::vec(
                (0..SIZE, proptest::collection::vec(any::<u8>(), 0..300)), 1..20),
            reads in proptest::collection::vec((0..SIZE + 2, 0usize..300), 1..20),
        ) {
            let area = Area::anonymous(SIZE).unwrap();
            let range = area.range(0, SIZE as u64, Access::Write).unwrap();
            let mut model = vec![0u8; SIZE];
            for (offset, bytes) in writes {
                let fits = offset + bytes.len() <= SIZE;
                prop_assert_eq!(range.write(offset as u64, &bytes).is_ok(), fits);
                if fits {
                    model[offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
            }
            for (offset, len) in reads {
                let mut bytes = vec![0x55; len];
                let fits = offset + len <= SIZE;
                prop_assert_eq!(range.read(offset as u64, &mut bytes).is_ok(), fits);
                if fits {
                    prop_assert_eq!(&bytes, &model[offset..offset + len]);
                } else {
                    prop_assert!(bytes.iter().all(|&byte| byte == 0x55));
                }
            }
        }

        #[test]
        fn zero_clears_exactly_its_bytes(offset in 0u64..1200, len in 0u64..1200) {
            let area = Area::anonymous(SIZE).unwrap();
            let range = area.range(0, SIZE as u64, Access::Write).unwrap();
            range.write(0, &[0xff; SIZE]).unwrap();
            range.zero(offset, len).unwrap();
            let bytes: [u8; SIZE] = range.read_array(0).unwrap();
            for (at, &byte) in (0..).zip(&bytes) {
                let inside = (offset..offset + len).contains(&at);
                prop_assert_eq!(byte, if inside { 0 } else { 0xff });
            }
        }
    }

    #[test]
    fn arrays_are_read_at_any_alignment() {
        let area = Area::anonymous(64).unwrap();
        let range = area.range(0, 64, Access::Write).unwrap();
        let bytes: Vec<u8> = (0..64).collect();
        range.write(0, &bytes).unwrap();
        for offset in 0..48usize {
            let array: [u8; 16] = range.read_array(offset as u64).unwrap();
            assert_eq!(array, bytes[offset..offset + 16]);
        }
        assert!(range.read_array::<16>(49).is_err());
        assert_eq!(range.read_array::<0>(64), Ok([]));
    }

    #[test]
    fn numbers_are_little_endian_and_aligned() {
        let area = Area::anonymous(16).unwrap();
        let range = area.range(0, 16, Access::Write).unwrap();
        range.store_u16(2, 0x1234, Ordering::Release).unwrap();
        range.store_u32(4, 0x89ab_cdef, Ordering::SeqCst).unwrap();
        assert_eq!(
            range.read_array(2),
            Ok([0x34, 0x12, 0xef, 0xcd, 0xab, 0x89])
        );
        assert_eq!(range.load_u16(2, Ordering::Acquire), Ok(0x1234));
        assert_eq!(range.load_u32(4, Ordering::Relaxed), Ok(0x89ab_cdef));
        let misaligned = |offset, size| RangeError::Misaligned { offset, size };
        assert_eq!(range.load_u16(3, Ordering::Acquire), Err(misaligned(3, 2)));
        assert_eq!(
            range.store_u32(6, 0, Ordering::Release),
            Err(misaligned(6, 4))
        );
        assert!(range.load_u16(16, Ordering::Relaxed).is_err());
        assert!(range.store_u32(14, 0, Ordering::Relaxed).is_err());
    }

    #[test]
    fn alignment_is_that_of_the_memory_not_of_the_offset() {
        let area = Area::anonymous(16).unwrap();
        let odd = area.range(1, 8, Access::Write).unwrap();
        assert!(odd.load_u16(0, Ordering::Relaxed).is_err());
        assert!(odd.load_u16(1, Ordering::Relaxed).is_ok());
    }

    #[test]
    fn read_ranges_of_a_writable_area_refuse_stores() {
        let area = Area::anonymous(16).unwrap();
        let range = area.range(0, 16, Access::Read).unwrap();
        assert_eq!(range.write(0, b"x"), Err(RangeError::ReadOnly));
        assert_eq!(range.zero(0, 1), Err(RangeError::ReadOnly));
        assert_eq!(
            range.store_u16(0, 1, Ordering::Relaxed),
            Err(RangeError::ReadOnly)
        );
        assert_eq!(
            range.store_u32(0, 1, Ordering::Relaxed),
            Err(RangeError::ReadOnly)
        );
        assert_eq!(range.read_array(0), Ok([0u8; 16]));
    }

    #[test]
    fn subranges_stay_inside() {
        let area = Area::anonymous(64).unwrap();
        let range = area.range(16, 16, Access::Write).unwrap();
        range.subrange(8, 8).unwrap().write(0, b"inside!!").unwrap();
        assert_eq!(
            area.range(24, 8, Access::Read).unwrap().read_array(0),
            Ok(*b"inside!!")
        );
        assert!(range.subrange(8, 9).is_err());
        assert!(range.subrange(u64::MAX, 2).is_err());
        assert!(range.subrange(16, 0).unwrap().is_empty());
    }
}
