//! Discard and write zeroes.

use std::fs;
use std::sync::Arc;

use guest_memory::{Access, AddressSpace as _};
use rustix::io::Errno;
use virtqueue::Segment;

use super::rig::{
    Call, DISCARD, DISCARDED, Disk, F_ERASING, F_FLUSH, GUARD, IN, IOERR, OK, Rig, Setup, UNSUPP,
    WRITE_ZEROES, config, header, pattern, segment,
};
use crate::Engine;
use crate::blk::{Blk, BlkConfig};

const SECTORS: usize = 64;

fn rig(features: u128) -> (Arc<Disk>, Rig) {
    let disk = Disk::new(pattern(SECTORS * 512));
    let setup = Setup {
        features,
        ..Setup::default()
    };
    let rig = Rig::over(&disk, &config(1), setup);
    (disk, rig)
}

/// Runs one request with these segments; answers its status.
fn erase(rig: &mut Rig, kind: u32, segments: &[[u8; 16]]) -> u8 {
    let bytes = segments.concat();
    let data = (!bytes.is_empty()).then(|| rig.buffer_with(&bytes));
    let (status, len) = rig.ask(kind, 0, data, None);
    assert_eq!(len, 1);
    status
}

#[test]
fn r30_segments_may_straddle_descriptors() {
    for first in 1..48 {
        let (disk, mut rig) = rig(F_ERASING | F_FLUSH);
        let bytes = [
            &header(WRITE_ZEROES, 7)[..],
            &segment(3, 2, 0),
            &segment(9, 1, 1),
        ]
        .concat();
        let (front, back) = bytes.split_at(first);
        let readable = [rig.buffer_with(front), rig.buffer_with(back)];
        let status = rig.buffer(1);
        assert_eq!(rig.answer(&readable, &[status]), 1);
        assert_eq!(rig.get(status), [OK]);
        let mut expected = pattern(SECTORS * 512);
        expected[3 * 512..5 * 512].fill(0);
        expected[9 * 512..10 * 512].fill(0);
        assert!(disk.state().bytes == expected, "{first} bytes first");
        let calls = [Call::Zero { unmap: false }, Call::Zero { unmap: true }];
        assert_eq!(disk.state().log, calls);
    }
}

#[test]
fn r30_one_bad_segment_among_good_ones_and_nothing_is_done() {
    let (disk, mut rig) = rig(F_ERASING | F_FLUSH);
    let end = SECTORS as u64;
    for kind in [DISCARD, WRITE_ZEROES] {
        let good = segment(0, 1, 0);
        for bad in [
            segment(end, 1, 0),
            segment(end - 1, 2, 0),
            segment(u64::MAX, 1, 0),
        ] {
            for list in [[good, bad], [bad, good]] {
                assert_eq!(erase(&mut rig, kind, &list), IOERR);
            }
        }
        let list = [good, segment(1, 1, 2)];
        assert_eq!(erase(&mut rig, kind, &list), UNSUPP);
        assert_eq!(erase(&mut rig, kind, &[]), IOERR);
        assert_eq!(erase(&mut rig, kind, &[good; 17]), IOERR);
        for bytes in [1, 15, 17, 31] {
            let data = rig.buffer_with(&[good, good].concat()[..bytes]);
            assert_eq!(rig.ask(kind, 0, Some(data), None), (IOERR, 1));
        }
    }
    assert_eq!(disk.state().log, []);
    assert_eq!(disk.state().bytes, pattern(SECTORS * 512));
    // Nothing to do is no reason to fail.
    assert_eq!(erase(&mut rig, DISCARD, &[segment(end, 0, 0); 16]), OK);
    assert_eq!(disk.state().log, []);
}

#[test]
fn r31_unmap_is_for_write_zeroes_alone() {
    let (disk, mut rig) = rig(F_ERASING | F_FLUSH);
    assert_eq!(erase(&mut rig, DISCARD, &[segment(0, 1, 1)]), UNSUPP);
    assert_eq!(erase(&mut rig, WRITE_ZEROES, &[segment(0, 1, 1)]), OK);
    assert_eq!(erase(&mut rig, 14, &[segment(0, 1, 0)]), UNSUPP);
    assert_eq!(disk.state().log, [Call::Zero { unmap: true }]);
}

#[test]
fn r26_erasing_needs_its_feature_and_a_disk_that_may_be_written() {
    for (features, discard, zeroes) in [
        (0, UNSUPP, UNSUPP),
        (1 << 13, OK, UNSUPP),
        (1 << 14, UNSUPP, OK),
    ] {
        let (disk, mut rig) = rig(features);
        assert_eq!(erase(&mut rig, DISCARD, &[segment(0, 1, 0)]), discard);
        assert_eq!(erase(&mut rig, WRITE_ZEROES, &[segment(1, 1, 0)]), zeroes);
        let state = disk.state();
        assert_eq!(state.bytes[0] == DISCARDED, discard == OK);
        assert_eq!(state.bytes[512..1024] == [0; 512], zeroes == OK);
    }
}

#[test]
fn extra_writable_bytes_are_left_alone() {
    let (_, mut rig) = rig(F_ERASING | F_FLUSH);
    let (data, extra) = (rig.buffer_with(&segment(0, 1, 0)), rig.buffer(100));
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(rig.ask(kind, 0, Some(data), Some(extra)), (OK, 0));
        assert_eq!(rig.get(extra), [GUARD; 100]);
    }
}

#[test]
fn r17_segments_that_change_meanwhile_are_one_of_the_two() {
    let (disk, mut rig) = rig(F_ERASING | F_FLUSH);
    let request = rig.header(WRITE_ZEROES, 0);
    let list = rig.buffer_with(&segment(4, 1, 0));
    let status = rig.buffer(1);
    // The high byte of the sector: inside the disk, or far outside.
    let high = Segment {
        addr: list.addr + 7,
        len: 1,
    };
    let lease = rig
        .space
        .translate_leased(high.addr, high.len, Access::Write)
        .unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut zeroed = false;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for value in [0, 0x80] {
                    lease.range().write(0, &[value]).unwrap();
                }
            }
        });
        for _ in 0..2000 {
            let before = disk.count(Call::Zero { unmap: false });
            assert_eq!(rig.answer(&[request, list], &[status]), 1);
            let done = disk.count(Call::Zero { unmap: false }) - before;
            match rig.get(status)[0] {
                OK => assert_eq!(done, 1),
                IOERR => assert_eq!(done, 0),
                other => panic!("status {other}"),
            }
            zeroed |= done == 1;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let mut expected = pattern(SECTORS * 512);
    if zeroed {
        expected[4 * 512..5 * 512].fill(0);
    }
    assert!(disk.state().bytes == expected);
}

#[test]
fn erasing_does_not_hold_up_the_loop() {
    let (disk, mut rig) = rig(F_ERASING | F_FLUSH);
    disk.close_gate();
    let data = rig.buffer_with(&segment(0, 1, 0));
    let waiting = [DISCARD, WRITE_ZEROES].map(|kind| rig.request(0, kind, 0, Some(data), None).1);
    rig.poll(64);
    disk.wait_for_calls(2);
    let back = rig.buffer(512);
    let (read, status) = rig.request(0, IN, 5, None, Some(back));
    rig.poll(64);
    assert_eq!(rig.used.pop().unwrap().1.head, read);
    assert_eq!(rig.get(status), [OK]);
    disk.open_gate();
    rig.run();
    for status in waiting {
        assert_eq!(rig.get(status), [OK]);
    }
}

#[test]
fn r40_a_disk_that_cannot_erase_is_never_reported_as_fine() {
    let (disk, mut rig) = rig(F_ERASING | F_FLUSH);
    disk.state().erase_error = Some(Errno::IO);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(erase(&mut rig, kind, &[segment(0, 1, 0); 2]), IOERR);
    }
    // The first failure ends each.
    let calls = [Call::Discard, Call::Zero { unmap: false }];
    assert_eq!(disk.state().log, calls);
    let data = rig.buffer(512);
    assert_eq!(rig.ask(IN, 0, None, Some(data)), (OK, 513));
}

#[test]
fn r35_zeroes_are_stable_like_writes_when_the_driver_does_not_flush() {
    use Call::{SyncBegins, SyncEnds};
    let (disk, mut rig) = rig(F_ERASING);
    assert_eq!(erase(&mut rig, WRITE_ZEROES, &[segment(0, 1, 0)]), OK);
    let calls = [Call::Zero { unmap: false }, SyncBegins, SyncEnds];
    assert_eq!(disk.state().log, calls);
    // Nothing is left to lose.
    assert_eq!(erase(&mut rig, DISCARD, &[segment(0, 1, 0)]), OK);
    assert_eq!(disk.count(SyncBegins), 1);
    disk.state().sync_error = Some(Errno::IO);
    assert_eq!(erase(&mut rig, WRITE_ZEROES, &[segment(0, 1, 0)]), IOERR);
}

#[test]
fn r32_files_read_as_zeros_where_they_were_zeroed() {
    for sparse in [false, true] {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mut expected = vec![0; 1 << 20];
        if !sparse {
            expected = pattern(1 << 20);
        }
        image.as_file().set_len(1 << 20).unwrap();
        if !sparse {
            fs::write(image.path(), &expected).unwrap();
        }
        let config = BlkConfig {
            path: image.path().into(),
            ..config(1)
        };
        let blk = Blk::open(&config, &Engine::new().unwrap()).unwrap();
        let setup = Setup {
            features: F_ERASING | F_FLUSH,
            area_bytes: 8 << 20,
            ..Setup::default()
        };
        let mut rig = Rig::new(blk, setup);
        // Whole pages and parts of them, also the last sector.
        for (sector, count, unmap) in [
            (8, 16, 1),
            (8, 16, 0),
            (101, 3, 0),
            (209, 30, 1),
            (2047, 1, 1),
        ] {
            let list = [segment(sector, count, unmap)];
            assert_eq!(erase(&mut rig, WRITE_ZEROES, &list), OK);
            let start = usize::try_from(sector).unwrap() * 512;
            expected[start..start + count as usize * 512].fill(0);
            let back = rig.buffer(1 << 20);
            assert_eq!(rig.ask(IN, 0, None, Some(back)), (OK, (1 << 20) + 1));
            assert!(
                rig.get(back) == expected,
                "sparse {sparse}: {sector} {count} {unmap}"
            );
        }
        // A discard may leave anything, but only where it was told.
        assert_eq!(erase(&mut rig, DISCARD, &[segment(1000, 500, 0)]), OK);
        let got = fs::read(image.path()).unwrap();
        assert_eq!(got.len(), 1 << 20);
        assert!(got[..1000 * 512] == expected[..1000 * 512]);
        assert!(got[1500 * 512..] == expected[1500 * 512..]);
    }
}
