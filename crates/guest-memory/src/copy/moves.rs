//! Copies by the processor's own moves, which the compiler does not look into: a byte that changes
//! meanwhile is read as the old or the new one, as by a relaxed atomic load, and 16 bytes take two
//! instructions instead of four.

use std::arch::asm;
use std::ptr::NonNull;

/// Copies `into.len()` bytes out of shared memory.
///
/// # Safety
/// The bytes at `from` are mapped and readable, and no Rust reference covers them.
#[inline]
pub(crate) unsafe fn load(from: NonNull<u8>, into: &mut [u8]) {
    // SAFETY: the caller's promise, and `into` is as long and borrowed alone.
    unsafe { copy(from.as_ptr(), into.as_mut_ptr(), into.len()) };
}

/// Copies `from` into shared memory.
///
/// # Safety
/// The bytes at `to` are mapped and writable, and no Rust reference covers them.
#[inline]
pub(crate) unsafe fn store(to: NonNull<u8>, from: &[u8]) {
    // SAFETY: the caller's promise, and `from` is as long.
    unsafe { copy(from.as_ptr(), to.as_ptr(), from.len()) };
}

/// Moves one piece through a register, by the unaligned moves of every x86-64.
macro_rules! piece {
    ($from:ident, $to:ident, $at:literal, $register:ident, $load:literal, $store:literal) => {
        // SAFETY: the caller of `copy` promises the bytes of both sides, and the condition around
        // this has counted them. The moves touch nothing else, neither stack nor flags.
        unsafe {
            asm!($load, $store, from = in(reg) $from, to = in(reg) $to, at = const $at,
                piece = out($register) _, options(nostack, preserves_flags));
        }
    };
}

/// Copies `len` bytes, in pieces from the front to the back: as many of 64 as there are, then one
/// of 32, 16, 8 and 4 if it is left, and single bytes.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`, and the two do not overlap.
#[inline]
unsafe fn copy(mut from: *const u8, mut to: *mut u8, mut len: usize) {
    macro_rules! sixteen {
        ($at:literal) => {
            piece!(
                from,
                to,
                $at,
                xmm_reg,
                "movups {piece}, [{from} + {at}]",
                "movups [{to} + {at}], {piece}"
            )
        };
    }
    macro_rules! go_on {
        ($bytes:literal) => {
            // These bytes were inside of both sides, or end them.
            from = from.wrapping_add($bytes);
            to = to.wrapping_add($bytes);
        };
    }
    while len >= 64 {
        sixteen!(0);
        sixteen!(16);
        sixteen!(32);
        sixteen!(48);
        go_on!(64);
        len -= 64;
    }
    if len & 32 != 0 {
        sixteen!(0);
        sixteen!(16);
        go_on!(32);
    }
    if len & 16 != 0 {
        sixteen!(0);
        go_on!(16);
    }
    if len & 8 != 0 {
        piece!(
            from,
            to,
            0,
            reg,
            "mov {piece}, [{from} + {at}]",
            "mov [{to} + {at}], {piece}"
        );
        go_on!(8);
    }
    if len & 4 != 0 {
        piece!(
            from,
            to,
            0,
            reg,
            "mov {piece:e}, [{from} + {at}]",
            "mov [{to} + {at}], {piece:e}"
        );
        go_on!(4);
    }
    for _ in 0..len & 3 {
        piece!(
            from,
            to,
            0,
            reg_byte,
            "mov {piece}, [{from} + {at}]",
            "mov [{to} + {at}], {piece}"
        );
        go_on!(1);
    }
}
