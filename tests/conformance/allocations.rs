//! What the backend allocates: nothing for a request in steady state, and little for a guest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use frontend_shim::{Disk, Frontend, Operation};
use tests::{Bus, LIMIT, Rig, make_disk};

/// Reads that are counted, and those before them in which every buffer finds its size.
const READS: u64 = 10_000;
const WARM_UP: u64 = 1_000;
/// Bytes of a read, and of the disk.
const READ: usize = 4096;
const BYTES: usize = 1 << 20;

/// Guests whose memory is counted, after as many that are not: tables that all share grow in steps.
const GUESTS: i64 = 16;
/// Most bytes that a connected guest with a disk may cost. Measured: 16,330.
const BYTES_PER_GUEST: i64 = 16 << 10;

/// What the threads of one test allocate that count.
struct Counter {
    allocations: AtomicU64,
    /// Allocated and not freed.
    bytes: AtomicI64,
}

impl Counter {
    const fn new() -> Self {
        Self {
            allocations: AtomicU64::new(0),
            bytes: AtomicI64::new(0),
        }
    }
}

thread_local! {
    static COUNTER: Cell<Option<&'static Counter>> = const { Cell::new(None) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(allocations: u64, bytes: usize, freed: usize) {
    // A thread that is ending has no such variable any more.
    if let Ok(Some(counter)) = COUNTER.try_with(Cell::get) {
        let change = i64::try_from(bytes).unwrap_or(0) - i64::try_from(freed).unwrap_or(0);
        counter
            .allocations
            .fetch_add(allocations, Ordering::Relaxed);
        counter.bytes.fetch_add(change, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "the only way to see every allocation")]
// SAFETY: each call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size(), 0);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, 0, layout.size());
        // SAFETY: the caller keeps to the contract of `dealloc`, and `memory` is the system's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size(), 0);
        // SAFETY: the caller keeps to the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size, layout.size());
        // SAFETY: the caller keeps to the contract of `realloc`, and `memory` is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[test]
fn ten_thousand_reads_allocate_nothing_in_the_backend() {
    static COUNTED: Counter = Counter::new();
    let allocations = || COUNTED.allocations.load(Ordering::Relaxed);
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let spec = rig.machine.spec(bus.guest);
    rig.while_serving_as(
        || COUNTER.set(Some(&COUNTED)),
        |_, _| {
            let mut frontend = Frontend::open(&spec, 0).unwrap();
            frontend.connect(LIMIT).unwrap();
            let mut disk = Disk::open(&mut frontend, 0).unwrap();
            assert_ne!(allocations(), 0, "nothing is counted");
            let mut read = |at: u64| {
                let sector = at * 8 % (BYTES as u64 / 512);
                let operation = Operation::Read { sector, len: READ };
                disk.run(&mut frontend, operation).unwrap();
            };
            (0..WARM_UP).for_each(&mut read);
            let before = allocations();
            (0..READS).for_each(&mut read);
            assert_eq!(allocations() - before, 0);
        },
    );
}

#[test]
fn a_guest_with_a_disk_costs_at_most_16_kib_of_the_backend() {
    static COUNTED: Counter = Counter::new();
    let bytes = || COUNTED.bytes.load(Ordering::Relaxed);
    let mut rig = Rig::start();
    rig.while_serving_as(
        || COUNTER.set(Some(&COUNTED)),
        |machine, toolstack| {
            let image = machine.file("disk.img");
            make_disk(&image, BYTES);
            let line = format!("type=blk,mode=ro,path={}", image.display());
            let mut bring_up = |number: i64| {
                let bus = Bus::of(machine.create_domain(&format!("guest-{number}")));
                toolstack.make_bus(bus);
                toolstack.make_device(bus, 0, &line);
                let mut frontend = Frontend::open(&machine.spec(bus.guest), 0).unwrap();
                frontend.connect(LIMIT).unwrap();
                let mut disk = Disk::open(&mut frontend, 0).unwrap();
                let operation = Operation::Read {
                    sector: 0,
                    len: READ,
                };
                disk.run(&mut frontend, operation).unwrap();
                (frontend, disk)
            };
            let _first: Vec<_> = (0..GUESTS).map(&mut bring_up).collect();
            let before = bytes();
            assert!(before > 0, "nothing is counted");
            let _counted: Vec<_> = (GUESTS..2 * GUESTS).map(&mut bring_up).collect();
            let each = (bytes() - before) / GUESTS;
            assert!(each > 0, "a guest that costs nothing was not counted");
            assert!(each <= BYTES_PER_GUEST, "{each} bytes for each guest");
        },
    );
}
