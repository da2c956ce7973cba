//! Turns requests of any offset and length into operations that fit the disk: cuts them, reads
//! what is around an unaligned write, and flushes behind a write that must be durable.
//!
//! No I/O: [`Schedule::next`] says what to do with a free slot of the disk, [`Schedule::finished`]
//! takes what became of it. Two writes that share a sector never overlap in time, as the one might
//! put back what the other replaced; a client has the right to send them together.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use frontend_shim::{Disk, MAX_REQUEST, Operation};
use nbd::{Command, Errno};

/// Bytes of a sector.
const SECTOR: usize = 512;

/// Bytes that one operation of the disk discards, and zeroes; `None`: it cannot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EraseLimits {
    pub(super) discard: Option<usize>,
    pub(super) zero: Option<usize>,
}

impl EraseLimits {
    /// A device that erases less at a time than it writes is not asked to: each piece is remembered.
    pub(super) fn of(disk: &Disk) -> Self {
        let bytes = |sectors: Option<u32>| {
            let sectors = usize::try_from(sectors?).ok()?;
            let bytes = sectors.saturating_mul(SECTOR);
            (bytes >= MAX_REQUEST).then_some(bytes)
        };
        Self {
            discard: bytes(disk.discard_limit()),
            zero: bytes(disk.zero_limit()),
        }
    }
}

/// Requests, each with a tag by which its end is told.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    limits: EraseLimits,
    waiting: VecDeque<Job<T>>,
    /// Those of which operations are in flight or to come, by age.
    running: BTreeMap<u64, Job<T>>,
    next_job: u64,
    /// Whose operation is in which slot, and where in the job's buffer its data is.
    slots: BTreeMap<usize, (u64, Range<usize>)>,
}

/// A request on its way.
#[derive(Debug)]
struct Job<T> {
    tag: T,
    steps: VecDeque<Step>,
    outstanding: usize,
    failure: Option<Errno>,
    /// First sector.
    start: u64,
    /// Whole sectors, from `start` on.
    buffer: Vec<u8>,
    /// What the request is about, in the buffer.
    wanted: Range<usize>,
    /// What an unaligned write puts there, once the rest is read; then empty.
    payload: Vec<u8>,
    writes: bool,
}

/// What is to be done, one after the other; ranges are of the buffer.
#[derive(Clone, Debug)]
enum Step {
    Read(Range<usize>),
    Write(Range<usize>),
    /// The ranges of these two are of the request: it has no buffer.
    Discard(Range<usize>),
    Zero {
        range: Range<usize>,
        hole: bool,
    },
    /// After all before it.
    Flush,
}

impl<T> Schedule<T> {
    pub(super) fn new(limits: EraseLimits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            next_job: 0,
            slots: BTreeMap::new(),
        }
    }

    /// Takes a request.
    pub(super) fn push(&mut self, tag: T, command: Command) {
        self.waiting.push_back(Job::new(tag, command, self.limits));
    }

    /// What the free `slot` is to do now, and the bytes that it writes. `None`: nothing can begin
    /// before something else ends.
    pub(super) fn next(&mut self, slot: usize) -> Option<(Operation, &[u8])> {
        let (id, step) = loop {
            let ready = self
                .running
                .iter_mut()
                .find_map(|(id, job)| job.next_step().map(|step| (*id, step)));
            match ready {
                Some(ready) => break ready,
                None => self.begin()?,
            }
        };
        let job = self.running.get_mut(&id)?;
        job.outstanding += 1;
        let (operation, range, data) = match step {
            Step::Read(range) => {
                let (sector, len) = (job.sector(&range), range.len());
                // Memory for a read only now: those that wait hold none.
                if job.buffer.len() < range.end {
                    job.buffer
                        .resize(job.wanted.end.next_multiple_of(SECTOR), 0);
                }
                (Operation::Read { sector, len }, range, &[][..])
            }
            Step::Write(range) => {
                let (sector, len) = (job.sector(&range), range.len());
                let data = &job.buffer[range.clone()];
                (Operation::Write { sector, len }, range, data)
            }
            Step::Discard(range) => {
                let (sector, sectors) = (job.sector(&range), whole_sectors(&range));
                (Operation::Discard { sector, sectors }, 0..0, &[][..])
            }
            Step::Zero { range, hole } => {
                let (sector, sectors) = (job.sector(&range), whole_sectors(&range));
                let unmap = hole;
                let zero = Operation::WriteZeroes {
                    sector,
                    sectors,
                    unmap,
                };
                (zero, 0..0, &[][..])
            }
            Step::Flush => (Operation::Flush, 0..0, &[][..]),
        };
        self.slots.insert(slot, (id, range));
        Some((operation, data))
    }

    /// Where the data goes that the slot has read; nowhere if it was no read.
    pub(super) fn landing(&mut self, slot: usize) -> &mut [u8] {
        self.slots
            .get(&slot)
            .and_then(|(id, range)| self.running.get_mut(id)?.buffer.get_mut(range.clone()))
            .unwrap_or_default()
    }

    /// The slot's operation has ended. If its request has, too: its tag, and the answer.
    pub(super) fn finished(
        &mut self,
        slot: usize,
        result: Result<(), Errno>,
    ) -> Option<(T, Result<Vec<u8>, Errno>)> {
        let (id, _) = self.slots.remove(&slot)?;
        let job = self.running.get_mut(&id)?;
        job.outstanding -= 1;
        if let Err(errno) = result {
            job.failure.get_or_insert(errno);
            job.steps.clear();
        }
        if job.outstanding > 0 || !job.steps.is_empty() {
            return None;
        }
        let job = self.running.remove(&id)?;
        Some(job.answer())
    }

    /// Lets the oldest request that waits begin, if no write is in its way.
    fn begin(&mut self) -> Option<()> {
        let job = self.waiting.front()?;
        let sectors = job.sectors();
        let in_the_way = |other: &Job<T>| {
            let others = other.sectors();
            other.writes && others.start < sectors.end && sectors.start < others.end
        };
        if job.writes && self.running.values().any(in_the_way) {
            return None;
        }
        let job = self.waiting.pop_front()?;
        self.running.insert(self.next_job, job);
        self.next_job += 1;
        Some(())
    }
}

impl<T> Job<T> {
    fn new(tag: T, command: Command, limits: EraseLimits) -> Self {
        let mut job = Self {
            tag,
            steps: VecDeque::new(),
            outstanding: 0,
            failure: None,
            start: 0,
            buffer: Vec::new(),
            wanted: 0..0,
            payload: Vec::new(),
            writes: false,
        };
        match command {
            Command::Read { offset, len } => {
                let whole = job.place(offset, len);
                job.steps.extend(cut(whole, MAX_REQUEST).map(Step::Read));
            }
            Command::Write { offset, data, fua } => {
                job.writes = true;
                let whole = job.place(offset, data.len());
                if whole == job.wanted {
                    job.buffer = data;
                } else {
                    job.steps.extend(edges(&job.wanted).map(Step::Read));
                    job.payload = data;
                }
                job.steps.extend(cut(whole, MAX_REQUEST).map(Step::Write));
                job.end_durable(fua);
            }
            Command::Trim { offset, len, fua } => {
                let pieces = job.erase(offset, len, limits.discard);
                job.steps.extend(pieces.map(Step::Discard));
                job.end_durable(fua);
            }
            Command::WriteZeroes {
                offset,
                len,
                hole,
                fua,
            } => {
                let pieces = job.erase(offset, len, limits.zero);
                job.steps
                    .extend(pieces.map(|range| Step::Zero { range, hole }));
                job.end_durable(fua);
            }
            Command::Flush => job.steps.push_back(Step::Flush),
        }
        job
    }

    fn end_durable(&mut self, fua: bool) {
        if fua {
            self.steps.push_back(Step::Flush);
        }
    }

    /// Notes where whole sectors are erased; the pieces in which that is done.
    fn erase(
        &mut self,
        offset: u64,
        len: u64,
        limit: Option<usize>,
    ) -> impl Iterator<Item = Range<usize>> + use<T> {
        self.writes = true;
        // Below 4 GiB, as the protocol says it in 32 bits.
        let whole = self.place(offset, usize::try_from(len).unwrap_or_default());
        // Only what is offered is asked for.
        cut(whole, limit.unwrap_or(MAX_REQUEST))
    }

    /// Notes where the request is; gives the part of the buffer that it needs.
    fn place(&mut self, offset: u64, len: usize) -> Range<usize> {
        self.start = offset / SECTOR as u64;
        let lead = usize::try_from(offset % SECTOR as u64).unwrap_or_default();
        self.wanted = lead..lead + len;
        0..self.wanted.end.next_multiple_of(SECTOR)
    }

    fn next_step(&mut self) -> Option<Step> {
        let waits = match self.steps.front()? {
            Step::Read(_) | Step::Discard(_) | Step::Zero { .. } => false,
            Step::Write(_) => !self.payload.is_empty(),
            Step::Flush => true,
        };
        if waits && self.outstanding > 0 {
            return None;
        }
        let step = self.steps.pop_front()?;
        if let Step::Write(_) = step
            && !self.payload.is_empty()
        {
            let payload = std::mem::take(&mut self.payload);
            self.buffer[self.wanted.clone()].copy_from_slice(&payload);
        }
        Some(step)
    }

    fn sector(&self, range: &Range<usize>) -> u64 {
        self.start + (range.start / SECTOR) as u64
    }

    fn sectors(&self) -> Range<u64> {
        self.start..self.start + self.wanted.end.div_ceil(SECTOR) as u64
    }

    fn answer(mut self) -> (T, Result<Vec<u8>, Errno>) {
        let result = match self.failure {
            Some(errno) => Err(errno),
            None if self.writes => Ok(Vec::new()),
            None => {
                self.buffer.truncate(self.wanted.end);
                self.buffer.drain(..self.wanted.start);
                Ok(self.buffer)
            }
        };
        (self.tag, result)
    }
}

/// Pieces of at most so many bytes.
fn cut(whole: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = whole.end;
    whole
        .step_by(most)
        .map(move |start| start..end.min(start + most))
}

fn whole_sectors(range: &Range<usize>) -> u32 {
    u32::try_from(range.len() / SECTOR).unwrap_or(u32::MAX)
}

/// The sectors that a write covers in part: none, the first, the last, or both.
fn edges(wanted: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let head = (wanted.start > 0).then_some(0);
    let last = wanted.end / SECTOR * SECTOR;
    let tail = (last < wanted.end && head != Some(last)).then_some(last);
    [head, tail]
        .into_iter()
        .flatten()
        .map(|start| start..start + SECTOR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: usize = 1 << 20;

    /// A disk in memory that ends its operations in any order.
    struct Rig {
        disk: Vec<u8>,
        schedule: Schedule<usize>,
        /// What each slot does; a write's bytes are on their way.
        slots: [Option<(Operation, Vec<u8>)>; 4],
        answers: Vec<(usize, Result<Vec<u8>, Errno>)>,
        done: Vec<Operation>,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                disk: (0_u32..).flat_map(u32::to_le_bytes).take(DISK).collect(),
                schedule: Schedule::new(EraseLimits {
                    discard: Some(1 << 30),
                    zero: Some(MAX_REQUEST),
                }),
                slots: [const { None }; 4],
                answers: Vec::new(),
                done: Vec::new(),
            }
        }

        /// Fills the slots; how many are busy.
        fn submit(&mut self) -> usize {
            for (slot, state) in self.slots.iter_mut().enumerate() {
                if state.is_none() {
                    let next = self.schedule.next(slot);
                    *state = next.map(|(operation, data)| (operation, data.to_vec()));
                }
            }
            self.slots.iter().flatten().count()
        }

        /// Ends the operation of the `nth` busy slot.
        fn end(&mut self, nth: usize, result: Result<(), Errno>) {
            let mut busy = (0..4).filter(|slot| self.slots[*slot].is_some());
            let slot = busy.nth(nth).unwrap();
            let (operation, data) = self.slots[slot].take().unwrap();
            self.done.push(operation);
            let at = |sector: u64| usize::try_from(sector).unwrap() * SECTOR;
            match operation {
                Operation::Read { sector, len } => {
                    let bytes = &self.disk[at(sector)..at(sector) + len];
                    self.schedule.landing(slot).copy_from_slice(bytes);
                }
                Operation::Write { sector, len } => {
                    self.disk[at(sector)..at(sector) + len].copy_from_slice(&data);
                }
                Operation::WriteZeroes {
                    sector, sectors, ..
                } => {
                    let len = at(sectors.into());
                    self.disk[at(sector)..at(sector) + len].fill(0);
                }
                _ => {}
            }
            self.answers.extend(self.schedule.finished(slot, result));
        }

        fn run(&mut self) {
            while self.submit() > 0 {
                self.end(0, Ok(()));
            }
        }
    }

    fn write(offset: u64, data: &[u8], fua: bool) -> Command {
        Command::Write {
            offset,
            data: data.to_vec(),
            fua,
        }
    }

    #[test]
    fn a_long_request_is_cut_and_its_parts_go_together() {
        let mut rig = Rig::new();
        let len = 2 * MAX_REQUEST + 1;
        rig.schedule.push(7, Command::Read { offset: 511, len });
        assert_eq!(rig.submit(), 3);
        rig.run();
        let expected = rig.disk[511..511 + len].to_vec();
        assert_eq!(rig.answers, [(7, Ok(expected))]);
    }

    #[test]
    fn an_aligned_write_reads_nothing() {
        let mut rig = Rig::new();
        rig.schedule.push(1, write(1024, &[1; 512], false));
        rig.run();
        assert_eq!(
            rig.done,
            [Operation::Write {
                sector: 2,
                len: 512
            }]
        );
        assert_eq!(rig.disk[1024..1536], [1; 512]);
    }

    #[test]
    fn an_unaligned_write_keeps_what_is_around_it() {
        let mut rig = Rig::new();
        let before = rig.disk.clone();
        rig.schedule.push(1, write(1000, &[1; 1000], false));
        rig.run();
        assert_eq!(rig.disk[..1000], before[..1000]);
        assert_eq!(rig.disk[1000..2000], [1; 1000]);
        assert_eq!(rig.disk[2000..], before[2000..]);
        let read = |sector| Operation::Read { sector, len: 512 };
        let write = Operation::Write {
            sector: 1,
            len: 1536,
        };
        assert_eq!(rig.done, [read(1), read(3), write]);
    }

    #[test]
    fn durable_is_answered_after_the_flush_that_follows_the_write() {
        let mut rig = Rig::new();
        rig.schedule.push(1, write(0, &[1; 512], true));
        assert_eq!(rig.submit(), 1);
        rig.end(0, Ok(()));
        assert_eq!(rig.answers, []);
        rig.run();
        let write = Operation::Write {
            sector: 0,
            len: 512,
        };
        assert_eq!(rig.done, [write, Operation::Flush]);
        assert_eq!(rig.answers, [(1, Ok(Vec::new()))]);
    }

    #[test]
    fn zeroing_is_cut_to_what_the_disk_takes_and_keeps_apart_from_writes() {
        let mut rig = Rig::new();
        let len = MAX_REQUEST as u64 + 512;
        let zeroes = Command::WriteZeroes {
            offset: 512,
            len,
            hole: false,
            fua: true,
        };
        rig.schedule.push(1, zeroes);
        rig.schedule.push(2, write(512, &[2; 512], false));
        assert_eq!(rig.submit(), 2);
        rig.run();
        let zeroed = |sector, sectors| Operation::WriteZeroes {
            sector,
            sectors,
            unmap: false,
        };
        let most = u32::try_from(MAX_REQUEST / SECTOR).unwrap();
        let written = Operation::Write {
            sector: 1,
            len: 512,
        };
        let expected = [
            zeroed(1, most),
            zeroed(1 + u64::from(most), 1),
            Operation::Flush,
        ];
        assert_eq!(rig.done[..3], expected);
        assert_eq!(rig.done[3..], [written]);
        assert_eq!(rig.answers, [(1, Ok(Vec::new())), (2, Ok(Vec::new()))]);
        assert_eq!(rig.disk[512..1024], [2; 512]);
        assert!(
            rig.disk[1024..512 + MAX_REQUEST + 512]
                .iter()
                .all(|byte| *byte == 0)
        );
    }

    #[test]
    fn a_trim_is_one_operation_if_the_disk_takes_it() {
        let mut rig = Rig::new();
        let (offset, len) = (4096, 900 << 20);
        rig.schedule.push(
            1,
            Command::Trim {
                offset,
                len,
                fua: false,
            },
        );
        rig.run();
        let sectors = 900 << 11;
        assert_eq!(rig.done, [Operation::Discard { sector: 8, sectors }]);
        assert_eq!(rig.answers, [(1, Ok(Vec::new()))]);
    }

    #[test]
    fn a_failure_is_told_once_when_all_has_come_back() {
        let mut rig = Rig::new();
        let len = 5 * MAX_REQUEST;
        rig.schedule.push(1, Command::Read { offset: 0, len });
        assert_eq!(rig.submit(), 4);
        rig.end(2, Err(Errno::Io));
        assert_eq!(rig.submit(), 3, "the rest is not asked for any more");
        rig.run();
        assert_eq!(rig.answers, [(1, Err(Errno::Io))]);
    }

    #[test]
    fn writes_to_one_sector_follow_each_other_and_others_do_not_wait() {
        let mut rig = Rig::new();
        rig.schedule.push(1, write(0, &[1; 100], false));
        rig.schedule.push(
            2,
            Command::Read {
                offset: 0,
                len: 512,
            },
        );
        rig.schedule.push(3, write(512, &[3; 512], false));
        rig.schedule.push(4, write(100, &[4; 100], false));
        assert_eq!(rig.submit(), 3);
        rig.run();
        assert_eq!(rig.disk[..100], [1; 100]);
        assert_eq!(rig.disk[100..200], [4; 100]);
    }

    fn command() -> impl Strategy<Value = (bool, usize, usize, bool)> {
        let near = 0..8192_usize;
        let far = 0..DISK;
        let len = prop_oneof![1..1500_usize, 1..400_000_usize];
        (any::<bool>(), prop_oneof![near, far], len, any::<bool>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Writes that do not overlap, sent together, end as if one had followed the other.
        #[test]
        fn any_order_of_completions_gives_the_same_disk(
            commands in proptest::collection::vec(command(), 1..30),
            order in proptest::collection::vec(0_usize..4, 1..20),
        ) {
            let mut rig = Rig::new();
            let mut model = rig.disk.clone();
            let mut written: Vec<Range<usize>> = Vec::new();
            for (tag, (writes, offset, len, fua)) in commands.into_iter().enumerate() {
                let len = len.min(DISK - offset);
                let range = offset..offset + len;
                let offset = offset as u64;
                if !writes {
                    rig.schedule.push(tag, Command::Read { offset, len });
                } else if written.iter().all(|w| w.end <= range.start || range.end <= w.start) {
                    let fill = vec![u8::try_from(tag).unwrap(); len];
                    model[range.clone()].copy_from_slice(&fill);
                    written.push(range);
                    rig.schedule.push(tag, write(offset, &fill, fua));
                }
            }
            let mut order = order.into_iter().cycle();
            loop {
                let busy = rig.submit();
                if busy == 0 {
                    break;
                }
                rig.end(order.next().unwrap() % busy, Ok(()));
            }
            prop_assert!(rig.schedule.running.is_empty() && rig.schedule.waiting.is_empty());
            prop_assert!(rig.answers.iter().all(|(_, result)| result.is_ok()));
            prop_assert!(rig.disk == model);
        }
    }
}
