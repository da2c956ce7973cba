//! A request that waits: what the engine does, and what its queue is owed afterwards.
//!
//! It owns leases of all memory it names, so that the memory outlives it whatever happens. Requests
//! that would run one after the other anyway go to a thread as a chain of jobs.

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};

use arrayvec::ArrayVec;
use guest_memory::{Access, AddressSpace, GuestRange, IoBuffers, LeasedRange};
use virtqueue::{Chain, Segment};

use super::erase::Erase;
use super::request::{HEADER_BYTES, Status};
use super::storage::{Direction, Outcome, Storage, transfer};
use crate::engine::{self, Completions};
use crate::ranges::{RANGES_MAX, Unreachable, put_last, skip, take};

/// Room for leases that a spare box keeps: a request of `seg_max`, while a guest that sends longer
/// ones does not make us hold memory for good.
const SPARE_LEASES: usize = 128;

/// Bytes that a chain of jobs moves before it wakes its device: small requests share a wake-up, while
/// the driver gets large ones back, and prepares others, before all of them are done.
const WAKE_BYTES: u64 = 256 * 1024;

/// The engine's way back to the device.
pub(super) type Finished = Completions<Waiting>;

/// A waiting request; the engine runs boxes. They are reused, with the room for their leases.
pub(super) type Waiting = Box<Job>;

/// What a request needs to go on without its device.
pub(super) struct Job {
    storage: Arc<dyn Storage>,
    /// Weak, as it holds finished jobs: a device that is dropped leaves no cycle behind.
    finished: Weak<Finished>,
    /// Who is owed the answer.
    pub(super) owner: Owner,
    /// Writable bytes before the status byte.
    pub(super) data_in: u64,
    /// What to do.
    pub(super) work: Work,
    /// Its effect must be on stable storage before it is answered.
    pub(super) stable: bool,
    /// How `work` ended.
    pub(super) result: io::Result<()>,
    /// The size of the image after a sync: rare and slow enough for a look at it, and every file
    /// system in a guest sends some, so that a disk that grew is noticed without being told.
    pub(super) size: Option<u64>,
    /// The descriptors of `work`, whole, in order.
    pub(super) data: IoBuffers,
    /// The last writable descriptor, whose last byte is the status.
    pub(super) status: Option<LeasedRange>,
    /// What the thread that runs it does afterwards.
    next: Option<Waiting>,
}

/// Whom a job is done for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A request, whose head goes back to its queue.
    Request {
        /// The queue.
        queue: u16,
        /// The head.
        head: u16,
    },
    /// The driver, which switches to write-through.
    CacheMode,
}

/// What a job does.
#[derive(Debug)]
pub(super) enum Work {
    /// Moves data.
    Transfer(Transfer),
    /// Erases ranges.
    Erase(Erase),
    /// Puts what was completed before on stable storage.
    Sync,
}

/// A transfer, perhaps begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    /// Which way.
    pub(super) direction: Direction,
    /// Byte offset in the image of the first byte.
    pub(super) offset: u64,
    /// Bytes in all.
    pub(super) len: u64,
    /// Bytes moved already, from the front.
    pub(super) moved: u64,
}

impl Work {
    /// Bytes of guest memory written, from the front of the writable ones.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Transfer(transfer) if transfer.direction == Direction::In => transfer.moved,
            Self::Transfer(_) | Self::Erase(_) | Self::Sync => 0,
        }
    }
}

impl Transfer {
    /// One of which nothing is moved yet.
    pub(super) fn new(direction: Direction, offset: u64, len: u64) -> Self {
        Self {
            direction,
            offset,
            len,
            moved: 0,
        }
    }

    /// Where in the whole descriptors that which is left begins, and how much it is.
    pub(super) fn rest(&self) -> (u64, u64) {
        let before = match self.direction {
            Direction::In => 0,
            Direction::Out => HEADER_BYTES,
        };
        (before + self.moved, self.len - self.moved)
    }

    /// The byte offset in the image of what is left.
    pub(super) fn rest_offset(&self) -> u64 {
        self.offset + self.moved
    }

    /// Moves what is left, waiting for it. `data` are the whole descriptors.
    fn run(&mut self, storage: &dyn Storage, data: &IoBuffers) -> io::Result<()> {
        let mut ranges: ArrayVec<GuestRange<'_>, RANGES_MAX> =
            data.ranges().take(RANGES_MAX).collect();
        let (before, len) = self.rest();
        let rest = take(skip(&mut ranges, before), len);
        let offset = self.rest_offset();
        let (moved, outcome) = transfer(storage, self.direction, rest, offset, true);
        self.moved += moved;
        match outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed(error) => Err(error),
            Outcome::WouldWait | Outcome::AlwaysWaits => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Job {
    pub(super) fn new(storage: &Arc<dyn Storage>, finished: &Arc<Finished>) -> Waiting {
        Box::new(Self {
            storage: Arc::clone(storage),
            finished: Arc::downgrade(finished),
            owner: Owner::CacheMode,
            data_in: 0,
            work: Work::Sync,
            stable: false,
            result: Ok(()),
            size: None,
            data: IoBuffers::default(),
            status: None,
            next: None,
        })
    }

    /// The first of a chain of `jobs`, which is empty afterwards: one thread runs them in their
    /// order, and wakes their device once for many.
    pub(super) fn chain(jobs: &mut Vec<Waiting>) -> Option<Waiting> {
        let mut first = None;
        while let Some(mut job) = jobs.pop() {
            job.next = first;
            first = Some(job);
        }
        first
    }

    /// Makes it the request of `chain`, and takes leases of what it names. After an error the
    /// job has to be cleared.
    pub(super) fn prepare(
        &mut self,
        space: &dyn AddressSpace,
        chain: &Chain,
        queue: u16,
        work: Work,
        stable: bool,
    ) -> Result<(), Unreachable> {
        self.owner = Owner::Request {
            queue,
            head: chain.head(),
        };
        self.data_in = chain.writable_len().saturating_sub(1);
        self.work = work;
        self.stable = stable;
        self.result = Ok(());
        if let Work::Transfer(transfer) = &self.work {
            let (segments, access) = match transfer.direction {
                Direction::In => (chain.writable(), Access::Write),
                Direction::Out => (chain.readable(), Access::Read),
            };
            for segment in segments {
                self.data.push(lease(space, segment, access)?);
            }
        }
        let last = chain.writable().last().ok_or(Unreachable)?;
        self.status = Some(lease(space, last, Access::Write)?);
        Ok(())
    }

    /// Makes it the sync of a driver that switches to write-through.
    pub(super) fn prepare_switch(&mut self) {
        self.owner = Owner::CacheMode;
        self.data_in = 0;
        self.work = Work::Sync;
        self.stable = false;
        self.result = Ok(());
    }

    /// Writes the status byte; answers the length of the used entry.
    pub(super) fn answer(&self) -> u32 {
        let status = match self.result {
            Ok(()) => Status::Ok,
            Err(_) => Status::IoErr,
        };
        if let Some(last) = &self.status {
            put_last(last.range(), status as u8);
        }
        used_len(self.work.written(), self.data_in)
    }

    /// Gives the leases back; the box can serve another request.
    pub(super) fn clear(&mut self) {
        self.data.clear(SPARE_LEASES);
        self.status = None;
        self.size = None;
    }

    /// Bytes that it moves.
    fn len(&self) -> u64 {
        match &self.work {
            Work::Transfer(transfer) => transfer.len,
            Work::Erase(_) | Work::Sync => 0,
        }
    }
}

impl engine::Job for Job {
    fn run(self: Box<Self>) {
        let mut moved = 0;
        let mut next = Some(self);
        while let Some(mut job) = next {
            next = job.next.take();
            job.result = match &mut job.work {
                Work::Transfer(transfer) => transfer.run(&*job.storage, &job.data),
                Work::Erase(erase) => erase.run(&*job.storage),
                Work::Sync => {
                    let synced = job.storage.sync();
                    job.size = job.storage.bytes().ok();
                    synced
                }
            };
            moved += job.len();
            let wakes = next.is_none() || moved >= WAKE_BYTES;
            if wakes {
                moved = 0;
            }
            if let Some(finished) = job.finished.upgrade() {
                finished.push(job, wakes);
            }
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("owner", &self.owner)
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

fn lease(
    space: &dyn AddressSpace,
    segment: &Segment,
    access: Access,
) -> Result<LeasedRange, Unreachable> {
    space
        .translate_leased(segment.addr, segment.len, access)
        .map_err(|_| Unreachable)
}

/// The length of a used entry: the prefix that was really written, which is everything if that
/// prefix reaches the status byte. Less than the truth is legal, more is not.
pub(super) fn used_len(written: u64, data_in: u64) -> u32 {
    let prefix = if written == data_in {
        written + 1
    } else {
        written
    };
    u32::try_from(prefix).unwrap_or(u32::MAX)
}
