//! Addresses at every boundary.
//!
//! Attack: It names rings, buffers, the status byte and the header at the first and last byte of its
//! area, one byte before and behind, across its end, in areas that it never shared, in the form of
//! grants, and where an address and a length wrap at 2^64.
//!
//! Outcome: What lies wholly inside is served; a queue anywhere else is refused, a buffer anywhere
//! else is an I/O error of that request, and a status byte that cannot be written faults the queue
//! (binding section 5, virtio-devices 1.7).
//!
//! Class: 2 (XSA-270, XSA-432)

use guest_memory::Access;
use tests::{RawDisk, pattern};
use virtio_msg::Status;
use virtqueue::QueueLayout;
use xen_bus::messages::{AreaResult, AreaShare, ShareFlags};

use crate::rig::stage::{AREA, NEXT, POOL, Stage, WRITE, outcome};

const LINE: &str = "WARN queue refused id=domain … bus 0 dev_num=0 queue=0 error=…";

/// Where the area ends.
const END: u64 = AREA + POOL as u64 * 4096;

/// Addresses from which `len` bytes are not all in the area.
fn outside(len: u64) -> Vec<u64> {
    let mut all = vec![
        0,
        1,
        AREA - 1,
        AREA - len,
        END - len + 1,
        END - 1,
        END,
        END + 1,
        2 * AREA - 1,
        2 * AREA,
        0x7fff << 48,
        (0x7fff << 48) + 0xffff_ffff_ffff,
        (1 << 63) - 1,
        1 << 63,
        1 << 63 | 8 << 12,
        1 << 63 | AREA,
        0u64.wrapping_sub(len + 1),
        0u64.wrapping_sub(len),
        0u64.wrapping_sub(len - 1),
        u64::MAX,
    ];
    // One byte may well be the last of the area.
    all.retain(|addr| *addr < AREA || *addr > END - len);
    all
}

/// A read of 512 bytes whose data descriptor is `addr`, `len`.
fn read(stage: &mut Stage, disk: &mut RawDisk, addr: u64, len: u32) -> u8 {
    let status = disk.read_request(0, 5, addr, len);
    outcome(&mut stage.rig, &mut stage.guest, disk, status)
}

#[test]
fn data_is_read_up_to_the_last_byte_and_not_beyond() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    assert_eq!(read(&mut stage, &mut disk, END - 512, 512), 0);
    assert_eq!(disk.read(END - 512, 512), pattern(5, 512));
    for addr in outside(512) {
        assert_eq!(read(&mut stage, &mut disk, addr, 512), 1, "{addr:#x}");
    }
    for len in [512 * 1024, 0x7fff_fe00, 0xffff_fe00, u32::MAX] {
        assert_eq!(read(&mut stage, &mut disk, END - 512, len), 1, "{len:#x}");
    }
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn a_header_out_of_reach_is_an_error_of_the_request() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let (_, data) = disk.take(513);
    for addr in outside(16) {
        disk.write(data, &[0xff; 513]);
        disk.describe(0, addr, 16, NEXT, 1);
        disk.describe(1, data, 513, WRITE, 0);
        let (rig, guest) = (&mut stage.rig, &mut stage.guest);
        assert_eq!(outcome(rig, guest, &mut disk, data + 512), 1, "{addr:#x}");
        assert_eq!(disk.read(data, 512), [0xff; 512], "{addr:#x}");
    }
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn a_status_byte_out_of_reach_faults_the_queue() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    for addr in outside(1) {
        let (_, data) = disk.take(512);
        disk.read_request(0, 5, data, 512);
        disk.describe(2, addr, 1, WRITE, 0);
        disk.offer(&mut stage.guest, 0);
        stage.rig.settle();
        stage.log.line("WARN the driver broke a queue; the device needs a reset id=domain … bus 0 dev_num=0 reason=queue 0: the status byte of buffer 0 is not writable memory");
        let status = stage.guest.status(&mut stage.rig, 0);
        assert!(status.contains(Status::NEEDS_RESET), "{addr:#x}");
        stage.reset();
        let pool = disk.into_empty_pool();
        disk = RawDisk::bring_up(&mut stage.rig, &mut stage.guest, 0, pool);
    }
    stage.assert_hostile_served(&mut disk);
    stage.finish();
}

/// Bytes of the three parts of a queue of 8.
const PARTS: [(&str, u64, u64); 3] = [("desc", 16, 128), ("avail", 2, 22), ("used", 4, 70)];

fn with(layout: QueueLayout, part: &str, addr: u64) -> QueueLayout {
    let mut layout = layout;
    match part {
        "desc" => layout.desc = addr,
        "avail" => layout.avail = addr,
        _ => layout.used = addr,
    }
    layout
}

#[test]
fn each_part_of_a_queue_lies_in_the_area_or_is_refused() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let mut pool = stage.guest.share_pool(&mut stage.rig, 1, POOL);
    let block = pool.take(4096).unwrap();
    let good = QueueLayout::contiguous(pool.address(block, 0), RawDisk::SIZE);
    RawDisk::negotiate(&mut stage.rig, &mut stage.guest, 0);
    for (part, align, len) in PARTS {
        let aligned = outside(len).into_iter().map(|addr| addr & !(align - 1));
        let beyond = aligned.filter(|addr| *addr < AREA || *addr > END - len);
        let askew = [AREA + 4096 + 1, AREA + 4096 + align / 2];
        for addr in beyond.chain(askew) {
            let layout = with(good, part, addr);
            RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, layout);
            let enabled = stage.guest.is_enabled(&mut stage.rig, 0, 0);
            assert!(!enabled, "{part} {addr:#x}");
        }
    }
    for size in [0, 3, 7, 0x8000, u16::MAX] {
        let layout = QueueLayout { size, ..good };
        RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, layout);
        assert!(!stage.guest.is_enabled(&mut stage.rig, 0, 0), "{size}");
    }
    stage.log.line(LINE);
    RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, good);
    assert!(stage.guest.is_enabled(&mut stage.rig, 0, 0));
    stage.finish();
}

#[test]
fn a_used_ring_in_an_area_shared_for_reading_is_refused() {
    for (part, accepted) in [("desc", true), ("avail", true), ("used", false)] {
        let mut stage = Stage::new();
        stage.guest.connect(&mut stage.rig);
        let mut pool = stage.guest.share_pool(&mut stage.rig, 1, POOL);
        let block = pool.take(4096).unwrap();
        let good = QueueLayout::contiguous(pool.address(block, 0), RawDisk::SIZE);
        let page = stage.guest.grant(1, Access::Read);
        let share = AreaShare {
            area_id: 2,
            flags: ShareFlags::CONSECUTIVE,
            page_count: 1,
            first: page.refs[0],
        };
        let shared = stage.guest.share(&mut stage.rig, share);
        assert_eq!(shared, AreaResult::DONE);
        RawDisk::negotiate(&mut stage.rig, &mut stage.guest, 0);
        let layout = with(good, part, 2 << 48);
        RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, layout);
        let enabled = stage.guest.is_enabled(&mut stage.rig, 0, 0);
        assert_eq!(enabled, accepted, "{part}");
        if !accepted {
            stage
                .log
                .line("WARN queue refused … shared for reading only…");
        }
        stage.finish();
    }
}

#[test]
fn each_part_of_a_queue_may_end_with_the_area() {
    for (part, align, len) in PARTS {
        let mut stage = Stage::new();
        stage.guest.connect(&mut stage.rig);
        let mut pool = stage.guest.share_pool(&mut stage.rig, 1, POOL);
        let block = pool.take(4096).unwrap();
        let good = QueueLayout::contiguous(pool.address(block, 0), RawDisk::SIZE);
        RawDisk::negotiate(&mut stage.rig, &mut stage.guest, 0);
        let layout = with(good, part, (END - len) & !(align - 1));
        RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, layout);
        assert!(stage.guest.is_enabled(&mut stage.rig, 0, 0), "{part}");
        stage.finish();
    }
}
