//! Each engine over a real file: what it moves, what it holds, and that stopping waits for it.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use guest_memory::{GuestRange, IoBuffers, NotTaken, ReadWriteFlags};
use rustix::io::Errno;
use virtqueue::{RingFeatures, Segment};

use super::rig::{
    FLUSH, GUARD, IN, IOERR, OK, OUT, Rig, Setup, WRITE_ZEROES, config, pattern, segment,
};
use crate::blk::direct::Alignment;
use crate::blk::image::{self, Image};
use crate::blk::job::Waiting;
use crate::blk::storage::{Direction, Storage};
use crate::blk::transfers::{Moved, Takes, Transfers};
use crate::blk::{Blk, BlkConfig};
use crate::{DeviceModel, Engine, EngineKind, Progress};

const BYTES: usize = 1 << 20;
const KINDS: [EngineKind; 3] = [
    EngineKind::IoUring,
    EngineKind::LinuxAio,
    EngineKind::Threads,
];

/// The engine; `None`, said loudly, where the kernel has none.
fn engine(kind: EngineKind) -> Option<Engine> {
    Engine::of_kind(kind)
        .inspect_err(|error| eprintln!("\n*** NOT TESTED: {kind}: {error} ***\n"))
        .ok()
}

/// An image beside the test's executable, as a temporary folder may be in memory.
struct Place(tempfile::NamedTempFile);

impl Place {
    fn new(bytes: &[u8]) -> Self {
        let exe = std::env::current_exe().unwrap();
        let image = tempfile::NamedTempFile::new_in(exe.parent().unwrap()).unwrap();
        std::fs::write(image.path(), bytes).unwrap();
        image.as_file().sync_all().unwrap();
        Self(image)
    }

    fn config(&self, direct: bool) -> BlkConfig {
        BlkConfig {
            path: PathBuf::from(self.0.path()),
            direct,
            ..config(1)
        }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.0.path()).unwrap()
    }

    /// Whether there is direct I/O here; says loudly if not.
    fn is_direct(&self) -> bool {
        match image::open(self.0.path(), false, true) {
            Ok(_) => true,
            Err(error) => {
                eprintln!("\n*** NOT TESTED: direct I/O: {error} ***\n");
                false
            }
        }
    }
}

/// An image that never serves at once, and of which the transfers that need no thread are held.
#[derive(Debug)]
struct Held {
    image: Image,
    /// What the image says, or something else.
    takes: Option<Takes>,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    /// Transfers that the kernel has ended and the device does not know of.
    behind: AtomicUsize,
    /// System calls that began transfers.
    submits: AtomicUsize,
    /// Transfers that went the way without a thread.
    added: AtomicUsize,
}

#[derive(Debug)]
struct HeldTransfers {
    inner: Box<dyn Transfers>,
    gate: Arc<Gate>,
    ended: Vec<Moved>,
}

impl Transfers for HeldTransfers {
    fn add(
        &mut self,
        direction: Direction,
        offset: u64,
        buffers: IoBuffers,
        job: Waiting,
    ) -> Result<(), NotTaken<Waiting>> {
        self.gate.added.fetch_add(1, Ordering::Relaxed);
        self.inner.add(direction, offset, buffers, job)
    }

    fn submit(&mut self, refused: &mut Vec<NotTaken<Waiting>>) -> bool {
        self.gate.submits.fetch_add(1, Ordering::Relaxed);
        self.inner.submit(refused)
    }

    fn submit_wakes(&self) -> bool {
        self.inner.submit_wakes()
    }

    fn reap(&mut self, ended: &mut Vec<Moved>) {
        self.inner.reap(&mut self.ended);
        if *self.gate.closed.lock().unwrap() {
            self.gate.behind.store(self.ended.len(), Ordering::Relaxed);
        } else {
            ended.append(&mut self.ended);
        }
    }
}

impl Storage for Held {
    fn read(&self, into: &[GuestRange<'_>], at: u64, flags: ReadWriteFlags) -> io::Result<usize> {
        if flags.contains(ReadWriteFlags::NOWAIT) {
            return Err(Errno::AGAIN.into());
        }
        self.image.read(into, at, flags)
    }

    fn write(&self, from: &[GuestRange<'_>], at: u64, flags: ReadWriteFlags) -> io::Result<usize> {
        if flags.contains(ReadWriteFlags::NOWAIT) {
            return Err(Errno::AGAIN.into());
        }
        self.image.write(from, at, flags)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.image.discard(offset, len)
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.image.zero(offset, len, unmap)
    }

    fn sync(&self) -> io::Result<()> {
        self.image.sync()
    }

    fn bytes(&self) -> io::Result<u64> {
        self.image.bytes()
    }

    fn is_cached(&self) -> bool {
        self.image.is_cached()
    }

    fn takes(&self, engine: EngineKind) -> Takes {
        self.takes.unwrap_or_else(|| self.image.takes(engine))
    }

    fn transfers(&self, engine: &Engine, wake: BorrowedFd<'_>) -> io::Result<Box<dyn Transfers>> {
        Ok(Box::new(HeldTransfers {
            inner: self.image.transfers(engine, wake)?,
            gate: Arc::clone(&self.gate),
            ended: Vec::new(),
        }))
    }
}

/// A device whose transfers can be held, with its engine.
fn held(place: &Place, engine: &Engine, direct: bool) -> (Rig, Arc<Gate>) {
    held_of(place, engine, direct, None)
}

/// The same, of which the engine does what `takes` says.
fn held_of(place: &Place, engine: &Engine, direct: bool, takes: Option<Takes>) -> (Rig, Arc<Gate>) {
    let gate = Arc::<Gate>::default();
    let (image, geometry) = image::open(place.0.path(), false, direct).unwrap();
    let storage = Arc::new(Held {
        image,
        takes,
        gate: Arc::clone(&gate),
    });
    let blk = Blk::over(&place.config(direct), storage, geometry, engine).unwrap();
    (Rig::new(blk, Setup::default()), gate)
}

/// Memory that direct I/O takes as it is.
fn aligned(rig: &mut Rig, bytes: &[u8]) -> Segment {
    let room = rig.buffer(bytes.len() + 4096);
    let segment = Segment {
        addr: room.addr.next_multiple_of(4096),
        len: bytes.len().try_into().unwrap(),
    };
    rig.put(segment.addr, bytes);
    segment
}

#[test]
fn every_engine_reads_back_what_it_wrote() {
    let place = Place::new(&pattern(BYTES));
    for kind in KINDS {
        let Some(engine) = engine(kind) else { continue };
        for direct in [false, true] {
            if direct && !place.is_direct() {
                continue;
            }
            let (mut rig, gate) = held(&place, &engine, direct);
            let waits = match (kind, direct) {
                (EngineKind::Threads, _) | (EngineKind::LinuxAio, false) => EngineKind::Threads,
                _ => kind,
            };
            assert_eq!(rig.blk.engine(), waits, "{kind}, direct {direct}");
            let bytes: Vec<_> = (0..64 * 1024)
                .map(|at| u8::try_from(at % 249).unwrap())
                .collect();
            let mut offers = Vec::new();
            for n in 0..4 {
                let data = aligned(&mut rig, &bytes);
                offers.push(rig.request(0, OUT, n * 256, Some(data), None).1);
            }
            rig.run();
            assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
            for (n, status) in (0..).zip(offers) {
                assert_eq!(rig.get(status), [OK]);
                let back = aligned(&mut rig, &vec![0; bytes.len()]);
                let len = u32::try_from(bytes.len()).unwrap() + 1;
                assert_eq!(rig.ask(IN, n * 256, None, Some(back)), (OK, len));
                assert!(rig.get(back) == bytes, "{kind}, direct {direct}");
            }
            let added = gate.added.load(Ordering::Relaxed);
            let expected = match (waits, direct) {
                (EngineKind::Threads, _) => 0,
                (_, false) => 4,
                (_, true) => 8,
            };
            assert_eq!(added, expected, "{kind}, direct {direct}");
            let written = place.bytes();
            assert!((0..4).all(|n| written[n * 256 * 512..][..bytes.len()] == bytes));
        }
    }
}

#[test]
fn more_than_the_loop_would_copy_is_copied_by_a_thread() {
    let place = Place::new(&pattern(BYTES));
    let Some(engine) = engine(EngineKind::IoUring) else {
        return;
    };
    for (len, added) in [(256 * 1024, 1), (256 * 1024 + 512, 0)] {
        let (mut rig, gate) = held(&place, &engine, false);
        let back = aligned(&mut rig, &vec![0; len]);
        assert_eq!(rig.ask(IN, 0, None, Some(back)).0, OK);
        assert!(rig.get(back) == pattern(BYTES)[..len]);
        assert_eq!(gate.added.load(Ordering::Relaxed), added, "{len} bytes");
    }
}

#[test]
fn what_a_turn_leaves_to_the_kernel_is_one_system_call() {
    let place = Place::new(&pattern(BYTES));
    for (kind, direct) in [(EngineKind::IoUring, false), (EngineKind::LinuxAio, true)] {
        let Some(engine) = engine(kind) else { continue };
        if direct && !place.is_direct() {
            continue;
        }
        let (mut rig, gate) = held(&place, &engine, direct);
        for sector in 0..32 {
            let back = aligned(&mut rig, &[0; 4096]);
            rig.request(0, IN, sector * 8, None, Some(back));
        }
        rig.poll(64);
        assert_eq!(gate.added.load(Ordering::Relaxed), 32, "{kind}");
        assert_eq!(gate.submits.load(Ordering::Relaxed), 1, "{kind}");
        rig.run();
    }
}

#[test]
fn what_the_kernel_does_at_once_is_answered_in_the_same_turn_and_wakes_nobody() {
    let place = Place::new(&pattern(BYTES));
    for kind in [EngineKind::IoUring, EngineKind::LinuxAio] {
        let Some(engine) = engine(kind) else { continue };
        // From the page cache, which both kernels read while they take the request.
        let (mut rig, gate) = held_of(&place, &engine, false, Some(Takes::Reads));
        for depth in [1, 32, 63] {
            gate.submits.store(0, Ordering::Relaxed);
            let back: Vec<_> = (0..depth).map(|_| rig.buffer(4096)).collect();
            for (sector, back) in (0..).step_by(8).zip(&back) {
                rig.request(0, IN, sector, None, Some(*back));
            }
            assert_eq!(rig.poll(64), Progress::Idle, "{kind}");
            assert_eq!(rig.used.drain(..).count(), depth, "{kind}");
            for (at, back) in (0..).step_by(4096).zip(back) {
                assert!(rig.get(back) == pattern(BYTES)[at..][..4096]);
            }
            assert_eq!(gate.submits.load(Ordering::Relaxed), 1, "{kind}");
            assert!(!rig.is_readable(), "{kind} wakes a loop that has it all");
        }
    }
}

#[test]
fn r19_a_queue_has_stopped_only_when_no_engine_has_anything_of_it() {
    let place = Place::new(&pattern(BYTES));
    for (kind, direct) in [
        (EngineKind::IoUring, false),
        (EngineKind::IoUring, true),
        (EngineKind::LinuxAio, true),
    ] {
        let Some(engine) = engine(kind) else { continue };
        if direct && !place.is_direct() {
            continue;
        }
        let (mut rig, gate) = held(&place, &engine, direct);
        let idle = rig.area.leases();
        *gate.closed.lock().unwrap() = true;
        let mut status = Vec::new();
        for n in 0..8 {
            let data = aligned(&mut rig, &pattern(BYTES)[n * 4096..][..4096]);
            let sector = n as u64 * 8;
            let (out, into) = match (direct, n % 2) {
                (true, 1) => (Some(data), None),
                _ => (None, Some(data)),
            };
            let kind = if out.is_some() { OUT } else { IN };
            status.push(rig.request(0, kind, sector, out, into).1);
        }
        rig.poll(64);
        rig.blk.stop_queue(0);
        // The kernel is done with all of it, and the device does not know.
        while gate.behind.load(Ordering::Relaxed) < 8 {
            rig.poll(64);
            assert!(rig.stopped(0).is_none(), "{kind}: transfers are in flight");
        }
        assert!(rig.area.leases() > idle);
        assert!(status.iter().all(|byte| rig.get(*byte) == [GUARD]));

        *gate.closed.lock().unwrap() = false;
        // Any wake will do.
        rustix::io::write(rig.blk.wake_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
        rig.run_until(|rig| rig.stopped(0).is_some());
        assert!(status.iter().all(|byte| rig.get(*byte) == [OK]), "{kind}");
        assert!(
            rig.area.leases() < idle,
            "neither rings nor buffers are held"
        );
        let memory = rig.memory();
        rig.blk.kick(0);
        assert_eq!(rig.poll(64), Progress::Idle);
        assert!(rig.memory() == memory);
    }
}

#[test]
fn a_device_whose_transfers_hang_takes_nothing_from_another() {
    let place = [Place::new(&pattern(BYTES)), Place::new(&pattern(BYTES))];
    for (kind, direct) in [(EngineKind::IoUring, false), (EngineKind::LinuxAio, true)] {
        let Some(engine) = engine(kind) else { continue };
        if direct && !place[0].is_direct() {
            continue;
        }
        let (mut stuck, gate) = held(&place[0], &engine, direct);
        *gate.closed.lock().unwrap() = true;
        let mut other = Rig::new(
            Blk::open(&place[1].config(false), &engine).unwrap(),
            Setup::default(),
        );
        let mut served = [0; 2];
        for (beside, served) in [false, true].into_iter().zip(&mut served) {
            if beside {
                for sector in 0..80 {
                    let back = aligned(&mut stuck, &[0; 512]);
                    stuck.request(0, IN, sector, None, Some(back));
                }
            }
            for turn in 0..50 {
                let back = other.buffer(512);
                for _ in 0..32 {
                    other.request(0, IN, turn, None, Some(back));
                }
                other.used.clear();
                stuck.poll(16);
                other.poll(16);
                *served += other.used.len();
                other.run();
            }
        }
        assert_eq!(served[0], 50 * 16, "what is cached is served at once");
        assert_eq!(served[1], served[0], "beside a {kind} that hangs");
        assert!(stuck.used.is_empty());
        *gate.closed.lock().unwrap() = false;
        rustix::io::write(stuck.blk.wake_fd().unwrap(), &1u64.to_ne_bytes()).unwrap();
        stuck.run();
        assert_eq!(stuck.used.len(), 80);
    }
}

#[test]
fn direct_io_takes_any_memory_and_whole_blocks() {
    let place = Place::new(&pattern(BYTES));
    if !place.is_direct() {
        return;
    }
    let file = place.0.as_file();
    let Alignment { block, .. } = Alignment::of(file, false).unwrap().unwrap();
    for kind in KINDS {
        let Some(engine) = engine(kind) else { continue };
        let blk = Blk::open(&place.config(true), &engine).unwrap();
        assert_eq!(blk.describe().config[20..24], block.to_le_bytes());
        let setup = Setup {
            area_bytes: 4 << 20,
            ..Setup::default()
        };
        let mut rig = Rig::new(blk, setup);
        // Guards of 16 bytes lie around these buffers, which are therefore not aligned; more than
        // one piece, larger than the buffer that they go through.
        let bytes: Vec<_> = (0..300 * 1024)
            .map(|at| u8::try_from(at % 241).unwrap())
            .collect();
        let (front, back) = bytes.split_at(1000);
        let [header, one, two] = [
            rig.header(OUT, 64),
            rig.buffer_with(front),
            rig.buffer_with(back),
        ];
        let status = rig.buffer(1);
        assert_eq!(rig.answer(&[header, one, two], &[status]), 1);
        assert_eq!(rig.get(status), [OK], "{kind}");
        let header = rig.header(IN, 64);
        let into = [rig.buffer(3), rig.buffer(bytes.len() - 3), rig.buffer(1)];
        let len = u32::try_from(bytes.len()).unwrap() + 1;
        assert_eq!(rig.answer(&[header], &into), len);
        assert!(
            [rig.get(into[0]), rig.get(into[1])].concat() == bytes,
            "{kind}"
        );

        let sectors = block / 512;
        if sectors > 1 {
            let data = rig.buffer(512);
            assert_eq!(rig.ask(OUT, 1, Some(data), None), (IOERR, 1));
            assert_eq!(rig.ask(IN, 0, None, Some(data)).0, IOERR);
        }
        let list = rig.buffer_with(&segment(64, 8, 0));
        let erasing = rig.ask(WRITE_ZEROES, 0, Some(list), None).0;
        assert_ne!(erasing, OK, "not negotiated");
        assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
        assert!(place.bytes()[64 * 512..][..bytes.len()] == bytes);
    }
}

#[test]
fn r32_zeroes_are_written_past_the_cache_as_well() {
    let place = Place::new(&pattern(BYTES));
    if !place.is_direct() {
        return;
    }
    let (image, _) = image::open(place.0.path(), false, true).unwrap();
    crate::blk::storage::write_zeros(&image.file, 4096, 128 * 1024).unwrap();
    let mut expected = pattern(BYTES);
    expected[4096..][..128 * 1024].fill(0);
    assert!(place.bytes() == expected);
}

#[test]
fn r40_the_end_of_a_file_that_shrank_is_an_error_with_every_engine() {
    for (kind, direct) in [
        (EngineKind::IoUring, false),
        (EngineKind::IoUring, true),
        (EngineKind::LinuxAio, true),
    ] {
        let place = Place::new(&pattern(BYTES));
        let Some(engine) = engine(kind) else { continue };
        if direct && !place.is_direct() {
            continue;
        }
        let (mut rig, gate) = held(&place, &engine, direct);
        place.0.as_file().set_len(4096).unwrap();
        let back = aligned(&mut rig, &[GUARD; 8192]);
        // The first half is there, and is told.
        assert_eq!(rig.ask(IN, 0, None, Some(back)), (IOERR, 4096), "{kind}");
        assert!(rig.get(back)[..4096] == pattern(BYTES)[..4096]);
        // Direct I/O may clear what lies behind.
        let behind = rig.get(back)[4096..].to_vec();
        assert!([[GUARD; 4096], [0; 4096]].iter().any(|fill| behind == fill));
        assert!(gate.added.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn a_file_system_without_direct_io_says_so() {
    let Ok(memory) = tempfile::NamedTempFile::new_in("/dev/shm") else {
        return;
    };
    memory.as_file().set_len(4096).unwrap();
    if let Err(error) = image::open(memory.path(), false, true) {
        let said = error.to_string();
        assert!(
            said.ends_with("has no direct I/O: leave out direct=1"),
            "{said}"
        );
    }
}

/// Reads and writes of this thread so far, as the kernel counts system calls.
fn calls() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    let number = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse::<u64>().ok()
    };
    Some(number("syscr:")? + number("syscw:")?)
}

#[test]
fn a_cached_read_is_one_system_call() {
    const DEPTH: u64 = 32;
    const ROUNDS: u64 = 100;
    let place = Place::new(&pattern(BYTES));
    for kind in KINDS {
        let Some(engine) = engine(kind) else { continue };
        let setup = Setup {
            ring: RingFeatures {
                event_idx: true,
                ..RingFeatures::default()
            },
            ..Setup::default()
        };
        let blk = Blk::open(&place.config(false), &engine).unwrap();
        let mut rig = Rig::new(blk, setup);
        let back = rig.buffer(4096);
        let [header, status] = [rig.header(IN, 0), rig.buffer(1)];
        let mut spent = 0;
        for _ in 0..ROUNDS {
            for _ in 0..DEPTH {
                rig.drivers[0].add(&[header], &[back, status]).unwrap();
            }
            rig.drivers[0].publish();
            rig.blk.kick(0);
            let (Some(first), Some(before)) = (calls(), calls()) else {
                eprintln!("\n*** NOT TESTED: /proc/thread-self/io is not there ***\n");
                return;
            };
            rig.poll(64);
            // Looking at the count is counted, too: that much.
            spent += calls().unwrap() - before - (before - first);
            // All were served in this one turn.
            assert_eq!(rig.drivers[0].offered(), 0);
            assert_eq!(rig.get(status), [OK]);
        }
        assert!(spent * 100 <= ROUNDS * DEPTH * 105, "{spent} calls, {kind}");
        assert!(
            spent >= ROUNDS * DEPTH,
            "what is counted is not what is done"
        );
    }
}
