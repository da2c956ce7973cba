//! A driver and a block device over one piece of memory, and a disk that fails on request.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use guest_memory::{Access, AddressSpace, Area, FlatSpace, GuestRange};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{Errno, ReadWriteFlags};
use virtqueue::{DeviceQueue, DriverQueue, QueueLayout, QueueState, RingFeatures, Segment, Used};

use crate::blk::config::BlkConfig;
use crate::blk::device::Blk;
use crate::blk::image::Geometry;
use crate::blk::storage::Storage;
use crate::{DeviceEvent, DeviceModel, Engine, Progress};

pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;
pub(super) const FLUSH: u32 = 4;
pub(super) const GET_ID: u32 = 8;
pub(super) const DISCARD: u32 = 11;
pub(super) const WRITE_ZEROES: u32 = 13;

pub(super) const OK: u8 = 0;
pub(super) const IOERR: u8 = 1;
pub(super) const UNSUPP: u8 = 2;

pub(super) const F_FLUSH: u128 = 1 << 9;
pub(super) const F_CONFIG_WCE: u128 = 1 << 11;
/// DISCARD and WRITE_ZEROES.
pub(super) const F_ERASING: u128 = 1 << 13 | 1 << 14;

/// What fills all memory that nobody has written.
pub(super) const GUARD: u8 = 0xa5;

/// What a disk of the tests reads as where it was discarded.
pub(super) const DISCARDED: u8 = 0xdd;

/// Where the area lies on the bus; nothing is shared below or above it.
pub(super) const BASE: u64 = 1 << 48;
/// Room for the rings of a queue, and for its indirect tables behind them.
const RING_BYTES: u64 = 1 << 16;
const TABLE_ENTRIES: u16 = 128;

pub(super) fn config(queues: u16) -> BlkConfig {
    BlkConfig {
        path: "disk.img".into(),
        read_only: false,
        serial: "serial".to_owned(),
        queues,
        direct: false,
    }
}

/// A driver with a device.
pub(super) struct Rig {
    pub(super) blk: Blk,
    pub(super) area: Area,
    pub(super) space: FlatSpace,
    pub(super) drivers: Vec<DriverQueue>,
    pub(super) events: Vec<DeviceEvent>,
    pub(super) used: Vec<(u16, Used)>,
    features: u128,
    next_buffer: u64,
}

/// How a rig differs from the usual one.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) features: u128,
    pub(super) size: u16,
    pub(super) ring: RingFeatures,
    pub(super) area_bytes: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            features: F_FLUSH,
            size: 256,
            ring: RingFeatures::default(),
            area_bytes: 1 << 20,
        }
    }
}

impl Rig {
    /// A device over `disk` with all queues running.
    pub(super) fn over(disk: &Arc<Disk>, config: &BlkConfig, setup: Setup) -> Self {
        let engine = Engine::new().unwrap();
        Self::new(disk.device(config, &engine), setup)
    }

    pub(super) fn new(blk: Blk, setup: Setup) -> Self {
        let area = Area::anonymous(setup.area_bytes).unwrap();
        let space = FlatSpace::new(BASE, &area);
        let all = area.range(0, area.len() as u64, Access::Write).unwrap();
        all.write(0, &vec![GUARD; area.len()]).unwrap();
        let queues = u16::try_from(blk.describe().queue_max.len()).unwrap();
        let mut rig = Self {
            blk,
            area,
            space,
            drivers: Vec::new(),
            events: Vec::new(),
            used: Vec::new(),
            features: setup.features,
            next_buffer: BASE,
        };
        for index in 0..queues {
            let layout = QueueLayout::contiguous(rig.next_buffer, setup.size);
            assert!(u64::from(QueueLayout::contiguous_bytes(setup.size)) <= RING_BYTES);
            rig.next_buffer += RING_BYTES;
            let mut driver = DriverQueue::new(&rig.space, layout, setup.ring).unwrap();
            if setup.ring.indirect {
                driver = driver
                    .with_indirect_tables(&rig.space, rig.next_buffer, TABLE_ENTRIES)
                    .unwrap();
                rig.next_buffer +=
                    u64::from(DriverQueue::indirect_table_bytes(setup.size, TABLE_ENTRIES));
            }
            rig.drivers.push(driver);
            let ring = DeviceQueue::new(&rig.space, layout, setup.ring).unwrap();
            rig.start(index, ring);
        }
        rig
    }

    pub(super) fn start(&mut self, index: u16, ring: DeviceQueue) {
        self.blk.start_queue(index, ring, self.features);
    }

    /// Memory that nobody else uses, with a guard on either side.
    pub(super) fn buffer(&mut self, len: usize) -> Segment {
        let addr = self.next_buffer + 16;
        self.next_buffer = addr + len as u64 + 16;
        Segment {
            addr,
            len: len.try_into().unwrap(),
        }
    }

    pub(super) fn buffer_with(&mut self, bytes: &[u8]) -> Segment {
        let segment = self.buffer(bytes.len());
        self.put(segment.addr, bytes);
        segment
    }

    pub(super) fn header(&mut self, kind: u32, sector: u64) -> Segment {
        self.buffer_with(&header(kind, sector))
    }

    pub(super) fn put(&self, addr: u64, bytes: &[u8]) {
        let len = bytes.len().try_into().unwrap();
        let range = self.space.translate(addr, len, Access::Write).unwrap();
        range.write(0, bytes).unwrap();
    }

    pub(super) fn get(&self, segment: Segment) -> Vec<u8> {
        let Segment { addr, len } = segment;
        let range = self.space.translate(addr, len, Access::Read).unwrap();
        let mut bytes = vec![0; range.len()];
        range.read(0, &mut bytes).unwrap();
        bytes
    }

    /// The bytes of the whole area.
    pub(super) fn memory(&self) -> Vec<u8> {
        self.get(Segment {
            addr: BASE,
            len: u32::try_from(self.area.len()).unwrap(),
        })
    }

    /// Offers a chain and tells the device.
    pub(super) fn offer(&mut self, queue: u16, readable: &[Segment], writable: &[Segment]) -> u16 {
        let driver = &mut self.drivers[usize::from(queue)];
        let head = driver.add(readable, writable).unwrap();
        driver.publish();
        self.blk.kick(queue);
        head
    }

    /// Offers a request whose parts have a descriptor each; answers head and status byte.
    pub(super) fn request(
        &mut self,
        queue: u16,
        kind: u32,
        sector: u64,
        data_out: Option<Segment>,
        data_in: Option<Segment>,
    ) -> (u16, Segment) {
        let status = self.buffer(1);
        let mut readable = vec![self.header(kind, sector)];
        readable.extend(data_out);
        let mut writable: Vec<_> = data_in.into_iter().collect();
        writable.push(status);
        (self.offer(queue, &readable, &writable), status)
    }

    /// One poll, and what the device has returned by then.
    pub(super) fn poll(&mut self, budget: usize) -> Progress {
        let progress = self.blk.poll(&self.space, budget, &mut self.events);
        for (index, driver) in self.drivers.iter_mut().enumerate() {
            while let Some(used) = driver.pop_used().unwrap() {
                self.used.push((index.try_into().unwrap(), used));
            }
        }
        progress
    }

    /// Polls, and waits for the engine in between, until `done`.
    pub(super) fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        loop {
            let progress = self.poll(64);
            if done(self) {
                return;
            }
            if progress == Progress::Idle {
                let fd = self.blk.wake_fd().unwrap();
                let limit = Timespec {
                    tv_sec: 30,
                    tv_nsec: 0,
                };
                let ready =
                    rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit));
                assert_eq!(ready, Ok(1), "nothing is left to wait for");
            }
        }
    }

    /// Until every chain offered so far is returned.
    pub(super) fn run(&mut self) {
        self.run_until(|rig| rig.drivers.iter().all(|driver| driver.offered() == 0));
    }

    /// Runs one chain; answers the length of its used entry.
    pub(super) fn answer(&mut self, readable: &[Segment], writable: &[Segment]) -> u32 {
        let head = self.offer(0, readable, writable);
        self.run();
        let (_, used) = self.used.pop().unwrap();
        assert_eq!(used.head, head);
        used.len
    }

    /// Runs one request; answers status and length.
    pub(super) fn ask(
        &mut self,
        kind: u32,
        sector: u64,
        data_out: Option<Segment>,
        data_in: Option<Segment>,
    ) -> (u8, u32) {
        let (head, status) = self.request(0, kind, sector, data_out, data_in);
        self.run();
        let (_, used) = self.used.pop().unwrap();
        assert_eq!(used.head, head);
        (self.get(status)[0], used.len)
    }

    /// Whether the device wants to be polled.
    pub(super) fn is_readable(&self) -> bool {
        let fd = self.blk.wake_fd().unwrap();
        let now = Timespec::default();
        rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)) == Ok(1)
    }

    pub(super) fn needs_reset(&self) -> usize {
        let broken = |event: &&DeviceEvent| matches!(event, DeviceEvent::NeedsReset(_));
        self.events.iter().filter(broken).count()
    }

    pub(super) fn stopped(&self, queue: u16) -> Option<&QueueState> {
        self.events.iter().find_map(|event| match event {
            DeviceEvent::Stopped(index, state) if *index == queue => Some(state),
            _ => None,
        })
    }
}

pub(super) fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// A segment of a discard or write zeroes.
pub(super) fn segment(sector: u64, num_sectors: u32, flags: u32) -> [u8; 16] {
    let mut segment = [0; 16];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&num_sectors.to_le_bytes());
    segment[12..].copy_from_slice(&flags.to_le_bytes());
    segment
}

/// Bytes that tell their place in a disk.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at / 512 * 7 + at) % 251).unwrap())
        .collect()
}

/// Memory as a disk, which fails and waits as it is told.
#[derive(Debug)]
pub(super) struct Disk {
    state: Mutex<DiskState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct DiskState {
    pub(super) bytes: Vec<u8>,
    /// What a call that must not wait is told; `None`: it is served.
    pub(super) nowait: Option<Errno>,
    /// So many calls that must not wait are served, then `EAGAIN` is said.
    pub(super) again_after: Option<usize>,
    /// How often a call that must not wait was refused.
    pub(super) refused: usize,
    /// Calls that may wait do so.
    pub(super) gate_closed: bool,
    /// So many calls pass the closed gate.
    pub(super) passes: usize,
    /// Calls that wait now.
    pub(super) at_gate: usize,
    pub(super) read_error: Option<Errno>,
    pub(super) write_error: Option<Errno>,
    pub(super) sync_error: Option<Errno>,
    /// Most bytes of one call; 0: any.
    pub(super) at_most: usize,
    /// Said of it: that it is used through a page cache.
    pub(super) is_cached: bool,
    pub(super) erase_error: Option<Errno>,
    pub(super) log: Vec<Call>,
    /// The threads that looked at its size.
    pub(super) sized_by: Vec<ThreadId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
    Discard,
    Zero { unmap: bool },
    SyncBegins,
    SyncEnds,
}

impl Disk {
    pub(super) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(DiskState {
                bytes,
                ..DiskState::default()
            }),
            changed: Condvar::new(),
        })
    }

    /// A disk of `sectors` where nothing is done without waiting.
    pub(super) fn slow(sectors: usize) -> Arc<Self> {
        let disk = Self::new(pattern(sectors * 512));
        disk.state().nowait = Some(Errno::AGAIN);
        disk
    }

    /// A device over it.
    pub(super) fn device(self: &Arc<Self>, config: &BlkConfig, engine: &Engine) -> Blk {
        let geometry = Geometry::of_file(self.state().bytes.len() as u64);
        Blk::over(config, Arc::<Self>::clone(self), geometry, engine).unwrap()
    }

    /// What is erased reads as `fill` afterwards.
    fn erase(&self, call: Call, offset: u64, len: u64, fill: u8) -> io::Result<()> {
        let mut state = self.pass_gate();
        state.log.push(call);
        if let Some(errno) = state.erase_error {
            return Err(errno.into());
        }
        let start = usize::try_from(offset).unwrap();
        let end = start + usize::try_from(len).unwrap();
        state.bytes[start..end].fill(fill);
        Ok(())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap()
    }

    pub(super) fn close_gate(&self) {
        self.state().gate_closed = true;
    }

    pub(super) fn open_gate(&self) {
        self.state().gate_closed = false;
        self.changed.notify_all();
    }

    /// One call passes, of those that wait, or come next.
    pub(super) fn let_one_pass(&self) {
        self.state().passes += 1;
        self.changed.notify_all();
    }

    /// Until so many calls wait at the gate.
    pub(super) fn wait_for_calls(&self, count: usize) {
        let enough = |state: &mut DiskState| state.at_gate < count;
        drop(self.changed.wait_while(self.state(), enough).unwrap());
    }

    /// Until so many calls have passed the gate, and one waits there.
    pub(super) fn wait_for_passes(&self, count: usize) {
        let busy = |state: &mut DiskState| state.log.len() < count || state.at_gate == 0;
        drop(self.changed.wait_while(self.state(), busy).unwrap());
    }

    pub(super) fn count(&self, call: Call) -> usize {
        self.state()
            .log
            .iter()
            .filter(|seen| **seen == call)
            .count()
    }

    fn pass_gate(&self) -> MutexGuard<'_, DiskState> {
        let mut state = self.state();
        state.at_gate += 1;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |state| state.gate_closed && state.passes == 0)
            .unwrap();
        state.passes = state.passes.saturating_sub(1);
        state.at_gate -= 1;
        state
    }

    fn begin(&self, call: Call, flags: ReadWriteFlags) -> io::Result<MutexGuard<'_, DiskState>> {
        let mut state = if flags.contains(ReadWriteFlags::NOWAIT) {
            let mut state = self.state();
            match state.again_after {
                Some(0) => state.nowait = Some(Errno::AGAIN),
                Some(left) => state.again_after = Some(left - 1),
                None => {}
            }
            if let Some(errno) = state.nowait {
                state.refused += 1;
                return Err(errno.into());
            }
            state
        } else {
            self.pass_gate()
        };
        state.log.push(call);
        Ok(state)
    }
}

impl Storage for Disk {
    fn read(
        &self,
        into: &[GuestRange<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize> {
        let state = self.begin(Call::Read, flags)?;
        if let Some(errno) = state.read_error {
            return Err(errno.into());
        }
        Ok(pieces(&state, into, offset, |range, at, bytes| {
            range.write(at, bytes).unwrap();
        }))
    }

    fn write(
        &self,
        from: &[GuestRange<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize> {
        let mut state = self.begin(Call::Write, flags)?;
        if let Some(errno) = state.write_error {
            return Err(errno.into());
        }
        let mut written = Vec::new();
        let count = pieces(&state, from, offset, |range, at, bytes| {
            let mut part = vec![0; bytes.len()];
            range.read(at, &mut part).unwrap();
            written.append(&mut part);
        });
        let start = usize::try_from(offset).unwrap();
        state.bytes[start..start + count].copy_from_slice(&written);
        Ok(count)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.erase(Call::Discard, offset, len, DISCARDED)
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.erase(Call::Zero { unmap }, offset, len, 0)
    }

    fn sync(&self) -> io::Result<()> {
        self.state().log.push(Call::SyncBegins);
        let mut state = self.pass_gate();
        state.log.push(Call::SyncEnds);
        state.sync_error.map_or(Ok(()), |errno| Err(errno.into()))
    }

    fn bytes(&self) -> io::Result<u64> {
        self.state().sized_by.push(thread::current().id());
        Ok(self.state().bytes.len() as u64)
    }

    fn is_cached(&self) -> bool {
        self.state().is_cached
    }
}

/// Gives `each` the bytes of the disk that meet each range; answers how many there were.
fn pieces(
    state: &DiskState,
    ranges: &[GuestRange<'_>],
    offset: u64,
    mut each: impl FnMut(&GuestRange<'_>, u64, &[u8]),
) -> usize {
    let from = usize::try_from(offset).unwrap().min(state.bytes.len());
    let mut rest = &state.bytes[from..];
    if state.at_most != 0 {
        rest = &rest[..rest.len().min(state.at_most)];
    }
    let available = rest.len();
    for range in ranges {
        let (part, behind) = rest.split_at(range.len().min(rest.len()));
        each(range, 0, part);
        rest = behind;
    }
    available - rest.len()
}
