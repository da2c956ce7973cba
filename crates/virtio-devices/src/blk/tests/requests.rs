//! Single requests: what is answered, what is written, and nothing else.

use std::fs;
use std::sync::Arc;

use virtqueue::{QueueLayout, RingFeatures, Segment};

use super::rig::{
    BASE, Call, Disk, FLUSH, GET_ID, GUARD, IN, IOERR, OK, OUT, Rig, Setup, UNSUPP, config, header,
    pattern,
};
use crate::blk::{Blk, BlkConfig, BlkError};
use crate::{DeviceEvent, DeviceModel, Engine, ResetReason};

const INDIRECT: RingFeatures = RingFeatures {
    indirect: true,
    event_idx: false,
};

/// A disk that does everything at once, with its driver.
fn rig(sectors: usize) -> (Arc<Disk>, Rig) {
    let disk = Disk::new(pattern(sectors * 512));
    let rig = Rig::over(&disk, &config(1), Setup::default());
    (disk, rig)
}

/// Cuts a buffer into descriptors of these lengths, and the rest.
fn cut(whole: Segment, lens: impl IntoIterator<Item = u32>) -> Vec<Segment> {
    let mut rest = whole;
    let mut parts = Vec::new();
    for len in lens {
        let part = Segment { len, ..rest };
        rest.addr += u64::from(len);
        rest.len -= len;
        parts.push(part);
    }
    parts.push(rest);
    parts.retain(|part| part.len > 0);
    parts
}

#[test]
fn r23_r24_any_layout_reads_and_writes_the_same_bytes() {
    for ring in [RingFeatures::default(), INDIRECT] {
        for split in 1..16 {
            layout(ring, |_| vec![split], |_| vec![]);
            layout(ring, |_| vec![16, split], |whole| vec![whole - split]);
        }
        // The status byte alone; header and data in one, data and status in one.
        layout(ring, |_| vec![16], |whole| vec![whole - 1]);
        layout(ring, |_| vec![], |_| vec![]);
        layout(ring, |_| vec![1; 16], |whole| vec![whole / 2; 2]);
    }
    // One byte per descriptor needs a queue for the whole of it.
    let setup = Setup {
        size: 1024,
        ..Setup::default()
    };
    check_layout(
        setup,
        |whole| vec![1; whole as usize - 1],
        |whole| vec![1; whole as usize - 1],
    );
}

fn layout(ring: RingFeatures, out: impl Fn(u32) -> Vec<u32>, back: impl Fn(u32) -> Vec<u32>) {
    let setup = Setup {
        ring,
        area_bytes: 1 << 21,
        ..Setup::default()
    };
    check_layout(setup, out, back);
}

/// Writes a sector and reads it back, with both streams cut as told.
fn check_layout(setup: Setup, out: impl Fn(u32) -> Vec<u32>, back: impl Fn(u32) -> Vec<u32>) {
    let disk = Disk::new(vec![0; 4096]);
    let mut rig = Rig::over(&disk, &config(1), setup);
    let data = pattern(512);

    let request = rig.buffer_with(&[&header(OUT, 3)[..], &data].concat());
    let status = rig.buffer(1);
    assert_eq!(rig.answer(&cut(request, out(request.len)), &[status]), 1);
    assert_eq!(rig.get(status), [OK]);
    assert_eq!(disk.state().bytes[3 * 512..4 * 512], data);

    let request = rig.header(IN, 3);
    let reply = rig.buffer(513);
    let before = rig.memory();
    let len = rig.answer(
        &cut(request, out(16).into_iter().take(1)),
        &cut(reply, back(513)),
    );
    assert_eq!(len, 513);
    assert_eq!(rig.get(reply), [&data[..], &[OK]].concat());

    // Outside the reply nothing but rings and tables changed.
    let (mut expected, after) = (before, rig.memory());
    let at = usize::try_from(reply.addr - BASE).unwrap();
    expected[at..at + 513].copy_from_slice(&after[at..at + 513]);
    let buffers = usize::try_from(request.addr - BASE).unwrap() - 4096;
    assert_eq!(expected[buffers..], after[buffers..]);
}

#[test]
fn r25_requests_too_short_to_be_one_are_answered() {
    let (disk, mut rig) = rig(8);
    for kind in [IN, OUT, FLUSH, GET_ID, 11, 13, 14, 99] {
        for bytes in 0..16 {
            let status = rig.buffer(1);
            let head = rig.buffer_with(&header(kind, 0)[..bytes]);
            let readable = if bytes == 0 { vec![] } else { vec![head] };
            assert_eq!(
                rig.answer(&readable, &[status]),
                1,
                "type {kind}, {bytes} bytes"
            );
            assert_eq!(rig.get(status), [IOERR]);
        }
        // Without a writable byte there is nobody to tell.
        let whole = rig.header(kind, 0);
        assert_eq!(rig.answer(&[whole], &[]), 0);
        // With one, the request has no data to read into.
        let expected = match kind {
            IN | OUT | FLUSH | GET_ID => OK,
            _ => UNSUPP,
        };
        assert_eq!(rig.ask(kind, 0, None, None), (expected, 1), "type {kind}");
    }
    assert_eq!(rig.needs_reset(), 0);
    assert_eq!(disk.state().bytes, pattern(8 * 512));
}

#[test]
fn r26_unknown_types_touch_nothing_but_the_status() {
    let (disk, mut rig) = rig(8);
    for kind in [
        2,
        3,
        5,
        9,
        10,
        11,
        13,
        14,
        15,
        31,
        1 << 31,
        1 << 31 | 1,
        u32::MAX,
    ] {
        let (data_out, data_in) = (rig.buffer_with(&pattern(512)), rig.buffer(512));
        assert_eq!(
            rig.ask(kind, 0, Some(data_out), Some(data_in)),
            (UNSUPP, 0),
            "type {kind:#x}"
        );
        assert_eq!(rig.get(data_in), [GUARD; 512]);
    }
    assert_eq!(disk.state().bytes, pattern(8 * 512));
}

#[test]
fn r27_the_disk_ends_at_its_last_sector() {
    let (disk, mut rig) = rig(8);
    for (sector, len, status) in [
        (0, 4096, OK),
        (7, 512, OK),
        (8, 0, OK),
        (7, 1024, IOERR),
        (8, 512, IOERR),
        (9, 0, IOERR),
        (0, 4608, IOERR),
        (0, 511, IOERR),
        (0, 513, IOERR),
        (1 << 55, 512, IOERR),
        (u64::MAX, 512, IOERR),
        (u64::MAX, 1024, IOERR),
    ] {
        let data_out = (len > 0).then(|| rig.buffer_with(&pattern(16 * 512)[..len]));
        let data_in = (len > 0).then(|| rig.buffer(len));
        let before = disk.state().bytes.clone();
        let full = u32::try_from(len).unwrap() + 1;
        let used = if status == OK { full } else { 0 };
        let used = if len == 0 { 1 } else { used };
        assert_eq!(
            rig.ask(IN, sector, None, data_in),
            (status, used),
            "{sector} {len}"
        );
        if let Some(data_in) = data_in {
            let start = usize::try_from(sector).unwrap().wrapping_mul(512);
            let expected = match status {
                OK => before[start..start + len].to_vec(),
                _ => vec![GUARD; len],
            };
            assert_eq!(rig.get(data_in), expected);
        }
        assert_eq!(
            rig.ask(OUT, sector, data_out, None),
            (status, 1),
            "{sector} {len}"
        );
        if status != OK {
            assert_eq!(disk.state().bytes, before);
        }
    }
}

#[test]
fn used_length_covers_only_what_was_written() {
    let (_, mut rig) = rig(8);
    let extra = rig.buffer(100);
    let data = rig.buffer_with(&pattern(512));
    assert_eq!(rig.ask(OUT, 0, Some(data), Some(extra)), (OK, 0));
    assert_eq!(rig.get(extra), [GUARD; 100]);
    assert_eq!(rig.ask(FLUSH, 0, Some(data), Some(extra)), (OK, 0));
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    // Data to read beside a read is ignored.
    let back = rig.buffer(512);
    assert_eq!(rig.ask(IN, 0, Some(data), Some(back)), (OK, 513));
    assert_eq!(rig.get(back), pattern(512));
}

#[test]
fn r28_a_read_only_image_stays_as_it_is() {
    let image = tempfile::NamedTempFile::new().unwrap();
    fs::write(image.path(), pattern(4096)).unwrap();
    let config = BlkConfig {
        path: image.path().into(),
        read_only: true,
        ..config(1)
    };
    for features in [0, 1 << 5, 1 << 5 | 1 << 9] {
        let blk = Blk::open(&config, &Engine::new().unwrap()).unwrap();
        assert_ne!(blk.describe().features & 1 << 5, 0);
        let setup = Setup {
            features,
            ..Setup::default()
        };
        let mut rig = Rig::new(blk, setup);
        let data = rig.buffer_with(&[0xee; 512]);
        assert_eq!(rig.ask(OUT, 0, Some(data), None), (IOERR, 1));
        for erasing in [11, 13, 14] {
            assert_eq!(rig.ask(erasing, 0, Some(data), None), (UNSUPP, 1));
        }
        let back = rig.buffer(4096);
        assert_eq!(rig.ask(IN, 0, None, Some(back)), (OK, 4097));
        assert_eq!(rig.get(back), pattern(4096));
        assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    }
    assert_eq!(fs::read(image.path()).unwrap(), pattern(4096));
}

#[test]
fn r29_files_give_back_what_was_written() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(8 << 20).unwrap();
    let config = BlkConfig {
        path: image.path().into(),
        ..config(1)
    };
    let blk = Blk::open(&config, &Engine::new().unwrap()).unwrap();
    let setup = Setup {
        area_bytes: 24 << 20,
        ..Setup::default()
    };
    let mut rig = Rig::new(blk, setup);
    let mut sector = 1;
    for len in [512, 1024, 4096, 65536, 300 << 10, 1 << 20, 4 << 20] {
        let data = pattern(len);
        let from = rig.buffer_with(&data);
        let pieces = |whole: Segment| {
            let step = whole.len / 100 + 1;
            cut(
                whole,
                (0..99).map(|at| step - at % 2).take_while({
                    let mut left = whole.len;
                    move |len| {
                        let fits = *len < left;
                        left = left.saturating_sub(*len);
                        fits
                    }
                }),
            )
        };
        let status = rig.buffer(1);
        let request = rig.header(OUT, sector);
        let readable = [vec![request], pieces(from)].concat();
        assert_eq!(rig.answer(&readable, &[status]), 1);
        assert_eq!(rig.get(status), [OK]);

        let reply = rig.buffer(len + 1);
        let request = rig.header(IN, sector);
        let used = rig.answer(&[request], &pieces(reply));
        assert_eq!(usize::try_from(used).unwrap(), len + 1);
        let got = rig.get(reply);
        assert!(got[..len] == data && got[len] == OK, "{len} bytes");
        sector += len as u64 / 512;
    }
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    assert_eq!(fs::read(image.path()).unwrap()[512..1024], pattern(512));
}

#[test]
fn r33_the_serial_is_padded_and_cut_to_the_room_there_is() {
    let disk = Disk::new(vec![0; 512]);
    for len in [0, 1, 19, 20] {
        let mut config = config(1);
        config.serial = "abcdefghijklmnopqrstuvwxyz"[..len].to_owned();
        let mut padded = config.serial.clone().into_bytes();
        padded.resize(20, 0);
        let mut rig = Rig::over(&disk, &config, Setup::default());
        for room in [0, 1, 19, 20, 21, 4096] {
            let into = (room > 0).then(|| rig.buffer(room));
            let given = room.min(20);
            let used = if room <= 20 { room + 1 } else { 20 };
            assert_eq!(
                rig.ask(GET_ID, u64::MAX, None, into),
                (OK, u32::try_from(used).unwrap())
            );
            if let Some(into) = into {
                let mut expected = padded[..given].to_vec();
                expected.resize(room, GUARD);
                assert_eq!(rig.get(into), expected, "{len} characters, {room} bytes");
            }
        }
    }
    let mut long = config(1);
    long.serial = "abcdefghijklmnopqrstu".to_owned();
    let opened = Blk::open(&long, &Engine::new().unwrap());
    assert!(matches!(opened, Err(BlkError::Serial(_))));
}

#[test]
fn r39_a_request_of_seg_max_fits_a_large_queue_and_a_table_on_a_small_one() {
    for (size, ring) in [(256, RingFeatures::default()), (4, INDIRECT)] {
        let disk = Disk::new(pattern(126 * 512));
        let setup = Setup {
            size,
            ring,
            ..Setup::default()
        };
        let mut rig = Rig::over(&disk, &config(1), setup);
        let request = rig.header(IN, 0);
        let mut writable: Vec<_> = (0..126).map(|_| rig.buffer(512)).collect();
        writable.push(rig.buffer(1));
        assert_eq!(rig.answer(&[request], &writable), 126 * 512 + 1);
        for (sector, segment) in writable[..126].iter().enumerate() {
            let expected = &pattern(126 * 512)[sector * 512..][..512];
            assert_eq!(rig.get(*segment), expected);
        }
        assert_eq!(rig.get(writable[126]), [OK]);
        assert_eq!(disk.count(Call::Read), 1);
    }
}

#[test]
fn r39_queues_that_were_never_configured_are_harmless() {
    let disk = Disk::new(pattern(4096));
    let mut rig = Rig::over(&disk, &config(4), Setup::default());
    for queue in 1..4 {
        rig.blk.stop_queue(queue);
    }
    rig.poll(64);
    rig.events.clear();
    for index in [1, 2, 3, 4, 63, 64, u16::MAX] {
        rig.blk.kick(index);
        rig.blk.stop_queue(index);
    }
    let back = rig.buffer(512);
    assert_eq!(rig.ask(IN, 1, None, Some(back)), (OK, 513));
    assert!(
        rig.events
            .iter()
            .all(|event| matches!(event, DeviceEvent::Used(0)))
    );
}

#[test]
fn r18_a_bad_address_fails_the_request_and_touches_nothing() {
    let (disk, mut rig) = rig(8);
    let end = BASE + rig.area.len() as u64;
    for bad in [0, 4096, BASE - 512, end - 10, end, u64::MAX - 100, 1 << 63] {
        let bad = Segment {
            addr: bad,
            len: 512,
        };
        let good = rig.buffer_with(&[0xee; 512]);
        let (reply, status) = (rig.buffer(512), rig.buffer(1));
        let (read, write) = (rig.header(IN, 0), rig.header(OUT, 0));
        let short = Segment { len: 16, ..bad };
        for (readable, writable) in [
            (vec![read], vec![reply, bad, status]),
            (vec![read], vec![bad, reply, status]),
            (vec![write, good, bad], vec![status]),
            (vec![write, bad, good], vec![status]),
            (vec![short, good], vec![status]),
        ] {
            rig.put(status.addr, &[GUARD]);
            let len = rig.answer(&readable, &writable);
            assert_eq!(len, if writable.len() == 1 { 1 } else { 0 });
            assert_eq!(rig.get(status), [IOERR]);
            assert_eq!(rig.get(reply), [GUARD; 512]);
        }
    }
    assert_eq!(disk.state().bytes, pattern(8 * 512));
    assert_eq!(disk.state().log, []);
    assert_eq!(rig.needs_reset(), 0);
}

#[test]
fn r18_without_a_status_byte_the_queue_ends() {
    let (disk, mut rig) = rig(8);
    let bad = Segment { addr: 1, len: 1 };
    let (read, reply) = (rig.header(IN, 0), rig.buffer(512));
    assert_eq!(rig.answer(&[read], &[reply, bad]), 0);
    assert!(matches!(
        rig.events.as_slice(),
        [
            DeviceEvent::NeedsReset(ResetReason::Status { queue: 0, .. }),
            DeviceEvent::Used(0)
        ]
    ));
    assert_eq!(rig.get(reply), [GUARD; 512]);

    // Nothing is taken any more, and nothing is said twice.
    rig.events.clear();
    rig.request(0, IN, 0, None, Some(reply));
    for _ in 0..3 {
        rig.blk.kick(0);
        assert_eq!(rig.poll(64), crate::Progress::Idle);
    }
    assert!(rig.used.is_empty() && rig.events.is_empty());
    assert_eq!(disk.state().log, []);
    rig.blk.stop_queue(0);
    rig.poll(64);
    assert!(rig.stopped(0).is_some());
}

#[test]
fn r18_a_table_too_long_to_be_read_has_no_status_byte() {
    let disk = Disk::new(pattern(4096));
    let setup = Setup {
        ring: INDIRECT,
        ..Setup::default()
    };
    let mut rig = Rig::over(&disk, &config(1), setup);
    // By hand: our driver never builds such a chain.
    let layout = QueueLayout::contiguous(BASE, 256);
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&BASE.to_le_bytes());
    descriptor[8..12].copy_from_slice(&(16 * 1025u32).to_le_bytes());
    descriptor[12] = 4;
    rig.put(layout.desc, &descriptor);
    rig.put(layout.avail + 4, &0u16.to_le_bytes());
    rig.put(layout.avail + 2, &1u16.to_le_bytes());
    rig.blk.kick(0);
    rig.blk.poll(&rig.space, 64, &mut rig.events);
    assert!(matches!(
        rig.events[0],
        DeviceEvent::NeedsReset(ResetReason::Status { queue: 0, head: 0 })
    ));
}

#[test]
fn a_request_of_more_pieces_than_one_call_takes_is_refused() {
    let disk = Disk::new(pattern(1024));
    let setup = Setup {
        size: 2048,
        ..Setup::default()
    };
    let mut rig = Rig::over(&disk, &config(1), setup);
    let request = rig.header(IN, 0);
    let reply = rig.buffer(1025);
    // 1,024 with the header, then one more.
    assert_eq!(rig.answer(&[request], &cut(reply, [1; 1022])), 1025);
    assert_eq!(rig.get(reply), [&pattern(1024)[..], &[OK]].concat());
    rig.put(reply.addr, &[GUARD; 1025]);
    assert_eq!(rig.answer(&[request], &cut(reply, [1; 1023])), 0);
    assert_eq!(rig.get(reply), [&[GUARD; 1024][..], &[IOERR]].concat());
}
