//! Indirect tables in odd places.
//!
//! Attack: Its indirect descriptors name tables that are empty, of odd length, too long, across the
//! end of the area, not shared, nested, on top of the rings, or that were never negotiated; or tables
//! in an area that is shared for reading only, where they belong to nobody but itself.
//!
//! Outcome: A table is copied whole before it is followed, at most 1,024 entries. What cannot be
//! read or is malformed faults the queue, and the device needs a reset; what is merely strange is
//! served (virtio-devices 1.7).
//!
//! Class: 1 (XSA-155), 2 (XSA-432)

use guest_memory::Access;
use tests::{RawDisk, pattern};
use virtio_msg::Features;
use xen_bus::messages::{AreaResult, AreaShare, ShareFlags};

use crate::rig::stage::{AREA, INDIRECT, NEXT, POOL, Stage, WRITE, outcome};

const LINE: &str = "WARN the driver broke a queue; the device needs a reset id=domain … bus 0 dev_num=0 reason=queue 0: …";

/// Where the area ends.
const END: u64 = AREA + POOL as u64 * 4096;

/// One entry of a table.
fn entry(addr: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// A read of sector 5 into `data`, as a table; the status byte is at `data` + 512, the header behind.
fn table(disk: &mut RawDisk, data: u64) -> Vec<u8> {
    let header = data + 513;
    disk.write(data, &[0xff; 513]);
    disk.write(header, &[0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    [
        entry(header, 16, NEXT, 1),
        entry(data, 512, NEXT | WRITE, 2),
        entry(data + 512, 1, WRITE, 0),
    ]
    .concat()
}

struct Table {
    stage: Stage,
    disk: RawDisk,
    data: u64,
    bytes: Vec<u8>,
}

impl Table {
    fn new() -> Self {
        let mut stage = Stage::new();
        let mut disk = stage.hostile_disk_with(Features::INDIRECT_DESC);
        let (_, data) = disk.take(1024);
        let bytes = table(&mut disk, data);
        Self {
            stage,
            disk,
            data,
            bytes,
        }
    }

    /// The table at `addr` is served.
    #[track_caller]
    fn serves(&mut self, addr: u64, len: usize) {
        let len = u32::try_from(len).unwrap();
        self.disk.describe(0, addr, len, INDIRECT, 0);
        let (rig, guest) = (&mut self.stage.rig, &mut self.stage.guest);
        let status = outcome(rig, guest, &mut self.disk, self.data + 512);
        assert_eq!(status, 0);
        assert_eq!(self.disk.read(self.data, 512), pattern(5, 512));
    }

    /// The descriptor faults the queue, for a reason with `words` in it.
    #[track_caller]
    fn faults(mut self, addr: u64, len: u32, flags: u16, words: &str) {
        self.disk.describe(0, addr, len, INDIRECT | flags, 1);
        self.disk.offer(&mut self.stage.guest, 0);
        self.stage.rig.settle();
        let line = self.stage.log.line(LINE);
        assert!(line.contains(words), "{words:?} is not in {line:?}");
        // Nothing of it was done.
        assert_eq!(self.disk.read(self.data, 513), [0xff; 513]);
        self.stage.assert_needs_reset(self.disk, LINE);
        self.stage.finish();
    }
}

#[test]
fn that_was_not_negotiated() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let (_, table) = disk.take(64);
    disk.describe(0, table, 64, INDIRECT, 0);
    disk.offer(&mut stage.guest, 0);
    stage.rig.settle();
    stage.assert_needs_reset(disk, LINE);
    stage.finish();
}

#[test]
fn of_a_length_that_is_no_table() {
    for len in [0, 1, 15, 17, 47, 49, 0xffff_ffff] {
        let mut table = Table::new();
        let (_, at) = table.disk.take(64);
        table.disk.write(at, &table.bytes);
        table.faults(at, len, 0, "not a positive multiple of 16");
    }
}

#[test]
fn that_cannot_be_read() {
    for addr in [
        0,
        AREA - 16,
        END - 32,
        END,
        2 << 48,
        1 << 63 | 8 << 12,
        0u64.wrapping_sub(48),
        0u64.wrapping_sub(16),
    ] {
        Table::new().faults(addr, 48, 0, "an indirect table that cannot be read");
    }
}

#[test]
fn with_a_next_descriptor_beside_it() {
    let mut table = Table::new();
    let (_, at) = table.disk.take(64);
    table.disk.write(at, &table.bytes);
    table.faults(at, 48, NEXT, "is indirect and has a next descriptor");
}

#[test]
fn nested_into_another_or_into_itself() {
    for inner in 0..3 {
        let mut table = Table::new();
        let (_, at) = table.disk.take(64);
        let mut bytes = table.bytes.clone();
        bytes[inner * 16..][..16].copy_from_slice(&entry(at, 48, INDIRECT, 0));
        table.disk.write(at, &bytes);
        table.faults(at, 48, 0, "is indirect");
    }
}

#[test]
fn that_is_a_circle_or_leaves_itself() {
    for (next, words) in [
        (0, "loops"),
        (3, "outside of a table of 3"),
        (u16::MAX, "outside"),
    ] {
        let mut table = Table::new();
        let (_, at) = table.disk.take(64);
        let mut bytes = table.bytes.clone();
        bytes[16..32].copy_from_slice(&entry(table.data, 512, NEXT, next));
        table.disk.write(at, &bytes);
        table.faults(at, 48, 0, words);
    }
}

#[test]
fn longer_than_any_request_is_an_error_of_the_request() {
    let mut table = Table::new();
    for len in [1025 * 16, 0x1_0000 * 16, 0xffff_fff0] {
        table.disk.describe(0, AREA, len, INDIRECT, 0);
        let before = table.disk.used();
        table.disk.offer(&mut table.stage.guest, 0);
        table.stage.rig.settle();
        // No status byte is known, so the failure cannot be told.
        assert_eq!(table.disk.used(), before.wrapping_add(1), "{len}");
        let line = table.stage.log.line(LINE);
        assert!(line.contains("status byte"), "{line}");
        table.stage.reset();
        let pool = table.disk.into_empty_pool();
        let features = Features::INDIRECT_DESC;
        let (rig, guest) = (&mut table.stage.rig, &mut table.stage.guest);
        table.disk = RawDisk::bring_up_with(rig, guest, 0, pool, features);
    }
    table.stage.finish();
}

#[test]
fn at_the_very_end_of_the_area_at_any_alignment_it_is_served() {
    let mut table = Table::new();
    let bytes = table.bytes.clone();
    for addr in [END - 48, END - 49, END - 55] {
        table.disk.write(addr, &bytes);
        table.serves(addr, bytes.len());
    }
    table.stage.log.assert_quiet();
    table.stage.finish();
}

#[test]
fn over_the_descriptors_of_the_ring_it_is_its_own_affair() {
    let mut table = Table::new();
    // The table's entries are descriptors 1 to 3 of the ring itself.
    let at = table.disk.layout.desc + 16;
    let bytes = table.bytes.clone();
    table.disk.write(at, &bytes);
    table.serves(at, bytes.len());
    // And over the used ring, which the device is about to write.
    let at = table.disk.layout.used + 4;
    table.disk.write(at, &bytes);
    table.serves(at, bytes.len());
    table.stage.log.assert_quiet();
    table.stage.finish();
}

#[test]
fn in_an_area_shared_for_reading_it_is_served_but_never_written() {
    let mut table = Table::new();
    let page = table.stage.guest.grant(1, Access::Read);
    let range = page.area.range(0, 4096, Access::Write).unwrap();
    range.write(0, &table.bytes).unwrap();
    let share = AreaShare {
        area_id: 2,
        flags: ShareFlags::CONSECUTIVE,
        page_count: 1,
        first: page.refs[0],
    };
    let (rig, guest) = (&mut table.stage.rig, &mut table.stage.guest);
    assert_eq!(guest.share(rig, share), AreaResult::DONE);
    table.serves(2 << 48, 48);
    // Data for the device to write there is refused.
    let status = table.disk.read_request(0, 5, 2 << 48, 512);
    let (rig, guest) = (&mut table.stage.rig, &mut table.stage.guest);
    assert_eq!(outcome(rig, guest, &mut table.disk, status), 1);
    let mut left = vec![0; 48];
    range.read(0, &mut left).unwrap();
    assert_eq!(left, table.bytes);
    table.stage.log.assert_quiet();
    table.stage.finish();
}
