//! Many requests: against a model of the table, and while the driver changes what it has offered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use guest_memory::{Access, AddressSpace};
use proptest::prelude::*;
use rustix::io::Errno;
use virtqueue::{RingFeatures, Segment};

use super::rig::{
    DISCARD, DISCARDED, Disk, F_ERASING, F_FLUSH, FLUSH, GET_ID, GUARD, IN, IOERR, OK, OUT, Rig,
    Setup, UNSUPP, WRITE_ZEROES, config, header, pattern, segment,
};
use crate::DeviceModel;
use crate::blk::Blk;
use crate::engine::Engine;

const SECTORS: usize = 16;

#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    data_out: usize,
    data_in: usize,
    /// Data-out of a request that erases: sector, count and flags.
    segments: Vec<(u64, u32, u32)>,
    /// Descriptor lengths to cut both streams into, over and over.
    cuts: Vec<usize>,
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![
        3 => Just(IN),
        3 => Just(OUT),
        1 => Just(FLUSH),
        1 => Just(GET_ID),
        1 => Just(DISCARD),
        2 => Just(WRITE_ZEROES),
        1 => any::<u32>(),
    ];
    let sector = prop_oneof![
        8 => 0..SECTORS as u64 + 2,
        1 => any::<u64>(),
    ];
    let bytes = || {
        prop_oneof![
            6 => (0usize..=SECTORS + 1).prop_map(|sectors| sectors * 512),
            1 => 0usize..2000,
        ]
    };
    let cuts = prop::collection::vec(prop_oneof![1usize..40, 100usize..5000], 1..4);
    let flags = prop_oneof![6 => Just(0u32), 2 => Just(1), 1 => any::<u32>()];
    let segments = prop::collection::vec((0..SECTORS as u64 + 1, 0u32..6, flags), 0..6);
    (kind, sector, bytes(), bytes(), segments, cuts).prop_map(
        |(kind, sector, data_out, data_in, segments, cuts)| Ask {
            kind,
            sector,
            data_out,
            data_in,
            segments,
            cuts,
        },
    )
}

/// Status of a request that erases, done if it is OK.
fn erase(disk: &mut [u8], kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
    let (most, flags, fill) = match kind {
        DISCARD => (16, 0, DISCARDED),
        _ => (4, 1, 0),
    };
    let end = |sector: u64, count: u32| usize::try_from(sector + u64::from(count)).unwrap() * 512;
    let outside = |&(sector, count, _): &(u64, u32, u32)| end(sector, count) > SECTORS * 512;
    if segments.is_empty() || segments.len() > most || segments.iter().any(outside) {
        return IOERR;
    }
    if segments.iter().any(|(.., given)| given & !flags != 0) {
        return UNSUPP;
    }
    for (sector, count, _) in segments {
        disk[end(*sector, 0)..end(*sector, *count)].fill(fill);
    }
    OK
}

/// The table of section 4.3 over a disk in memory: status, length, and what is read.
fn expected(disk: &mut [u8], ask: &Ask, data_out: &[u8]) -> (u8, usize, Vec<u8>) {
    let place = |len: usize| {
        let start = usize::try_from(ask.sector).ok()?.checked_mul(512)?;
        let end = start.checked_add(len)?;
        (len.is_multiple_of(512) && end <= SECTORS * 512).then_some(start..end)
    };
    let (status, read) = match ask.kind {
        IN => match place(ask.data_in) {
            Some(place) => (OK, disk[place].to_vec()),
            None => (IOERR, vec![]),
        },
        OUT => match place(ask.data_out) {
            Some(place) => {
                disk[place].copy_from_slice(data_out);
                (OK, vec![])
            }
            None => (IOERR, vec![]),
        },
        FLUSH => (OK, vec![]),
        DISCARD | WRITE_ZEROES => (erase(disk, ask.kind, &ask.segments), vec![]),
        GET_ID => {
            let mut serial = b"serial".to_vec();
            serial.resize(20.min(ask.data_in), 0);
            serial.truncate(ask.data_in);
            (OK, serial)
        }
        _ => (UNSUPP, vec![]),
    };
    let len = if read.len() == ask.data_in {
        read.len() + 1
    } else {
        read.len()
    };
    (status, len, read)
}

fn cut(whole: Segment, cuts: &[usize]) -> Vec<Segment> {
    let mut parts = Vec::new();
    let mut rest = whole;
    // Few enough for the queue, however short the cuts are.
    for len in cuts.iter().cycle().take(50) {
        let len = u32::try_from(*len).unwrap();
        if len >= rest.len {
            break;
        }
        parts.push(Segment { len, ..rest });
        rest.addr += u64::from(len);
        rest.len -= len;
    }
    parts.push(rest);
    parts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_request_is_answered_as_the_table_says(
        asks in prop::collection::vec(ask(), 1..12),
        slow: bool,
        write_through: bool,
        indirect: bool,
        event_idx: bool,
    ) {
        let mut model = pattern(SECTORS * 512);
        let disk = Disk::new(model.clone());
        disk.state().nowait = slow.then_some(Errno::AGAIN);
        let setup = Setup {
            features: if write_through { F_ERASING } else { F_ERASING | F_FLUSH },
            ring: RingFeatures { indirect, event_idx },
            area_bytes: 2 << 20,
            ..Setup::default()
        };
        let mut rig = Rig::over(&disk, &config(1), setup);
        for (turn, ask) in asks.iter().enumerate() {
            let data: Vec<_> = match ask.kind {
                DISCARD | WRITE_ZEROES => ask
                    .segments
                    .iter()
                    .flat_map(|(sector, count, flags)| segment(*sector, *count, *flags))
                    .collect(),
                _ => pattern(ask.data_out)
                    .iter()
                    .map(|byte| byte ^ u8::try_from(turn).unwrap())
                    .collect(),
            };
            let (status, len, read) = expected(&mut model, ask, &data);
            let request = rig.buffer_with(&[&header(ask.kind, ask.sector)[..], &data].concat());
            let reply = rig.buffer(ask.data_in + 1);
            let used = rig.answer(&cut(request, &ask.cuts), &cut(reply, &ask.cuts));
            prop_assert_eq!(used as usize, len, "{:?}", ask);

            let mut bytes = read;
            bytes.resize(ask.data_in, GUARD);
            bytes.push(status);
            prop_assert!(rig.get(reply) == bytes, "{:?}: status {}", ask, status);
            prop_assert!(disk.state().bytes == model, "{:?}", ask);
        }
        prop_assert_eq!(rig.needs_reset(), 0);
    }
}

/// Serves a request many times while a thread of the driver writes `values` to `at`, in turn.
fn while_flipping(
    rig: &mut Rig,
    at: Segment,
    values: [Vec<u8>; 2],
    rounds: usize,
    mut round: impl FnMut(&mut Rig),
) {
    let lease = rig
        .space
        .translate_leased(at.addr, at.len, Access::Write)
        .unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for value in &values {
                    lease.range().write(0, value).unwrap();
                }
            }
        });
        for _ in 0..rounds {
            round(rig);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn r17_a_header_that_changes_is_one_of_the_two() {
    let disk = Disk::new(pattern(4096));
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    let (request, reply) = (rig.header(IN, 0), rig.buffer(512));
    let status = rig.buffer(1);
    // The high half of the sector: inside the disk, or far outside.
    let high = Segment {
        addr: request.addr + 15,
        len: 1,
    };
    while_flipping(&mut rig, high, [vec![0], vec![0x80]], 2000, |rig| {
        rig.put(reply.addr, &[GUARD; 512]);
        let len = rig.answer(&[request], &[reply, status]);
        match rig.get(status)[0] {
            OK => {
                assert_eq!(len, 513);
                assert_eq!(rig.get(reply), pattern(512));
            }
            IOERR => {
                assert_eq!(len, 0);
                assert_eq!(rig.get(reply), [GUARD; 512]);
            }
            other => panic!("status {other}"),
        }
    });
}

#[test]
fn r02_a_queue_runs_through_its_index_wrap() {
    for event_idx in [false, true] {
        let disk = Disk::new(pattern(4096));
        let setup = Setup {
            size: 16,
            ring: RingFeatures {
                indirect: true,
                event_idx,
            },
            ..Setup::default()
        };
        let mut rig = Rig::over(&disk, &config(1), setup);
        let (read, reply) = (rig.header(IN, 1), rig.buffer(512));
        let status = rig.buffer(1);
        let mut answered = 0;
        while answered < 66_000 {
            for _ in 0..16 {
                rig.offer(0, &[read], &[reply, status]);
            }
            rig.run();
            for (_, used) in rig.used.drain(..) {
                assert_eq!(used.len, 513);
                answered += 1;
            }
            rig.events.clear();
        }
    }
}

#[test]
fn a_device_on_a_file_keeps_up_with_many_queues_and_threads() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 * 512).unwrap();
    let mut config = config(4);
    config.path = image.path().into();
    let blk = Blk::open(&config, &Engine::new().unwrap()).unwrap();
    assert_eq!(blk.describe().queue_max.len(), 4);
    let setup = Setup {
        area_bytes: 2 << 20,
        ..Setup::default()
    };
    let mut rig = Rig::new(blk, setup);
    let data: Vec<_> = (0..64)
        .map(|sector| rig.buffer_with(&[sector; 512]))
        .collect();
    for _ in 0..20 {
        for (sector, data) in (0..64).zip(&data) {
            rig.request(sector % 4, OUT, sector.into(), Some(*data), None);
        }
        for queue in 0..4 {
            rig.request(queue, FLUSH, 0, None, None);
        }
        rig.run();
        assert_eq!(rig.used.drain(..).count(), 68);
    }
    for sector in 0..64 {
        let back = rig.buffer(512);
        assert_eq!(rig.ask(IN, sector, None, Some(back)), (OK, 513));
        assert_eq!(rig.get(back), [u8::try_from(sector).unwrap(); 512]);
    }
}
