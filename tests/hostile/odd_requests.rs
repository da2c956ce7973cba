//! Requests that are well-formed chains and no sensible request.
//!
//! Attack: It asks for sectors beyond the disk, for types that are unknown or were not negotiated,
//! cuts header, data and status into odd pieces, and leaves parts out.
//!
//! Outcome: The header is gathered into private memory and judged there, without overflow, before
//! anything reaches the image: an I/O error, "unsupported", or the correct bytes. Nothing beyond the
//! end of the image is read or written (virtio-devices 4.3).
//!
//! Line: none; the guest alone sees the error.
//!
//! Class: 11 (XSA-423), 2 (XSA-448)

use tests::{RawDisk, pattern};

use crate::rig::stage::{NEXT, Stage, WRITE, outcome};

/// Sectors of the disk.
const SECTORS: u64 = 128;

#[test]
fn sectors_beyond_the_end() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let (_, data) = disk.take(1024);
    let image = stage.rig.machine.file("hostile.img");
    let before = std::fs::read(&image).unwrap();
    for sector in [
        SECTORS - 1,
        SECTORS,
        SECTORS + 1,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        u64::MAX - 1,
        u64::MAX,
    ] {
        let status = disk.read_request(0, sector, data, 1024);
        let read = outcome(&mut stage.rig, &mut stage.guest, &mut disk, status);
        let status = disk.write_request(0, sector, data, 1024);
        let written = outcome(&mut stage.rig, &mut stage.guest, &mut disk, status);
        assert_eq!((read, written), (1, 1), "{sector}");
    }
    for len in [1, 511, 513] {
        let status = disk.write_request(0, 0, data, len);
        let written = outcome(&mut stage.rig, &mut stage.guest, &mut disk, status);
        assert_eq!(written, 1, "{len}");
    }
    assert_eq!(std::fs::read(&image).unwrap(), before);
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

/// Offers a request of `kind` with 512 writable bytes; its status.
fn ask(stage: &mut Stage, disk: &mut RawDisk, kind: u32, data: u64) -> u8 {
    let status = disk.read_request(0, 5, data, 512);
    disk.write(status - 16, &kind.to_le_bytes());
    outcome(&mut stage.rig, &mut stage.guest, disk, status)
}

#[test]
fn types_that_are_unknown_or_were_not_negotiated() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let (_, data) = disk.take(512);
    // Of all types only IN, OUT, FLUSH and GET_ID are served to a driver that accepted no feature.
    for kind in (2..32).chain([1 << 8, 1 << 31, u32::MAX]) {
        if !matches!(kind, 4 | 8) {
            assert_eq!(ask(&mut stage, &mut disk, kind, data), 2, "{kind:#x}");
        }
    }
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn a_header_and_a_status_in_odd_pieces() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let (_, header) = disk.take(16);
    let (_, data) = disk.take(513);
    disk.write(header, &[0, 0, 0, 0, 0, 0, 0, 0, 5]);
    disk.write(data, &[0xff; 513]);
    // 1 + 8 + 7 bytes of header; 1 byte of data, none, and the rest with the status.
    disk.describe(0, header, 1, NEXT, 1);
    disk.describe(1, header + 1, 8, NEXT, 2);
    disk.describe(2, header + 9, 7, NEXT, 3);
    disk.describe(3, data, 1, NEXT | WRITE, 4);
    disk.describe(4, data + 1, 0, NEXT | WRITE, 5);
    disk.describe(5, data + 1, 512, WRITE, 0);
    let (rig, guest) = (&mut stage.rig, &mut stage.guest);
    assert_eq!(outcome(rig, guest, &mut disk, data + 512), 0);
    assert_eq!(disk.read(data, 512), pattern(5, 512));
    // A header that is one byte short.
    disk.describe(2, header + 9, 6, NEXT, 3);
    let (rig, guest) = (&mut stage.rig, &mut stage.guest);
    assert_eq!(outcome(rig, guest, &mut disk, data + 512), 1);
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn a_request_without_a_status_byte_is_given_back_untouched() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let (_, data) = disk.take(512);
    for flags in [0, WRITE] {
        let before = disk.used();
        disk.write(data, &[0xff; 512]);
        disk.describe(0, data, 16, 0, 0);
        disk.describe(0, data, if flags == 0 { 16 } else { 0 }, flags, 0);
        disk.offer(&mut stage.guest, 0);
        stage
            .rig
            .until("a used buffer", |_| (disk.used() != before).then_some(()));
        assert_eq!(disk.read(data, 512), [0xff; 512]);
    }
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}
