//! An area that is taken away under I/O.
//!
//! Attack: It unshares an area in the same breath in which it offers requests that name it, revokes
//! the grants of pages that the backend has mapped, or dies while its writes wait for the disk.
//!
//! Outcome: While a taken chain names the area the answer is "busy" and nothing changes; a chain that
//! was not yet taken fails with an I/O error (binding section 6). A revoked page stays the backend's
//! until it unmaps it. Nothing is unmapped under I/O, and everything after it.
//!
//! Line: none; the guest alone sees the error.
//!
//! Class: 3 (XSA-371), 7 (XSA-424)

use frontend_shim::Pool;
use tests::{RawDisk, pattern};
use xen_bus::messages::{AreaResult, AreaShare, AreaUnshare, PrivateMessage, ShareFlags};
use xen_types::DomId;

use crate::rig::stage::{POOL, Stage, outcome};

/// An area for data alone; the queue lies in another.
const DATA: u64 = 2 << 48;

fn shared_data(stage: &mut Stage) -> Pool {
    stage.guest.share_pool(&mut stage.rig, 2, POOL)
}

fn mapped(stage: &Stage) -> u32 {
    stage.rig.machine.holdings(DomId::DOM0).mapped
}

/// Asks for area 2 back and does not let the backend work in between.
fn send_unshare(stage: &mut Stage) -> virtio_msg::wire::Token {
    let message = AreaUnshare { area_id: 2 };
    stage
        .guest
        .send_private(&PrivateMessage::AreaUnshare(message))
}

/// The result in a frame that answers AREA_UNSHARE.
fn result(frame: &[u8]) -> AreaResult {
    let message = PrivateMessage::parse(0x82, true, &frame[8..]).unwrap();
    match message {
        PrivateMessage::AreaUnshareReply(reply) => reply.result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn unshared_in_the_breath_of_the_kick_it_is_busy_and_the_write_complete() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let data = shared_data(&mut stage);
    let before = mapped(&stage);
    for round in 0..20 {
        let written = pattern(1000 + round, 512);
        write(&data, &written);
        // FLUSH was not negotiated: the write waits for the disk.
        let status = disk.write_request(0, round, DATA, 512);
        let used = disk.used();
        disk.offer(&mut stage.guest, 0);
        let token = send_unshare(&mut stage);
        let answer = stage.guest.answer(&mut stage.rig, token);
        assert_eq!(result(&answer), AreaResult::BUSY);
        assert_eq!(mapped(&stage), before);
        stage
            .rig
            .until("a used buffer", |_| (disk.used() != used).then_some(()));
        assert_eq!(disk.read(status, 1), [0]);
        let image = std::fs::read(stage.rig.machine.file("hostile.img")).unwrap();
        let at = usize::try_from(round).unwrap() * 512;
        assert_eq!(image[at..at + 512], written);
    }
    let done = stage.guest.unshare(&mut stage.rig, 2);
    assert_eq!(done, AreaResult::DONE);
    data.into_pages().revoke().unwrap();
    stage.log.assert_quiet();
    stage.finish();
}

fn write(data: &Pool, bytes: &[u8]) {
    use guest_memory::{Access, AddressSpace as _};

    let range = data.translate(DATA, 512, Access::Write).unwrap();
    range.write(0, bytes).unwrap();
}

#[test]
fn unshared_before_the_kick_the_request_fails_and_the_pages_are_the_guests() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let before = mapped(&stage);
    for _ in 0..20 {
        let data = shared_data(&mut stage);
        let status = disk.read_request(0, 5, DATA, 512);
        let done = stage.guest.unshare(&mut stage.rig, 2);
        assert_eq!(done, AreaResult::DONE);
        assert_eq!(mapped(&stage), before);
        write(&data, &[0xa5; 512]);
        let (rig, guest) = (&mut stage.rig, &mut stage.guest);
        assert_eq!(outcome(rig, guest, &mut disk, status), 1);
        assert_eq!(read(&data), [0xa5; 512]);
        data.into_pages().revoke().unwrap();
    }
    stage.log.assert_quiet();
    stage.finish();
}

fn read(data: &Pool) -> Vec<u8> {
    use guest_memory::{Access, AddressSpace as _};

    let mut bytes = vec![0; 512];
    let range = data.translate(DATA, 512, Access::Read).unwrap();
    range.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn the_area_of_a_running_queue_is_busy() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    for _ in 0..10 {
        let busy = stage.guest.unshare(&mut stage.rig, 1);
        assert_eq!(busy, AreaResult::BUSY);
        stage.assert_hostile_served(&mut disk);
    }
    stage.reset();
    let done = stage.guest.unshare(&mut stage.rig, 1);
    assert_eq!(done, AreaResult::DONE);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn revoked_pages_stay_mapped_until_the_backend_lets_go() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let page = stage.guest.grant(1, guest_memory::Access::Write);
    let share = AreaShare {
        area_id: 2,
        flags: ShareFlags::DEVICE_WRITE | ShareFlags::CONSECUTIVE,
        page_count: 1,
        first: page.refs[0],
    };
    let shared = stage.guest.share(&mut stage.rig, share);
    assert_eq!(shared, AreaResult::DONE);
    let before = mapped(&stage);
    let status = disk.write_request(0, 0, DATA, 512);
    disk.offer(&mut stage.guest, 0);
    // It is kept until the other side has unmapped it.
    page.revoke().unwrap();
    let granted = |stage: &Stage| stage.rig.machine.holdings(stage.bus.guest).granted;
    let kept = granted(&stage);
    let used = disk.used();
    stage
        .rig
        .until("a used buffer", |_| (disk.used() != used).then_some(()));
    assert_eq!(disk.read(status, 1), [0]);
    assert_eq!(mapped(&stage), before);
    // It cannot be mapped once more, and what is mapped can be given back.
    let again = AreaShare {
        area_id: 3,
        ..share
    };
    let refused = stage.guest.share(&mut stage.rig, again);
    assert_eq!(refused, AreaResult::REFUSED);
    let done = stage.guest.unshare(&mut stage.rig, 2);
    assert_eq!(done, AreaResult::DONE);
    assert_eq!(mapped(&stage), before - 1);
    assert_eq!(granted(&stage), kept - 1);
    stage.assert_hostile_served(&mut disk);
    stage.finish();
}

#[test]
fn a_guest_that_dies_with_writes_in_flight_is_let_go_after_them() {
    for _ in 0..10 {
        let mut stage = Stage::new();
        let mut disk = stage.hostile_disk();
        let (_, data) = disk.take(4096);
        for first in [0, 3] {
            disk.write_request(first, 64 + u64::from(first) * 8, data, 4096);
            disk.offer(&mut stage.guest, first);
        }
        stage.rig.machine.barrier();
        let at_once = Some(std::time::Duration::ZERO);
        stage.rig.service().turn(at_once).unwrap();
        let _: RawDisk = disk;
        stage.log.assert_quiet();
        stage.finish();
    }
}
