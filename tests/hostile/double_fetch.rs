//! Memory that changes while it is read.
//!
//! Attack: A second thread of the guest flips a word between a good and a bad value without end,
//! while the backend serves: in each field of a descriptor, in the header of a request, in the
//! available ring, in an indirect table.
//!
//! Outcome: Each word is copied once and only the copy is judged and used: a request is served as
//! the one value says or as the other, never as a mix, and no byte outside of what one of them
//! names is touched. The device needs a reset if the bad value is a broken ring.
//!
//! Class: 1 (XSA-155)

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use frontend_shim::Pool;
use guest_memory::{Access, AddressSpace as _, LeasedRange};
use tests::{LIMIT, RawDisk, pattern};
use virtio_msg::{Features, Status};

use crate::rig::stage::{INDIRECT, NEXT, POOL, Stage, WRITE};

const LINE: &str = "WARN the driver broke a queue; the device needs a reset id=domain … bus 0 dev_num=0 reason=queue 0: …";

/// Requests that are raced at least; more until both values were seen to win.
const ROUNDS: usize = 30;
/// Stands in memory that the device has no business with.
const GUARD: u8 = 0x5a;
/// Stands where a request has not written.
const POISON: u8 = 0xa5;
/// What makes an address of the area one far behind it, in one byte.
const FAR: u64 = 1 << 40;

/// A byte with a good and a bad value.
struct Flip {
    addr: u64,
    good: u8,
    bad: u8,
}

/// What the driver finds after a request.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    status: u8,
    data: Vec<u8>,
    needs_reset: bool,
}

impl Found {
    /// Served: the data of this sector, well.
    fn read(sector: u64) -> Self {
        Self {
            status: 0,
            data: pattern(sector, 512),
            needs_reset: false,
        }
    }

    /// Nothing written but the status.
    fn nothing(status: u8) -> Self {
        Self {
            status,
            data: vec![POISON; 512],
            needs_reset: false,
        }
    }

    /// The queue faulted before anything was done.
    fn broken() -> Self {
        Self {
            needs_reset: true,
            ..Self::nothing(0xff)
        }
    }
}

/// Where the parts of the raced request lie.
struct Request {
    /// The address of its descriptors: header, data, status.
    desc: u64,
    avail: u64,
    header: u64,
    data: u64,
    /// Of the table with the same three descriptors.
    table: u64,
}

/// Races a read of sector 5 against the flips that `flip` names, in a queue with the features.
#[track_caller]
fn race(features: Features, flip: impl Fn(&RawDisk, &Request) -> Flip, good: &Found, bad: &Found) {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let mut pool = stage.guest.share_pool(&mut stage.rig, 1, POOL);
    let guard = stage.guest.share_pool(&mut stage.rig, 2, POOL);
    let guarded = guard
        .translate(2 << 48, u32::try_from(POOL * 4096).unwrap(), Access::Write)
        .unwrap();
    guarded.write(0, &vec![GUARD; POOL * 4096]).unwrap();
    let (mut goods, mut bads) = (0, 0);
    let deadline = Instant::now() + LIMIT;
    while goods + bads < ROUNDS || goods == 0 || bads == 0 {
        assert!(Instant::now() < deadline, "{goods} good, {bads} bad");
        let found;
        (pool, found) = round(&mut stage, pool, features, &flip);
        // A ring that is broken after the request was served is broken all the same.
        let late = bad.needs_reset && found.status == good.status && found.data == good.data;
        if found == *good || late {
            goods += 1;
        } else if found == *bad {
            bads += 1;
        } else {
            panic!("neither good nor bad: {found:?}");
        }
    }
    let mut bytes = vec![0; POOL * 4096];
    guarded.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == GUARD));
    if bad.needs_reset {
        stage.log.line(LINE);
    } else {
        stage.log.assert_quiet();
    }
    stage.finish();
}

/// One request from the bring-up of its device to the reset.
fn round(
    stage: &mut Stage,
    pool: Pool,
    features: Features,
    flip: &impl Fn(&RawDisk, &Request) -> Flip,
) -> (Pool, Found) {
    let (rig, guest) = (&mut stage.rig, &mut stage.guest);
    let mut disk = RawDisk::bring_up_with(rig, guest, 0, pool, features);
    let request = prepare(&mut disk);
    let flip = flip(&disk, &request);
    let range = disk.pool.translate_leased(flip.addr, 1, Access::Write);
    let range = range.unwrap();
    let stop = AtomicBool::new(false);
    let begun = AtomicBool::new(false);
    let needs_reset = thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| flip_until(&range, &flip, &begun, &stop));
        while !begun.load(Ordering::Acquire) {
            thread::yield_now();
        }
        disk.kick(guest);
        rig.settle();
        let status = guest.status(rig, 0);
        let needs_reset = status.contains(Status::NEEDS_RESET);
        if !needs_reset {
            rig.until("a used buffer", |_| (disk.used() != 0).then_some(()));
        }
        needs_reset
    });
    drop(range);
    let found = Found {
        status: disk.read(request.data + 512, 1)[0],
        data: disk.read(request.data, 512),
        needs_reset,
    };
    stage.reset();
    (disk.into_empty_pool(), found)
}

/// Everything but the kick.
fn prepare(disk: &mut RawDisk) -> Request {
    let (_, header) = disk.take(16);
    let (_, data) = disk.take(513);
    let (_, table) = disk.take(48);
    disk.write(header, &[0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    disk.write(data, &[POISON; 513]);
    disk.write(data + 512, &[0xff]);
    disk.describe(0, header, 16, NEXT, 1);
    disk.describe(1, data, 512, NEXT | WRITE, 2);
    disk.describe(2, data + 512, 1, WRITE, 0);
    let (desc, avail) = (disk.layout.desc, disk.layout.avail);
    disk.write(table, &disk.read(desc, 48));
    disk.claim(1);
    Request {
        desc,
        avail,
        header,
        data,
        table,
    }
}

fn flip_until(range: &LeasedRange, flip: &Flip, begun: &AtomicBool, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        for value in [flip.bad, flip.good] {
            range.range().write(0, &[value]).unwrap();
            begun.store(true, Ordering::Release);
        }
    }
}

/// Ends the thread also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

const NONE: Features = Features(0);

/// Byte `at` of descriptor 1, whose good value is what stands there.
fn in_descriptor(at: u64, bad: impl Fn(u8) -> u8) -> impl Fn(&RawDisk, &Request) -> Flip {
    move |disk, request| {
        let addr = request.desc + 16 + at;
        let good = disk.read(addr, 1)[0];
        Flip {
            addr,
            good,
            bad: bad(good),
        }
    }
}

/// Byte `at` of the header.
fn in_header(at: u64, bad: u8) -> impl Fn(&RawDisk, &Request) -> Flip {
    move |disk, request| {
        let addr = request.header + at;
        let good = disk.read(addr, 1)[0];
        Flip { addr, good, bad }
    }
}

#[test]
fn the_address_of_a_descriptor() {
    let far = in_descriptor(5, |good| good ^ FAR.to_le_bytes()[5]);
    race(NONE, far, &Found::read(5), &Found::nothing(1));
}

#[test]
fn the_length_of_a_descriptor() {
    let long = in_descriptor(11, |_| 1);
    race(NONE, long, &Found::read(5), &Found::nothing(1));
}

#[test]
fn the_flags_of_a_descriptor() {
    // A part that the device reads: a read of no sectors.
    let readable = in_descriptor(12, |good| good & !2);
    race(NONE, readable, &Found::read(5), &Found::nothing(0));
}

#[test]
fn the_link_of_a_descriptor() {
    let outside = in_descriptor(14, |_| 99);
    race(NONE, outside, &Found::read(5), &Found::broken());
}

#[test]
fn the_type_of_a_request() {
    let unknown = in_header(0, 99);
    race(NONE, unknown, &Found::read(5), &Found::nothing(2));
}

#[test]
fn the_sector_of_a_request() {
    let other = in_header(8, 7);
    race(NONE, other, &Found::read(5), &Found::read(7));
    let beyond = in_header(9, 1);
    race(NONE, beyond, &Found::read(5), &Found::nothing(1));
}

#[test]
fn the_available_index() {
    let jump = |_: &RawDisk, request: &Request| Flip {
        addr: request.avail + 2,
        good: 1,
        bad: 99,
    };
    race(NONE, jump, &Found::read(5), &Found::broken());
}

#[test]
fn the_head_in_the_available_ring() {
    let outside = |_: &RawDisk, request: &Request| Flip {
        addr: request.avail + 4,
        good: 0,
        bad: 99,
    };
    race(NONE, outside, &Found::read(5), &Found::broken());
}

/// Descriptor 3 names the table, and is what is available.
fn offer_table(disk: &RawDisk, request: &Request) {
    let mut bytes = request.table.to_le_bytes().to_vec();
    bytes.extend(48_u32.to_le_bytes());
    bytes.extend(INDIRECT.to_le_bytes());
    bytes.extend([0; 2]);
    disk.write(request.desc + 48, &bytes);
    disk.write(request.avail + 4, &[3, 0]);
}

#[test]
fn the_length_of_an_indirect_table() {
    let odd = |disk: &RawDisk, request: &Request| {
        offer_table(disk, request);
        Flip {
            addr: request.desc + 48 + 8,
            good: 48,
            bad: 49,
        }
    };
    let features = Features::INDIRECT_DESC;
    race(features, odd, &Found::read(5), &Found::broken());
}

#[test]
fn an_address_in_an_indirect_table() {
    let far = |disk: &RawDisk, request: &Request| {
        offer_table(disk, request);
        let addr = request.table + 16 + 5;
        let good = disk.read(addr, 1)[0];
        let bad = good ^ FAR.to_le_bytes()[5];
        Flip { addr, good, bad }
    };
    let features = Features::INDIRECT_DESC;
    race(features, far, &Found::read(5), &Found::nothing(1));
}
