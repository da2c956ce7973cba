//! A request in steady state allocates nothing in the backend.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use frontend_shim::{Disk, Frontend, Operation};
use tests::{LIMIT, Rig};

/// Reads that are counted, and those before them in which every buffer finds its size.
const READS: u64 = 10_000;
const WARM_UP: u64 = 1_000;
/// Bytes of a read, and of the disk.
const READ: usize = 4096;
const BYTES: usize = 1 << 20;

/// Allocations of threads that count theirs.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // A thread that is ending has no such variable any more.
    if COUNTS.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "the only way to see every allocation")]
// SAFETY: each call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`, and `memory` is the system's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract of `realloc`, and `memory` is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[test]
fn ten_thousand_reads_allocate_nothing_in_the_backend() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let spec = rig.machine.spec(bus.guest);
    rig.while_serving_as(
        || COUNTS.set(true),
        |_, _| {
            let mut frontend = Frontend::open(&spec, 0).unwrap();
            frontend.connect(LIMIT).unwrap();
            let mut disk = Disk::open(&mut frontend, 0).unwrap();
            assert_ne!(ALLOCATIONS.load(Ordering::Relaxed), 0, "nothing is counted");
            let mut read = |at: u64| {
                let sector = at * 8 % (BYTES as u64 / 512);
                let operation = Operation::Read { sector, len: READ };
                disk.run(&mut frontend, operation).unwrap();
            };
            (0..WARM_UP).for_each(&mut read);
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            (0..READS).for_each(&mut read);
            assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
        },
    );
}
