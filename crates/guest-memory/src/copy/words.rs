//! Copies by relaxed atomics, word by word: for every processor, and for Miri.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

const WORD: usize = size_of::<u64>();

/// Copies `into.len()` bytes out of shared memory.
///
/// # Safety
/// The bytes at `from` are mapped and readable, and no Rust reference covers them.
#[inline]
pub(crate) unsafe fn load(from: NonNull<u8>, into: &mut [u8]) {
    let (head, rest) = into.split_at_mut(from.align_offset(WORD).min(into.len()));
    let (words, tail) = rest.as_chunks_mut::<WORD>();
    let mut from = from;
    for byte in head {
        // SAFETY: the caller promises as many bytes as `into` has.
        (*byte, from) = unsafe { load_byte(from) };
    }
    for word in words {
        // SAFETY: as above, and the head ended where a word is aligned.
        (*word, from) = unsafe { load_word(from) };
    }
    for byte in tail {
        // SAFETY: as above.
        (*byte, from) = unsafe { load_byte(from) };
    }
}

/// Copies `from` into shared memory.
///
/// # Safety
/// The bytes at `to` are mapped and writable, and no Rust reference covers them.
#[inline]
pub(crate) unsafe fn store(to: NonNull<u8>, from: &[u8]) {
    let (head, rest) = from.split_at(to.align_offset(WORD).min(from.len()));
    let (words, tail) = rest.as_chunks::<WORD>();
    let mut to = to;
    for byte in head {
        // SAFETY: the caller promises as many bytes as `from` has.
        to = unsafe { store_byte(to, *byte) };
    }
    for word in words {
        // SAFETY: as above, and the head ended where a word is aligned.
        to = unsafe { store_word(to, *word) };
    }
    for byte in tail {
        // SAFETY: as above.
        to = unsafe { store_byte(to, *byte) };
    }
}

/// The byte at `at`, and where the next one is.
///
/// # Safety
/// As [`load`], for one byte.
#[inline]
unsafe fn load_byte(at: NonNull<u8>) -> (u8, NonNull<u8>) {
    // SAFETY: the caller's promise; all access to the byte is atomic.
    let cell = unsafe { AtomicU8::from_ptr(at.as_ptr()) };
    // SAFETY: one past a mapped byte.
    let next = unsafe { at.add(1) };
    (cell.load(Relaxed), next)
}

/// The word at `at`, and where the next one is.
///
/// # Safety
/// As [`load`], for one word, which is aligned.
#[inline]
unsafe fn load_word(at: NonNull<u8>) -> ([u8; WORD], NonNull<u8>) {
    // SAFETY: the caller's promise; all access to the word is atomic.
    let cell = unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) };
    // SAFETY: one past a mapped word.
    let next = unsafe { at.add(WORD) };
    (cell.load(Relaxed).to_ne_bytes(), next)
}

/// Stores a byte; returns where the next one is.
///
/// # Safety
/// As [`store`], for one byte.
#[inline]
unsafe fn store_byte(at: NonNull<u8>, value: u8) -> NonNull<u8> {
    // SAFETY: the caller's promise; all access to the byte is atomic.
    let cell = unsafe { AtomicU8::from_ptr(at.as_ptr()) };
    cell.store(value, Relaxed);
    // SAFETY: one past a mapped byte.
    unsafe { at.add(1) }
}

/// Stores a word; returns where the next one is.
///
/// # Safety
/// As [`store`], for one word, which is aligned.
#[inline]
unsafe fn store_word(at: NonNull<u8>, value: [u8; WORD]) -> NonNull<u8> {
    // SAFETY: the caller's promise; all access to the word is atomic.
    let cell = unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) };
    cell.store(u64::from_ne_bytes(value), Relaxed);
    // SAFETY: one past a mapped word.
    unsafe { at.add(WORD) }
}
