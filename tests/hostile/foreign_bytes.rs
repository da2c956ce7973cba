//! Reading what was not given to it.
//!
//! Attack: Beside a guest whose disk holds secrets, it makes requests that fail, that are short, whose
//! buffers are longer than their answers, and reads beyond the end of an image that shrank; it looks
//! at every byte of its memory and of its message ring for what it did not ask for.
//!
//! Outcome: No byte of others, and none of the backend's own memory, is ever written to a page of the
//! guest: data goes straight from the image to the pages that the request names, the used length is
//! never more than what was written, and a slot of the ring gets the bytes of its message and no
//! more.
//!
//! Line: none; the guest alone sees errors.
//!
//! Class: 8 (XSA-216, XSA-403)

use tests::{RawDisk, pattern};
use virtio_msg::wire::{DevNum, Frame, Request};

use crate::rig::stage::{AREA, POOL, SLOTS, Stage, outcome};

/// What stands on the other guest's disk, in its memory, and in what the backend does for it.
const SECRET: &[u8; 8] = b"-secret-";
/// What the guest fills its buffers with.
const POISON: u8 = 0xa5;
/// Where the secrets are on the honest guest's disk.
const SECRET_SECTOR: u64 = 64;

/// A request's answer.
struct Answer {
    status: u8,
    /// What the used ring says was written.
    used_len: u32,
    data: Vec<u8>,
}

/// A request of `kind` with `len` writable bytes of poison.
fn ask(stage: &mut Stage, disk: &mut RawDisk, kind: u32, sector: u64, len: u32) -> Answer {
    let (block, data) = disk.take(4096);
    disk.write(data, &[POISON; 4096]);
    let status = disk.read_request(0, sector, data, len);
    disk.write(status - 16, &kind.to_le_bytes());
    let slot = u64::from(disk.used() % RawDisk::SIZE);
    let found = outcome(&mut stage.rig, &mut stage.guest, disk, status);
    let used_len = disk.read(disk.layout.used + 4 + 8 * slot + 4, 4);
    let bytes = disk.read(data, 4096);
    disk.pool.give_back(block);
    assert!(bytes[len as usize..].iter().all(|byte| *byte == POISON));
    Answer {
        status: found,
        used_len: u32::from_le_bytes(used_len.try_into().unwrap()),
        data: bytes[..len as usize].to_vec(),
    }
}

/// A stage whose honest guest has secrets on its disk and has just read them.
fn with_secrets() -> Stage {
    let stage = Stage::new();
    let image = stage.rig.machine.file("honest.img");
    let mut bytes = std::fs::read(&image).unwrap();
    let at = usize::try_from(SECRET_SECTOR).unwrap() * 512;
    for chunk in bytes[at..].chunks_mut(SECRET.len()) {
        chunk.copy_from_slice(SECRET);
    }
    std::fs::write(&image, bytes).unwrap();
    stage
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|bytes| bytes == SECRET)
}

#[test]
fn requests_of_every_kind_and_length() {
    let mut stage = with_secrets();
    let mut disk = stage.hostile_disk();
    for round in 0..3 {
        for (kind, sector, len) in [
            (0, 5, 512),
            (0, 5, 4096),
            (0, 5, 0),
            (0, 5, 511),
            (0, 127, 1024),
            (0, 128, 512),
            (0, u64::MAX, 512),
            (4, 0, 512),
            (8, 0, 1),
            (8, 0, 19),
            (8, 0, 20),
            (8, 0, 4096),
            (11, 0, 512),
            (99, 0, 4096),
        ] {
            let read = stage.honest_reads(SECRET_SECTOR + round, 512);
            assert!(has_secret(&read));
            let Answer {
                status,
                used_len,
                data,
            } = ask(&mut stage, &mut disk, kind, sector, len);
            let what = format!("type {kind} sector {sector} len {len}: {status} {used_len}");
            let written = match (kind, status) {
                (0, 0) => {
                    assert_eq!(data, pattern(sector, data.len()), "{what}");
                    data.len()
                }
                // A serial number has 20 bytes; behind it nothing is written.
                (8, 0) => data.len().min(20),
                _ => 0,
            };
            let behind = &data[written..];
            assert!(behind.iter().all(|byte| *byte == POISON), "{what}");
            assert!(!data[..written].contains(&POISON) || kind == 0, "{what}");
            let most = if written == data.len() {
                written + 1
            } else {
                written
            };
            assert!(used_len as usize <= most, "{what}");
        }
    }
    assert_nothing_foreign(&mut stage, &disk);
    stage.log.assert_quiet();
    stage.finish();
}

/// Neither the area nor the ring has a secret.
#[track_caller]
fn assert_nothing_foreign(stage: &mut Stage, disk: &RawDisk) {
    let len = u32::try_from(POOL * 4096).unwrap();
    assert!(!has_secret(&disk.read(AREA, len)));
    assert!(!has_secret(&stage.guest.ring_bytes()));
}

#[test]
fn an_image_that_shrank_is_an_error_and_no_memory_of_the_backend() {
    let mut stage = with_secrets();
    let mut disk = stage.hostile_disk();
    let image = stage.rig.machine.file("hostile.img");
    let file = std::fs::File::options().write(true).open(image).unwrap();
    file.set_len(64 * 512).unwrap();
    for (sector, len, left) in [
        (63, 512, 512),
        (63, 1024, 512),
        (64, 512, 0),
        (100, 4096, 0),
    ] {
        let read = stage.honest_reads(SECRET_SECTOR, 512);
        assert!(has_secret(&read));
        let Answer {
            status,
            used_len,
            data,
        } = ask(&mut stage, &mut disk, 0, sector, len);
        let whole = left == data.len();
        assert_eq!(status, u8::from(!whole), "sector {sector}");
        assert_eq!(data[..left], pattern(sector, left));
        assert!(data[left..].iter().all(|byte| *byte == POISON));
        assert!(used_len as usize <= left + usize::from(whole));
    }
    assert_nothing_foreign(&mut stage, &disk);
    stage.finish();
}

/// The first slot for answers in a ring of order 2 with messages of 264 bytes (section 4).
const ANSWERS: usize = 320 + SLOTS * STRIDE;
const STRIDE: usize = 320;

#[test]
fn a_slot_of_the_ring_gets_its_message_and_not_a_byte_more() {
    let mut stage = with_secrets();
    stage.guest.connect(&mut stage.rig);
    for slot in 0..SLOTS {
        for word in 0..STRIDE / 4 {
            let offset = ANSWERS + slot * STRIDE + word * 4;
            stage.guest.scribble(offset as u64, 0xa5a5_a5a5);
        }
    }
    let first = usize::try_from(stage.guest.consumed()).unwrap() + stage.guest.receive().len();
    let read = stage.honest_reads(SECRET_SECTOR, 512);
    assert!(has_secret(&read));
    let mut requests = Vec::new();
    for (offset, length) in [(0, 1), (0, 8), (20, 4), (59, 1), (60, 200), (u32::MAX, 4)] {
        requests.push(Request::GetConfig { offset, length });
    }
    requests.extend([Request::GetDeviceInfo, Request::GetDeviceStatus]);
    let mut answered = 0;
    for request in requests {
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(0),
            token,
            request,
        });
        stage.rig.settle();
        answered += stage.guest.receive().len();
    }
    assert!(answered >= 6, "{answered}");
    let ring = stage.guest.ring_bytes();
    for number in first..first + answered {
        let slot = &ring[ANSWERS + number % SLOTS * STRIDE..][..STRIDE];
        let size = usize::from(u16::from_le_bytes([slot[6], slot[7]]));
        assert!((8..=264).contains(&size), "{size}");
        let behind = &slot[size..];
        assert!(
            behind.iter().all(|byte| *byte == POISON),
            "message {number}"
        );
    }
    assert!(!has_secret(&ring));
    stage.log.assert_quiet();
    stage.finish();
}
