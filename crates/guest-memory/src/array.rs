//! Arrays whose place, alignment and right are checked once, for what is read and written all the
//! time: the parts of a virtqueue.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::range::fence_unless_relaxed;
use crate::{Access, Lease, LeasedRange, RangeError};

/// A right that is known when the program is compiled.
pub trait Right: sealed::Right {
    /// The same right as a value.
    const ACCESS: Access;
}

/// Loads only: code that would store does not compile.
#[derive(Clone, Copy, Debug)]
pub enum ReadOnly {}

/// Loads and stores.
#[derive(Clone, Copy, Debug)]
pub enum ReadWrite {}

/// A little-endian number that is loaded and stored in one piece.
pub trait Word: sealed::Word + Copy {}

/// 2^n elements of `N` words each in leased memory. An index is taken modulo 2^n, so no access can
/// fail, or is refused.
#[derive(Debug)]
pub struct LeasedArray<W, const N: usize, R> {
    base: NonNull<[W; N]>,
    mask: usize,
    right: PhantomData<R>,
    _lease: Lease,
}

// SAFETY: `base` points into the mapping that the lease keeps alive, and is reached through atomic
// accesses only, which may come from any thread.
unsafe impl<W, const N: usize, R> Send for LeasedArray<W, N, R> {}
// SAFETY: as above.
unsafe impl<W, const N: usize, R> Sync for LeasedArray<W, N, R> {}

impl<W: Word, const N: usize, R: Right> LeasedArray<W, N, R> {
    /// The 2^`order` elements from `offset` of a window on, with a lease of their own.
    ///
    /// # Errors
    /// They are not all inside, not aligned to the word, or the window does not give the right.
    pub fn new(window: &LeasedRange, offset: u64, order: u32) -> Result<Self, RangeError> {
        let bytes = 1u64
            .checked_shl(order)
            .and_then(|count| count.checked_mul(size_of::<[W; N]>() as u64))
            .unwrap_or(u64::MAX);
        let range = window.range().narrow(offset, bytes, R::ACCESS)?;
        let base = range.base().cast::<[W; N]>();
        if !base.is_aligned() {
            return Err(RangeError::Misaligned {
                offset,
                size: align_of::<W>(),
            });
        }
        Ok(Self {
            base,
            mask: (1 << order) - 1,
            right: PhantomData,
            _lease: window.lease().clone(),
        })
    }

    /// Copies one element, each word exactly once. An order other than `Relaxed` holds for all
    /// later accesses.
    #[inline]
    #[must_use]
    pub fn load(&self, index: usize, order: Ordering) -> [W; N] {
        // SAFETY: a masked index is below the number of elements.
        unsafe { self.load_at(index & self.mask, order) }
    }

    /// The index of the last element.
    #[inline]
    #[must_use]
    pub fn last(&self) -> usize {
        self.mask
    }

    /// As [`LeasedArray::load`]; `None` if there are not so many elements.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize, order: Ordering) -> Option<[W; N]> {
        if index > self.mask {
            return None;
        }
        // SAFETY: the index was checked just now.
        Some(unsafe { self.load_at(index, order) })
    }

    /// # Safety
    /// There is such an element.
    #[inline]
    unsafe fn load_at(&self, index: usize, order: Ordering) -> [W; N] {
        // SAFETY: the caller's promise; `new` checked all elements.
        let words = unsafe { self.base.add(index) }.cast();
        let value = std::array::from_fn(|word| {
            // SAFETY: `word` is below `N`.
            let at = unsafe { words.add(word) };
            // SAFETY: `new` checked that the element is mapped, aligned and readable.
            unsafe { W::load(at) }
        });
        fence_unless_relaxed(order);
        value
    }
}

impl<W: Word, const N: usize> LeasedArray<W, N, ReadWrite> {
    /// Stores one element, each word in one piece. An order other than `Relaxed` holds for all
    /// earlier accesses.
    #[inline]
    pub fn store(&self, index: usize, value: [W; N], order: Ordering) {
        // SAFETY: a masked index is below the number of elements.
        let words: NonNull<W> = unsafe { self.base.add(index & self.mask) }.cast();
        fence_unless_relaxed(order);
        for (word, value) in value.into_iter().enumerate() {
            // SAFETY: `word` is below `N`.
            let at = unsafe { words.add(word) };
            // SAFETY: `new` checked that the element is mapped, aligned and writable.
            unsafe { W::store(at, value) };
        }
    }
}

impl Right for ReadOnly {
    const ACCESS: Access = Access::Read;
}

impl Right for ReadWrite {
    const ACCESS: Access = Access::Write;
}

mod sealed {
    use std::ptr::NonNull;

    pub trait Right {}
    impl Right for super::ReadOnly {}
    impl Right for super::ReadWrite {}

    pub trait Word {
        /// # Safety
        /// The word is mapped, readable and aligned.
        unsafe fn load(at: NonNull<Self>) -> Self;
        /// # Safety
        /// The word is mapped, writable and aligned.
        unsafe fn store(at: NonNull<Self>, value: Self);
    }
}

macro_rules! word {
    ($word:ty, $atomic:ty) => {
        impl Word for $word {}
        impl sealed::Word for $word {
            #[inline]
            unsafe fn load(at: NonNull<Self>) -> Self {
                // SAFETY: the caller's promise; all access to the word is atomic.
                let cell = unsafe { <$atomic>::from_ptr(at.as_ptr()) };
                Self::from_le(cell.load(Ordering::Relaxed))
            }

            #[inline]
            unsafe fn store(at: NonNull<Self>, value: Self) {
                // SAFETY: the caller's promise; all access to the word is atomic.
                let cell = unsafe { <$atomic>::from_ptr(at.as_ptr()) };
                cell.store(value.to_le(), Ordering::Relaxed);
            }
        }
    };
}

word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Area;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

    fn window(bytes: u64) -> LeasedRange {
        let area = Area::anonymous(4096).unwrap();
        area.lease().window(16, bytes, Access::Write).unwrap()
    }

    #[test]
    fn elements_are_little_endian_and_indexed_modulo_their_number() {
        let window = window(64);
        let array = LeasedArray::<u32, 2, ReadWrite>::new(&window, 4, 2).unwrap();
        for (index, first) in (0..4).zip(0..) {
            array.store(index, [first, 0x0102_0304], Release);
        }
        let bytes: [u8; 8] = window.range().read_array(4 + 3 * 8).unwrap();
        assert_eq!(bytes, [3, 0, 0, 0, 4, 3, 2, 1]);
        for index in [2, 6, usize::MAX - 1] {
            assert_eq!(array.load(index, Acquire), [2, 0x0102_0304]);
        }
        assert_eq!(array.get(3, Acquire), Some([3, 0x0102_0304]));
        assert_eq!(array.get(4, Acquire), None);
        let beyond: [u8; 28] = window.range().read_array(36).unwrap();
        assert_eq!(beyond, [0; 28]);
    }

    #[test]
    fn place_and_right_are_checked_once() {
        let window = window(64);
        assert!(LeasedArray::<u64, 2, ReadWrite>::new(&window, 0, 2).is_ok());
        assert!(LeasedArray::<u64, 2, ReadWrite>::new(&window, 0, 3).is_err());
        assert!(LeasedArray::<u16, 1, ReadOnly>::new(&window, 62, 0).is_ok());
        assert!(LeasedArray::<u16, 1, ReadOnly>::new(&window, 62, 1).is_err());
        assert!(LeasedArray::<u16, 1, ReadOnly>::new(&window, 64, 0).is_err());
        for order in [47, 62, 63, 64, u32::MAX] {
            assert!(LeasedArray::<u64, 2, ReadOnly>::new(&window, 0, order).is_err());
        }
        assert_eq!(
            LeasedArray::<u32, 2, ReadOnly>::new(&window, 2, 0).unwrap_err(),
            RangeError::Misaligned { offset: 2, size: 4 }
        );
        let read_only = window.lease().window(0, 64, Access::Read).unwrap();
        assert_eq!(
            LeasedArray::<u16, 1, ReadWrite>::new(&read_only, 0, 0).unwrap_err(),
            RangeError::ReadOnly
        );
        assert!(LeasedArray::<u16, 1, ReadOnly>::new(&read_only, 0, 0).is_ok());
    }

    #[test]
    fn array_holds_a_lease() {
        let area = Area::anonymous(4096).unwrap();
        let window = area.lease().window(0, 4, Access::Write).unwrap();
        let array = LeasedArray::<u16, 1, ReadWrite>::new(&window, 2, 0).unwrap();
        drop(window);
        assert_eq!(area.leases(), 1);
        drop(area);
        array.store(0, [7], Relaxed);
        assert_eq!(array.load(0, Relaxed), [7]);
    }
}
