//! A block device that has served some requests allocates nothing for more of them, whatever does
//! its I/O: on no thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use guest_memory::{Area, FlatSpace};
use rustix::event::{PollFd, PollFlags, Timespec};
use virtio_devices::blk::{Blk, BlkConfig};
use virtio_devices::{DeviceModel, Engine, EngineKind, Progress};
use virtqueue::{DeviceQueue, DriverQueue, QueueLayout, RingFeatures, Segment};

/// Batches that are counted, and those before them in which every buffer finds its size.
const BATCHES: u64 = 300;
const WARM_UP: u64 = 100;
/// Requests in flight at once, half of them writes.
const DEPTH: u64 = 32;

const QUEUE_SIZE: u16 = 128;
const BLOCK: u64 = 4096;
const BASE: u64 = 1 << 48;
/// Where the requests' headers and status bytes begin, and the data.
const REQUESTS: u64 = 1 << 16;
const DATA: u64 = 1 << 17;
const FLUSH: u128 = 1 << 9;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "the only way to see every allocation")]
// SAFETY: each call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`, and `memory` is the system's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `realloc`, and `memory` is the system's.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Offers a batch and polls until all of it has come back.
fn batch(
    blk: &mut Blk,
    driver: &mut DriverQueue,
    space: &FlatSpace,
    events: &mut Vec<virtio_devices::DeviceEvent>,
) {
    for n in 0..DEPTH {
        let request = BASE + REQUESTS + n * 32;
        let segment = |addr, len| Segment { addr, len };
        let header = segment(request, 16);
        let status = segment(request + 16, 1);
        let data = segment(BASE + DATA + n * BLOCK, 4096);
        if n % 2 == 0 {
            driver.add(&[header, data], &[status]).unwrap();
        } else {
            driver.add(&[header], &[data, status]).unwrap();
        }
    }
    driver.publish();
    blk.kick(0);
    loop {
        events.clear();
        let progress = blk.poll(space, 64, events);
        while driver.pop_used().unwrap().is_some() {}
        if driver.offered() == 0 {
            return;
        }
        if progress == Progress::Idle {
            let fd = blk.wake_fd().unwrap();
            let limit = Timespec {
                tv_sec: 30,
                tv_nsec: 0,
            };
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1));
        }
    }
}

fn allocations_of(kind: EngineKind, direct: bool) -> Option<u64> {
    let skipped = |why: &dyn std::fmt::Display| {
        eprintln!("\n*** NOT TESTED: {kind}, direct {direct}: {why} ***\n");
    };
    let engine = Engine::of_kind(kind)
        .inspect_err(|error| skipped(error))
        .ok()?;
    let exe = std::env::current_exe().unwrap();
    let image = tempfile::NamedTempFile::new_in(exe.parent().unwrap()).unwrap();
    std::fs::write(image.path(), vec![0x5a; 1 << 20]).unwrap();
    let config = BlkConfig {
        path: image.path().into(),
        read_only: false,
        serial: String::new(),
        queues: 1,
        direct,
    };
    let mut blk = Blk::open(&config, &engine)
        .inspect_err(|error| skipped(error))
        .ok()?;
    let area = Area::anonymous(1 << 20).unwrap();
    let space = FlatSpace::new(BASE, &area);
    for n in 0..DEPTH {
        // Writes at the front, reads behind them.
        let (kind, sector) = if n % 2 == 0 {
            (1u32, n * 8)
        } else {
            (0, 1024 + n * 8)
        };
        let header = space_range(&area, REQUESTS + n * 32);
        header.write(0, &kind.to_le_bytes()).unwrap();
        header.write(8, &sector.to_le_bytes()).unwrap();
    }
    let layout = QueueLayout::contiguous(BASE, QUEUE_SIZE);
    let ring = RingFeatures::default();
    let mut driver = DriverQueue::new(&space, layout, ring).unwrap();
    blk.start_queue(0, DeviceQueue::new(&space, layout, ring).unwrap(), FLUSH);
    let mut events = Vec::with_capacity(64);
    for _ in 0..WARM_UP {
        batch(&mut blk, &mut driver, &space, &mut events);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..BATCHES {
        batch(&mut blk, &mut driver, &space, &mut events);
    }
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    for n in 0..DEPTH {
        let status: [u8; 1] = space_range(&area, REQUESTS + n * 32)
            .read_array(16)
            .unwrap();
        assert_eq!(status, [0], "{kind}, direct {direct}, request {n}");
    }
    Some(after - before)
}

fn space_range(area: &Area, offset: u64) -> guest_memory::GuestRange<'_> {
    area.range(offset, 32, guest_memory::Access::Write).unwrap()
}

#[test]
fn no_engine_allocates_in_steady_state() {
    // One test, so that nobody else allocates meanwhile.
    assert_ne!(ALLOCATIONS.load(Ordering::Relaxed), 0, "nothing is counted");
    for kind in [
        EngineKind::IoUring,
        EngineKind::LinuxAio,
        EngineKind::Threads,
    ] {
        for direct in [false, true] {
            if let Some(allocations) = allocations_of(kind, direct) {
                assert_eq!(allocations, 0, "{kind}, direct {direct}");
            }
        }
    }
}
