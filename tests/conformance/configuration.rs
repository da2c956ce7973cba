//! Configuration space of a disk at a real backend: what its driver writes, what a reset undoes, and
//! a size that changes.

use std::fs::File;

use tests::{RawDisk, RawGuest, Rig};
use virtio_msg::wire::{Frame, MaxMessageSize, Request, Response};
use virtio_msg::{Features, Status};

/// Bytes of a disk.
const BYTES: usize = 64 << 10;

const CAPACITY: u32 = 0;
const WRITEBACK: u32 = 32;

/// FLUSH and CONFIG_WCE.
const FLUSH: u128 = 1 << 9;
const CONFIG_WCE: u128 = 1 << 11;

fn read(rig: &mut Rig, guest: &mut RawGuest, offset: u32, length: u32) -> Vec<u8> {
    let answer = guest.request(rig, 0, Request::GetConfig { offset, length });
    let size = MaxMessageSize::RECOMMENDED;
    match Frame::parse(&answer, size) {
        Ok(Frame::Response {
            response: Response::GetConfig { data, .. },
            ..
        }) => data.into_owned(),
        other => panic!("{other:?}"),
    }
}

/// Whether the device took the write.
fn write(rig: &mut Rig, guest: &mut RawGuest, offset: u32, data: &[u8]) -> bool {
    let request = Request::SetConfig {
        generation: 0,
        offset,
        data: data.into(),
    };
    let answer = guest.request(rig, 0, request);
    match Frame::parse(&answer, MaxMessageSize::RECOMMENDED) {
        Ok(Frame::Response {
            response: Response::SetConfig { length, .. },
            ..
        }) => length != 0,
        other => panic!("{other:?}"),
    }
}

fn capacity(rig: &mut Rig, guest: &mut RawGuest) -> u64 {
    u64::from_le_bytes(read(rig, guest, CAPACITY, 8).try_into().unwrap())
}

fn guest_with(rig: &mut Rig, features: u128) -> RawGuest {
    let bus = rig.guest_with_disk("guest", BYTES);
    let mut guest = RawGuest::new(rig, bus);
    guest.connect(rig);
    let pool = guest.share_pool(rig, 1, 16);
    RawDisk::bring_up_with(rig, &mut guest, 0, pool, Features(features));
    guest
}

#[test]
fn the_cache_mode_is_switched_by_its_driver_and_undone_by_a_reset() {
    let mut rig = Rig::start();
    let mut guest = guest_with(&mut rig, FLUSH | CONFIG_WCE);
    for mode in [0, 1, 0] {
        assert!(write(&mut rig, &mut guest, WRITEBACK, &[mode]));
        assert_eq!(read(&mut rig, &mut guest, WRITEBACK, 1), [mode]);
    }
    assert!(!write(&mut rig, &mut guest, WRITEBACK, &[2]));
    assert!(!write(&mut rig, &mut guest, CAPACITY, &[1]));
    let status = guest.set_status(&mut rig, 0, Status::empty());
    assert_eq!(status, Status::empty());
    assert_eq!(read(&mut rig, &mut guest, WRITEBACK, 1), [1]);
}

#[test]
fn the_cache_mode_of_a_driver_that_cannot_flush_reads_0() {
    let mut rig = Rig::start();
    let mut guest = guest_with(&mut rig, CONFIG_WCE);
    assert_eq!(read(&mut rig, &mut guest, WRITEBACK, 1), [0]);
    assert!(!write(&mut rig, &mut guest, WRITEBACK, &[1]));
    guest.set_status(&mut rig, 0, Status::empty());
    assert_eq!(read(&mut rig, &mut guest, WRITEBACK, 1), [1]);
}

#[test]
fn a_disk_that_grew_is_told_when_its_line_is_written_again() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let mut guest = RawGuest::new(&rig, bus);
    guest.connect(&mut rig);
    let pool = guest.share_pool(&mut rig, 1, 16);
    let _disk = RawDisk::bring_up(&mut rig, &mut guest, 0, pool);
    let sectors = BYTES as u64 / 512;
    assert_eq!(capacity(&mut rig, &mut guest), sectors);
    let node = bus.device(0, "config");
    let line = rig.toolstack.read(&node).unwrap();
    let (_, path) = line.split_once("path=").unwrap();
    let image = File::options().write(true).open(path).unwrap();
    image.set_len(2 * BYTES as u64).unwrap();
    rig.toolstack.write(&node, &line);
    rig.until("the new size", |rig| {
        (capacity(rig, &mut guest) == 2 * sectors).then_some(())
    });
}
