//! Addresses that name granted pages, of a guest that chose them.
//!
//! Attack: It names buffers, the status byte and the parts of rings in pages that it granted for
//! reading only, took back, takes back under I/O or never granted, by references up to the last one
//! and beyond it, with reserved bits set and across the end of what it granted; and asks for as many
//! broken queues as a turn takes.
//!
//! Outcome: A buffer out of reach is an I/O error of that request, a status byte out of reach faults
//! the queue, a ring out of reach is refused (binding section 5). Rings come out of the 256 pages of
//! a turn; what is beyond is answered in later turns. A ring that is mapped stays the backend's
//! until the reset is answered, and nothing stays after it (binding section 6).
//!
//! Class: 2 (XSA-270, XSA-432), 3 (XSA-361, XSA-371), 5 (XSA-392)

use std::time::Duration;

use guest_memory::Access;
use tests::{GrantDisk, GrantRequest, RawDisk, address};
use virtio_msg::wire::{DevNum, Frame, Request, SetVqueue};
use virtio_msg::{Features, Status};
use virtqueue::{QueueLayout, Segment};
use xen_bus::areas::PAGES_PER_TURN;
use xen_hal::GrantedPages;
use xen_types::{DomId, GrantRef};

use crate::rig::stage::Stage;

/// What the user sees of a ring that is refused.
const LINE: &str = "WARN queue refused id=domain … bus 0 dev_num=0 queue=0 error=…";
/// Status of a request that failed.
const IOERR: u8 = 1;
/// A place that is found when it is used.
const REVOKED: &str = "revoked";
/// A place whose first bytes are good.
const ACROSS: &str = "into a page that is not granted";
/// Bytes of a buffer.
const LEN: u32 = 512;

/// A stage whose hostile guest has chosen grant addresses.
fn stage() -> Stage {
    let mut stage = Stage::new();
    stage.guest.grant_addresses = true;
    stage.guest.connect(&mut stage.rig);
    stage
}

fn disk(stage: &mut Stage) -> GrantDisk {
    GrantDisk::bring_up(&mut stage.rig, &mut stage.guest, 0, Features(0))
}

/// A page that was granted and taken back; the next grant may get its reference.
fn revoked(stage: &Stage) -> u64 {
    let page = stage.guest.grant(1, Access::Write);
    let addr = address(page.refs[0], 0);
    page.revoke().unwrap();
    addr
}

/// Where the device cannot write, and the pages that have to stay for it to be so.
fn out_of_reach(stage: &Stage) -> (Vec<(&'static str, u64)>, [GrantedPages; 2]) {
    let read_only = stage.guest.grant(1, Access::Read);
    let good = stage.guest.grant(1, Access::Write);
    let last = address(GrantRef(u32::MAX), 0);
    let mut places = vec![
        (REVOKED, 0),
        ("read-only", address(read_only.refs[0], 0)),
        ("never granted", address(GrantRef(0x7ffff), 0)),
        ("the last reference", last),
        ("behind the last reference", last + 4092),
        ("all bits", u64::MAX - 3),
        (ACROSS, address(good.refs[0], 4092)),
    ];
    let reserved = (44..63).map(|bit| ("reserved bit", address(good.refs[0], 0) | 1 << bit));
    places.extend(reserved);
    (places, [read_only, good])
}

/// What the backend holds of rings and buffers that are named by their grants.
fn held(stage: &mut Stage) -> (u32, u32) {
    let frontend = stage.bus.guest.0;
    let mut instances = stage.rig.service().gauges().instances.into_iter();
    let instance = instances.find(|instance| instance.frontend == frontend);
    let link = instance.and_then(|instance| instance.link).unwrap();
    (link.grant_ring_pages, link.lent_pages)
}

/// Pages that the guest grants, also those that it took back and the backend still has.
fn granted(stage: &Stage) -> u32 {
    stage.rig.machine.holdings(stage.bus.guest).granted
}

#[test]
fn buffers_out_of_reach_are_io_errors_of_their_requests() {
    let mut stage = stage();
    let mut disk = disk(&mut stage);
    let rings = held(&mut stage);
    let (places, pages) = out_of_reach(&stage);
    for (what, addr) in places {
        let request = GrantRequest::read(&stage.guest, 0, 1);
        let (readable, mut writable) = request.segments();
        let addr = if what == REVOKED {
            revoked(&stage)
        } else {
            addr
        };
        writable[0] = Segment { addr, len: LEN };
        disk.add_raw(&readable, &writable);
        disk.kick(&mut stage.guest);
        disk.finish(&mut stage.rig);
        assert_eq!(request.status(), IOERR, "{what} {addr:#x}");
        assert_eq!(held(&mut stage), rings, "{what} {addr:#x}");
    }
    let status = stage.guest.status(&mut stage.rig, 0);
    assert!(!status.contains(Status::NEEDS_RESET));
    stage.log.assert_quiet();
    drop((disk, pages));
    stage.finish();
}

#[test]
fn a_status_byte_out_of_reach_faults_the_queue() {
    let mut stage = stage();
    let (places, pages) = out_of_reach(&stage);
    // A byte goes into no other page.
    let places = places.into_iter().filter(|(what, _)| *what != ACROSS);
    for (what, addr) in places {
        let mut disk = disk(&mut stage);
        let request = GrantRequest::read(&stage.guest, 0, 1);
        let (readable, mut writable) = request.segments();
        let addr = if what == REVOKED {
            revoked(&stage)
        } else {
            addr
        };
        *writable.last_mut().unwrap() = Segment { addr, len: 1 };
        disk.add_raw(&readable, &writable);
        disk.kick(&mut stage.guest);
        disk.finish(&mut stage.rig);
        let status = stage.guest.status(&mut stage.rig, 0);
        assert!(status.contains(Status::NEEDS_RESET), "{what} {addr:#x}");
        stage.reset();
        assert_eq!(held(&mut stage), (0, 0), "{what} {addr:#x}");
        disk.into_ring().revoke().unwrap();
    }
    drop(pages);
    stage.finish();
}

#[test]
fn rings_out_of_reach_are_refused_and_leave_nothing_mapped() {
    let mut stage = stage();
    let ring = stage.guest.grant(1, Access::Write);
    let good = GrantDisk::layout(ring.refs[0]);
    let (places, pages) = out_of_reach(&stage);
    RawDisk::negotiate(&mut stage.rig, &mut stage.guest, 0);
    for (what, used) in places {
        // The other parts are mapped before this one.
        let used = if what == REVOKED {
            revoked(&stage)
        } else {
            used
        };
        let layout = QueueLayout { used, ..good };
        RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, layout);
        let enabled = stage.guest.is_enabled(&mut stage.rig, 0, 0);
        assert!(!enabled, "{what} {used:#x}");
        assert_eq!(held(&mut stage), (0, 0), "{what} {used:#x}");
    }
    stage.log.line(LINE);
    RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, good);
    assert!(stage.guest.is_enabled(&mut stage.rig, 0, 0));
    drop((ring, pages));
    stage.finish();
}

#[test]
fn what_is_taken_back_under_io_stays_until_the_reset_and_no_longer() {
    let mut stage = stage();
    for _ in 0..10 {
        let mut disk = disk(&mut stage);
        let writes = [0, 1, 2].map(|sector| GrantRequest::write(&stage.guest, sector * 8, 1));
        for write in &writes {
            disk.add(write);
        }
        disk.kick(&mut stage.guest);
        stage.rig.machine.barrier();
        stage.rig.service().turn(Some(Duration::ZERO)).unwrap();
        for write in writes {
            write.control.revoke().unwrap();
            write.data.revoke().unwrap();
        }
        let before = granted(&stage);
        disk.into_ring().revoke().unwrap();
        stage.assert_honest_served();
        assert_eq!(granted(&stage), before, "the backend still has it");
        stage.reset();
        assert_eq!(granted(&stage), before - 1);
        assert_eq!(held(&mut stage), (0, 0));
    }
    stage.finish();
}

#[test]
fn broken_queues_come_out_of_the_pages_of_a_turn() {
    /// As many as a turn takes frames.
    const QUEUES: u64 = 64;
    /// Mapping calls that a turn pays for, each as at least 8 pages, and the rest of a queue.
    const CALLS: u64 = PAGES_PER_TURN as u64 / 8 + 2;
    let mut stage = Stage::new();
    stage.guest.grant_addresses = true;
    stage.guest.connect_over_most_slots(&mut stage.rig);
    RawDisk::negotiate(&mut stage.rig, &mut stage.guest, 0);
    let ring = stage.guest.grant(1, Access::Write);
    let good = GrantDisk::layout(ring.refs[0]);
    let before = stage.rig.machine.counters(DomId::DOM0);
    for _ in 0..QUEUES {
        let token = stage.guest.token();
        let request = Request::SetVqueue(SetVqueue {
            index: 0,
            flags: SetVqueue::ENABLE,
            size: good.size.into(),
            descriptor_addr: good.desc,
            driver_addr: good.avail,
            device_addr: address(GrantRef(0x7ffff), 0),
        });
        let dev_num = DevNum(0);
        stage.guest.send(&Frame::Request {
            dev_num,
            token,
            request,
        });
    }
    stage.rig.machine.barrier();
    let mut calls = 0;
    for turn in 0.. {
        let more = stage.rig.service().turn(Some(Duration::ZERO)).unwrap();
        let now = stage.rig.machine.counters(DomId::DOM0).since(&before);
        let mapped = now.grant_map_calls - calls;
        assert!(mapped <= CALLS, "turn {turn}: {mapped} calls");
        calls = now.grant_map_calls;
        if !more {
            break;
        }
    }
    // Nobody goes without an answer.
    assert_eq!(calls, 3 * QUEUES);
    assert_eq!(stage.guest.receive().len() as u64, QUEUES);
    assert_eq!(held(&mut stage), (0, 0));
    drop(ring);
    stage.finish();
}
