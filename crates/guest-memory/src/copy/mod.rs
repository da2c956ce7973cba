//! Copies between private memory and memory that others write.
//!
//! Each byte of either side is read or written exactly once; in which order, and in how large
//! pieces, is not said. What must arrive in one piece is a [`crate::LeasedArray`], or a number of
//! [`crate::GuestRange`].

use std::ptr::NonNull;

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod moves;
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
mod words;

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) use moves::{load, store};
#[cfg(any(miri, not(target_arch = "x86_64")))]
pub(crate) use words::{load, store};

/// Copies `N` bytes out of shared memory.
///
/// # Safety
/// As [`load`].
#[inline]
pub(crate) unsafe fn load_array<const N: usize>(from: NonNull<u8>) -> [u8; N] {
    let mut array = [0; N];
    // SAFETY: the caller's promise.
    unsafe { load(from, &mut array) };
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than two of the longest pieces and one of each that is shorter.
    const LONGEST: usize = 2 * 64 + 48 + 16;
    const ROOM: usize = 8 + LONGEST + 8;

    type Load = unsafe fn(NonNull<u8>, &mut [u8]);
    type Store = unsafe fn(NonNull<u8>, &[u8]);

    /// Every length at every alignment arrives, and nothing beside it is touched.
    fn copies_exactly(load: Load, store: Store) {
        let bytes: Vec<u8> = (1..=u8::MAX).cycle().take(LONGEST).collect();
        for start in 0..8 {
            for len in 0..=LONGEST {
                let mut memory = [0xee_u8; ROOM];
                let mut expected = memory;
                expected[start..start + len].copy_from_slice(&bytes[..len]);
                let at = NonNull::from(&mut memory[start..start + len]).cast();
                // SAFETY: `len` bytes from there on lie in `memory`, which nobody else uses.
                unsafe { store(at, &bytes[..len]) };
                assert_eq!(memory, expected, "{len} bytes to {start}");

                let mut found = vec![0; len];
                let at = NonNull::from(&mut memory[start..start + len]).cast();
                // SAFETY: as above.
                unsafe { load(at, &mut found) };
                assert_eq!(found, bytes[..len], "{len} bytes from {start}");
            }
        }
    }

    #[test]
    fn a_copy_is_exact_at_any_length_and_alignment() {
        copies_exactly(load, store);
    }

    #[test]
    fn so_is_the_portable_one() {
        copies_exactly(words::load, words::store);
    }
}
