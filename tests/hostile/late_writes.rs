//! Memory that changes at the worst moment.
//!
//! Attack: At each look-up of an address, when it has been read and is about to be used, it
//! overwrites everything that the device has read of the request: the available ring, the descriptors
//! up to the one that is looked up, the indirect table, and, once a thread has taken over, the header.
//!
//! Outcome: Nothing is read a second time: the request is served as it was when it was checked,
//! inline or by a thread, and its own head is given back (virtio-devices 1.7).
//!
//! Line: none.
//!
//! Class: 1 (XSA-155)

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use guest_memory::{
    Access, AddressSpace, Area, FlatSpace, GuestRange, LeasedRange, TranslateError,
};
use tempfile::TempDir;
use tests::{LIMIT, make_disk, pattern};
use virtio_devices::blk::{Blk, BlkConfig};
use virtio_devices::{DeviceModel as _, Engine};
use virtqueue::{DeviceQueue, QueueLayout, RingFeatures};

use crate::rig::log::Log;
use crate::rig::stage::{AREA, INDIRECT, NEXT, WRITE};

const BYTES: usize = 64 << 10;
/// Where the parts of the request lie.
const TABLE: u64 = AREA + 0x1000;
const HEADER: u64 = AREA + 0x2000;
const DATA: u64 = AREA + 0x3000;
const STATUS: u64 = DATA + 512;
const END: u64 = AREA + 0x4000;
/// Descriptors of the queue.
const SIZE: u16 = 8;
/// The head of the request.
const HEAD: u16 = 4;
/// Its sector.
const SECTOR: u64 = 5;
/// Sectors and types, in whatever it is written over, that are possible and wrong.
const WRONG: u8 = 1;

/// A driver's memory that changes whenever an address in it is looked up.
struct Treacherous {
    memory: FlatSpace,
    looks: Cell<u32>,
    /// The table is copied after its address is looked up, so only from the next look on.
    indirect: bool,
}

impl Treacherous {
    /// Overwrites what has been read by now, when `addr` is looked up.
    fn change(&self, addr: u64, leased: bool) {
        let looks = self.looks.replace(self.looks.get() + 1);
        // A chain in the ring may be looked up while it is walked: what comes later is unread.
        let parts = [HEADER, DATA, STATUS];
        let unread = if self.indirect || leased {
            0
        } else {
            parts.iter().filter(|part| **part > addr).count() as u64
        };
        let end = AREA + 16 * (u64::from(HEAD) + parts.len() as u64);
        self.fill(AREA, end - 16 * unread - AREA);
        self.fill(end, TABLE - end);
        if !self.indirect || looks > 0 {
            self.fill(TABLE, HEADER - TABLE);
        }
        // A thread has its own look-up of the request, after the header was copied.
        if leased {
            self.fill(HEADER, 16);
        }
    }

    fn fill(&self, addr: u64, len: u64) {
        // The used ring is the device's.
        let used = QueueLayout::contiguous(AREA, SIZE).used;
        for at in addr..addr + len {
            if !(used..used + 4 + 8 * u64::from(SIZE)).contains(&at) {
                self.write(at, &[WRONG]);
            }
        }
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        let range = self.memory.translate(addr, len, Access::Write).unwrap();
        range.write(0, bytes).unwrap();
    }

    fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let size = u32::try_from(len).unwrap();
        let range = self.memory.translate(addr, size, Access::Read).unwrap();
        range.read(0, &mut bytes).unwrap();
        bytes
    }

    fn describe(&self, at: u64, (addr, len, flags, next): (u64, u32, u16, u16)) {
        self.write(at, &addr.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }
}

impl AddressSpace for Treacherous {
    fn translate(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'_>, TranslateError> {
        self.change(addr, false);
        self.memory.translate(addr, len, access)
    }

    fn translate_leased(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<LeasedRange, TranslateError> {
        self.change(addr, true);
        self.memory.translate_leased(addr, len, access)
    }
}

/// Serves one request of `kind` and gives the image afterwards.
fn serve(kind: u8, indirect: bool) -> (Treacherous, Vec<u8>) {
    let log = Log::start();
    let dir = tempfile::tempdir().unwrap();
    let mut device = device(&dir);
    let area = Area::anonymous(usize::try_from(END - AREA).unwrap()).unwrap();
    let space = Treacherous {
        memory: FlatSpace::new(AREA, &area),
        looks: Cell::new(0),
        indirect,
    };
    prepare(&space, kind, indirect);
    let layout = QueueLayout::contiguous(AREA, SIZE);
    let features = RingFeatures {
        indirect,
        event_idx: false,
    };
    let queue = DeviceQueue::new(&space.memory, layout, features).unwrap();
    device.start_queue(0, queue, 0);
    device.kick(0);
    let deadline = Instant::now() + LIMIT;
    let mut events = Vec::new();
    while space.read(layout.used + 2, 2) != [1, 0] {
        assert!(Instant::now() < deadline, "never came: {events:?}");
        device.poll(&space, 1, &mut events);
        thread::yield_now();
    }
    assert!(space.looks.get() > 0);
    assert_eq!(space.read(STATUS, 1), [0]);
    assert_eq!(
        space.read(layout.used + 4, 4),
        u32::from(HEAD).to_le_bytes()
    );
    log.assert_quiet();
    (space, fs::read(image(&dir)).unwrap())
}

fn image(dir: &TempDir) -> PathBuf {
    dir.path().join("disk.img")
}

fn device(dir: &TempDir) -> Blk {
    make_disk(&image(dir), BYTES);
    let config = BlkConfig {
        path: image(dir),
        read_only: false,
        serial: String::new(),
        queues: 1,
        direct: false,
    };
    Blk::open(&config, &Engine::new().unwrap()).unwrap()
}

/// Everything up to the kick.
fn prepare(space: &Treacherous, kind: u8, indirect: bool) {
    let data = if kind == 0 { WRITE } else { 0 };
    let parts = [
        (HEADER, 16, NEXT, 1),
        (DATA, 512, NEXT | data, 2),
        (STATUS, 1, WRITE, 0),
    ];
    let first = if indirect { 0 } else { HEAD };
    let table = if indirect {
        TABLE
    } else {
        AREA + 16 * u64::from(HEAD)
    };
    for (at, (addr, len, flags, next)) in (0..).zip(parts) {
        let next = if flags & NEXT == 0 { 0 } else { first + next };
        space.describe(table + 16 * at, (addr, len, flags, next));
    }
    if indirect {
        let at = AREA + 16 * u64::from(HEAD);
        space.describe(at, (TABLE, 48, INDIRECT, 0));
    }
    space.write(HEADER, &[kind]);
    space.write(HEADER + 8, &SECTOR.to_le_bytes());
    space.write(DATA, &[0xa5; 512]);
    space.write(STATUS, &[0xff]);
    let avail = QueueLayout::contiguous(AREA, SIZE).avail;
    space.write(avail + 4, &HEAD.to_le_bytes());
    space.write(avail + 2, &[1, 0]);
}

#[test]
fn a_read_on_the_loop_is_what_it_was_when_it_was_checked() {
    for indirect in [false, true] {
        let (space, image) = serve(0, indirect);
        assert_eq!(space.read(DATA, 512), pattern(SECTOR, 512));
        assert_eq!(image, pattern(0, BYTES));
    }
}

#[test]
fn a_write_by_a_thread_is_what_it_was_when_it_was_checked() {
    // FLUSH was not negotiated, so that a write waits for the disk.
    for indirect in [false, true] {
        let (_, image) = serve(1, indirect);
        let mut expected = pattern(0, BYTES);
        let at = usize::try_from(SECTOR).unwrap() * 512;
        expected[at..at + 512].fill(0xa5);
        assert!(image == expected);
    }
}
