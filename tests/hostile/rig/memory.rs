//! How much memory a thread holds: what it allocated, less what it freed. Backend and guest of a
//! stage are on the thread of the test, so that what a guest makes the backend keep is seen,
//! whatever other tests do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread holds.
pub(crate) fn held() -> i64 {
    HELD.get()
}

fn count(bytes: usize, sign: i64) {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    // A thread that is ending has no such variable any more.
    let _ = HELD.try_with(|held| held.set(held.get() + sign * bytes));
}

#[expect(unsafe_code, reason = "the only way to see every allocation")]
// SAFETY: each call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller keeps to the contract of `dealloc`, and `memory` is the system's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: the caller keeps to the contract of `realloc`, and `memory` is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[test]
fn what_a_thread_holds_is_counted() {
    let before = held();
    let bytes = vec![0_u8; 5000];
    assert_eq!(held() - before, 5000);
    drop(bytes);
    assert_eq!(held(), before);
}
