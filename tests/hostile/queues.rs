//! Virtqueues that lie (virtio-devices 1.7): the device needs a reset, and nothing else happens.

use tests::{RawDisk, pattern};
use virtio_msg::Status;
use virtqueue::QueueLayout;

use crate::stage::{POOL, Stage};

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A disk with a queue that `spoil` breaks needs a reset.
#[track_caller]
fn needs_reset(spoil: impl FnOnce(&mut Stage, &mut RawDisk)) {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    spoil(&mut stage, &mut disk);
    stage.rig.settle();
    stage.assert_needs_reset(disk);
}

#[test]
fn a_head_that_is_no_descriptor() {
    needs_reset(|stage, disk| disk.offer(&mut stage.guest, RawDisk::SIZE));
}

#[test]
fn an_index_that_jumps() {
    needs_reset(|stage, disk| {
        disk.claim(RawDisk::SIZE + 1);
        disk.kick(&mut stage.guest);
    });
}

#[test]
fn a_chain_that_is_a_circle() {
    needs_reset(|stage, disk| {
        let (_, data) = disk.take(512);
        disk.describe(0, data, 16, NEXT, 1);
        disk.describe(1, data, 16, NEXT, 0);
        disk.offer(&mut stage.guest, 0);
    });
}

#[test]
fn a_chain_that_leaves_the_table() {
    needs_reset(|stage, disk| {
        let (_, data) = disk.take(512);
        disk.describe(0, data, 16, NEXT, RawDisk::SIZE);
        disk.offer(&mut stage.guest, 0);
    });
}

#[test]
fn an_indirect_table_that_was_not_negotiated() {
    needs_reset(|stage, disk| {
        let (_, table) = disk.take(64);
        disk.describe(0, table, 64, INDIRECT, 0);
        disk.offer(&mut stage.guest, 0);
    });
}

#[test]
fn a_status_byte_out_of_reach() {
    needs_reset(|stage, disk| {
        let (_, data) = disk.take(512);
        disk.read_request(0, 0, data, 512);
        disk.describe(2, 0x7fff_0000_0000_0000, 1, WRITE, 0);
        disk.offer(&mut stage.guest, 0);
    });
}

#[test]
fn data_out_of_the_area_is_an_error_of_the_request_alone() {
    let end = (1 << 48) + POOL as u64 * 4096;
    for address in [
        0,
        1,
        (1 << 48) - 1,
        end - 511,
        end,
        2 << 48,
        1 << 63,
        u64::MAX,
    ] {
        let mut stage = Stage::new();
        let mut disk = stage.hostile_disk();
        let status = disk.read_request(0, 0, address, 512);
        disk.offer(&mut stage.guest, 0);
        stage
            .rig
            .until("a used buffer", |_| (disk.used() == 1).then_some(()));
        assert_eq!(disk.read(status, 1), [1], "{address:#x}");
        crate::stage::assert_serves(&mut stage.rig, &mut stage.guest, &mut disk);
        stage.assert_honest_served();
    }
}

#[test]
fn sectors_beyond_the_end_are_an_error_of_the_request_alone() {
    for sector in [127, 128, u64::MAX / 512, u64::MAX] {
        let mut stage = Stage::new();
        let mut disk = stage.hostile_disk();
        let (_, data) = disk.take(1024);
        let status = disk.read_request(0, sector, data, 1024);
        disk.offer(&mut stage.guest, 0);
        stage
            .rig
            .until("a used buffer", |_| (disk.used() == 1).then_some(()));
        assert_eq!(disk.read(status, 1), [1], "{sector}");
    }
}

#[test]
fn queues_out_of_reach_are_refused() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let mut pool = stage.guest.share_pool(&mut stage.rig, 1, POOL);
    let block = pool.take(4096).unwrap();
    let good = QueueLayout::contiguous(pool.address(block, 0), 8);
    let end = (1 << 48) + POOL as u64 * 4096;
    RawDisk::negotiate(&mut stage.rig, &mut stage.guest, 0);
    for bad in [
        QueueLayout { size: 0, ..good },
        QueueLayout { size: 7, ..good },
        QueueLayout {
            desc: good.desc + 1,
            ..good
        },
        QueueLayout {
            avail: good.avail + 1,
            ..good
        },
        QueueLayout {
            used: good.used + 2,
            ..good
        },
        QueueLayout { desc: 0, ..good },
        QueueLayout {
            desc: end - 64,
            ..good
        },
        QueueLayout { avail: end, ..good },
        QueueLayout {
            used: end - 16,
            ..good
        },
        QueueLayout {
            used: 2 << 48,
            ..good
        },
        QueueLayout {
            used: 1 << 63 | 8 << 12,
            ..good
        },
    ] {
        RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, bad);
        assert!(!stage.guest.is_enabled(&mut stage.rig, 0, 0), "{bad:?}");
    }
    RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, good);
    assert!(stage.guest.is_enabled(&mut stage.rig, 0, 0));
    let none = Status::empty();
    assert_eq!(stage.guest.set_status(&mut stage.rig, 0, none), none);
    stage.assert_honest_served();
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
    stage.assert_honest_served();
}
