//! Chains and queue indexes that lie.
//!
//! Attack: Its available ring jumps, names descriptors that are not there or are in flight; its
//! chains are circles, leave the table, put readable after writable parts, or are longer than a
//! table.
//!
//! Outcome: Each descriptor is copied once and at most as many are followed as the table has
//! (virtio-devices 1.7). The device needs a reset, which the driver is told; the instance and its
//! other devices go on, and after the reset this one does.
//!
//! Class: 2 (XSA-432, XSA-448)

use tests::{RawDisk, pattern};
use virtio_msg::Status;

use crate::rig::stage::{NEXT, Stage, WRITE};

const LINE: &str = "WARN the driver broke a queue; the device needs a reset id=domain … bus 0 dev_num=0 reason=queue 0: …";

/// A disk with a queue that `spoil` breaks needs a reset, for a reason with `words` in it.
#[track_caller]
fn needs_reset(words: &str, spoil: impl FnOnce(&mut Stage, &mut RawDisk)) {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    spoil(&mut stage, &mut disk);
    stage.rig.settle();
    let line = stage.log.line(LINE);
    assert!(line.contains(words), "{words:?} is not in {line:?}");
    stage.assert_needs_reset(disk, LINE);
    stage.finish();
}

#[test]
fn a_head_that_is_no_descriptor() {
    for head in [RawDisk::SIZE, 0x8000, u16::MAX] {
        needs_reset("is outside of a table of 8", |stage, disk| {
            disk.offer(&mut stage.guest, head);
        });
    }
}

#[test]
fn a_head_that_is_in_flight() {
    needs_reset("head 0 is given while it is in flight", |stage, disk| {
        // FLUSH was not negotiated, so that a write waits for the disk.
        let (_, data) = disk.take(512);
        disk.write_request(0, 0, data, 512);
        disk.offer(&mut stage.guest, 0);
        disk.offer(&mut stage.guest, 0);
    });
}

#[test]
fn an_index_that_jumps() {
    for ahead in [RawDisk::SIZE + 1, 0x8000, u16::MAX] {
        needs_reset("is more than 8 ahead of", |stage, disk| {
            disk.claim(ahead);
            disk.kick(&mut stage.guest);
        });
    }
}

#[test]
fn an_index_that_runs_backwards() {
    needs_reset("is more than 8 ahead of", |stage, disk| {
        stage.assert_hostile_served(disk);
        disk.claim(0);
        disk.kick(&mut stage.guest);
    });
}

#[test]
fn more_chains_than_the_ring_has_descriptors() {
    needs_reset("head 0 is given while it is in flight", |stage, disk| {
        let (_, data) = disk.take(512);
        disk.write_request(0, 0, data, 512);
        // Every slot of the available ring names the same chain.
        for _ in 0..RawDisk::SIZE {
            disk.offer(&mut stage.guest, 0);
        }
    });
}

#[test]
fn a_chain_that_is_a_circle() {
    for length in [1, 2, RawDisk::SIZE] {
        needs_reset("loops: it is longer than its table of 8", |stage, disk| {
            let (_, data) = disk.take(512);
            for index in 0..length {
                disk.describe(index, data, 16, NEXT, (index + 1) % length);
            }
            disk.offer(&mut stage.guest, 0);
        });
    }
}

#[test]
fn a_chain_that_leaves_the_table() {
    for next in [RawDisk::SIZE, 0x8000, u16::MAX] {
        needs_reset("outside of a table of 8", |stage, disk| {
            let (_, data) = disk.take(512);
            disk.describe(0, data, 16, NEXT, next);
            disk.offer(&mut stage.guest, 0);
        });
    }
}

#[test]
fn a_readable_part_behind_a_writable_one() {
    needs_reset("is readable and follows a writable one", |stage, disk| {
        let (_, data) = disk.take(512);
        disk.describe(0, data, 16, WRITE | NEXT, 1);
        disk.describe(1, data, 16, 0, 0);
        disk.offer(&mut stage.guest, 0);
    });
}

#[test]
fn kicks_of_queues_and_devices_that_do_not_run_are_ignored() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let none = Status::empty();
    assert_eq!(stage.guest.set_status(&mut stage.rig, 0, none), none);
    let (_, data) = disk.take(512);
    disk.write(data, &pattern(9, 512));
    disk.read_request(0, 0, data, 512);
    disk.offer(&mut stage.guest, 0);
    disk.dev_num = 5;
    disk.kick(&mut stage.guest);
    stage.rig.settle();
    // Nobody has touched what the driver took back.
    assert_eq!(disk.read(data, 512), pattern(9, 512));
    assert_eq!(disk.used(), 0);
    stage.log.assert_quiet();
    stage.finish();
}
