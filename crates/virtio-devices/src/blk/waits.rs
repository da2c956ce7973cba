//! What cannot be done at once: which engine does it, and what has come back.
//!
//! A transfer goes to io_uring or Linux AIO if the engine has one of them and it fits, all of a turn
//! by one system call, behind which is looked for what it has done already; everything else goes to
//! threads, and so does a transfer that the kernel would not take after all.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use guest_memory::{AddressSpace, NotTaken};
use rustix::io::Errno;
use virtqueue::Chain;

use super::flush::Flushes;
use super::job::{Finished, Job, Waiting, Work};
use super::storage::{Direction, Storage};
use super::transfers::{Moved, Takes, Transfers};
use crate::engine::{Engine, EngineKind, Lane};
use crate::ranges::Unreachable;

/// Requests of one device that wait. What comes on top stays in the rings: this bounds the
/// leases that a guest makes us hold, and its share of the engine's memory.
pub(super) const IN_FLIGHT_MAX: u16 = 64;

/// Everything of a device that waits.
#[derive(Debug)]
pub(super) struct Waits {
    storage: Arc<dyn Storage>,
    engine: Engine,
    lane: Lane,
    finished: Arc<Finished>,
    flushes: Flushes,
    /// What goes to `transfers`.
    takes: Takes,
    /// Transfers go through the page cache.
    is_cached: bool,
    /// Made for the first transfer that waits: most devices find all they need in the page cache.
    transfers: Option<Box<dyn Transfers>>,
    /// Something was added to `transfers` and is not begun.
    added: bool,
    /// Writes that go to a thread at the end of the turn, one after the other.
    writes: Vec<Waiting>,
    in_flight: usize,
    /// What is to be answered.
    ended: VecDeque<Waiting>,
    /// Boxes for the next requests that wait.
    spare: Vec<Waiting>,
    /// Room for what came back; empty between calls.
    reaped: Vec<Waiting>,
    moved: Vec<Moved>,
    refused: Vec<NotTaken<Waiting>>,
}

impl Waits {
    pub(super) fn new(storage: Arc<dyn Storage>, engine: &Engine) -> io::Result<Self> {
        let room = usize::from(IN_FLIGHT_MAX);
        Ok(Self {
            takes: storage.takes(engine.choice().kind),
            is_cached: storage.is_cached(),
            storage,
            engine: engine.clone(),
            lane: engine.lane(room),
            finished: Arc::new(Finished::new(room)?),
            flushes: Flushes::default(),
            transfers: None,
            added: false,
            writes: Vec::new(),
            in_flight: 0,
            ended: VecDeque::with_capacity(room),
            spare: Vec::new(),
            reaped: Vec::with_capacity(room),
            moved: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// What does its transfers.
    pub(super) fn engine(&self) -> EngineKind {
        match self.takes {
            Takes::Nothing => EngineKind::Threads,
            Takes::Reads | Takes::Aligned(_) => self.engine.choice().kind,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight < usize::from(IN_FLIGHT_MAX)
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.finished.wake_fd()
    }

    /// Whether stable storage can never be promised again.
    pub(super) fn sync_failed(&self) -> bool {
        self.flushes.failed()
    }

    /// Takes a request over, with leases of its memory. [`Waits::submit`] begins it.
    pub(super) fn begin(
        &mut self,
        space: &dyn AddressSpace,
        chain: &Chain,
        queue: u16,
        work: Work,
        stable: bool,
    ) -> Result<(), Unreachable> {
        let mut job = self.new_job();
        if job.prepare(space, chain, queue, work, stable).is_err() {
            job.clear();
            self.spare.push(job);
            return Err(Unreachable);
        }
        self.in_flight += 1;
        self.assign(job);
        Ok(())
    }

    /// Takes over the sync of a driver that switches to write-through. Beyond the room, which is
    /// for requests: the device has one such switch at a time, whatever becomes of the driver.
    pub(super) fn begin_switch(&mut self) {
        let mut job = self.new_job();
        job.prepare_switch();
        self.in_flight += 1;
        self.assign(job);
    }

    /// Begins what was assigned to `writes` and `transfers`, and looks for what has ended at once.
    /// True: call again soon.
    pub(super) fn submit(&mut self) -> bool {
        if let Some(first) = Job::chain(&mut self.writes) {
            self.lane.submit_in_turn(first);
        }
        let Some(transfers) = self.transfers.as_mut().filter(|_| self.added) else {
            return false;
        };
        self.added = transfers.submit(&mut self.refused);
        let wakes = transfers.submit_wakes();
        for NotTaken {
            mut tag, buffers, ..
        } in self.refused.drain(..)
        {
            tag.data = buffers;
            self.lane.submit(tag);
        }
        if wakes {
            self.reap();
        } else {
            self.collect();
        }
        self.added
    }

    /// Looks for what has come back; [`Waits::next_ended`] gives what is complete. A system call
    /// only if there is something.
    pub(super) fn reap(&mut self) {
        if self.in_flight > 0 && self.collect() {
            // It was signalled, or is about to be. What ends from here on gives another signal.
            self.finished.take_wake();
            self.collect();
        }
    }

    /// Takes in what has come back. Whether there was anything.
    fn collect(&mut self) -> bool {
        if let Some(transfers) = &mut self.transfers {
            transfers.reap(&mut self.moved);
        }
        self.finished.drain_into(&mut self.reaped);
        let found = !self.moved.is_empty() || !self.reaped.is_empty();
        let mut moved = mem::take(&mut self.moved);
        for (mut job, buffers, result) in moved.drain(..) {
            job.data = buffers;
            self.transferred(job, result);
        }
        self.moved = moved;
        let mut reaped = mem::take(&mut self.reaped);
        for job in reaped.drain(..) {
            self.done(job);
        }
        self.reaped = reaped;
        found
    }

    /// A job that is complete, whose answer is owed. Give it back to [`Waits::recycle`].
    pub(super) fn next_ended(&mut self) -> Option<Waiting> {
        self.ended.pop_front()
    }

    pub(super) fn recycle(&mut self, mut job: Waiting) {
        job.clear();
        self.spare.push(job);
        self.in_flight -= 1;
    }

    fn new_job(&mut self) -> Waiting {
        self.spare
            .pop()
            .unwrap_or_else(|| Job::new(&self.storage, &self.finished))
    }

    fn assign(&mut self, job: Waiting) {
        match job.work {
            Work::Transfer(transfer) => {
                if let Err(job) = self.add(job) {
                    match transfer.direction {
                        // File systems let one writer at a time into a file's cached pages.
                        Direction::Out if self.is_cached => self.writes.push(job),
                        _ => self.lane.submit(job),
                    }
                }
            }
            Work::Erase(_) => self.lane.submit(job),
            Work::Sync => self.sync(job),
        }
    }

    /// Adds a transfer that needs no thread; the others are given back.
    fn add(&mut self, mut job: Waiting) -> Result<(), Waiting> {
        let Work::Transfer(transfer) = job.work else {
            return Err(job);
        };
        let (skip, len) = transfer.rest();
        if self.takes == Takes::Nothing
            || !job.data.select(skip, len)
            || !self.takes.includes(&transfer, &job.data)
        {
            return Err(job);
        }
        let Some(transfers) = self.transfers() else {
            return Err(job);
        };
        let buffers = mem::take(&mut job.data);
        match transfers.add(transfer.direction, transfer.rest_offset(), buffers, job) {
            Ok(()) => {
                self.added = true;
                Ok(())
            }
            Err(NotTaken {
                mut tag, buffers, ..
            }) => {
                tag.data = buffers;
                Err(tag)
            }
        }
    }

    fn transfers(&mut self) -> Option<&mut Box<dyn Transfers>> {
        if self.transfers.is_none() {
            match self
                .storage
                .transfers(&self.engine, self.finished.wake_fd())
            {
                Ok(transfers) => {
                    self.moved.reserve(IN_FLIGHT_MAX.into());
                    self.transfers = Some(transfers);
                }
                Err(error) => {
                    let engine = self.engine();
                    tracing::warn!(%engine, %error, "refused by the kernel: threads do its work");
                    self.takes = Takes::Nothing;
                }
            }
        }
        self.transfers.as_mut()
    }

    /// A transfer has come back from `transfers`, perhaps with a part of it done.
    fn transferred(&mut self, mut job: Waiting, result: io::Result<usize>) {
        let Work::Transfer(transfer) = &mut job.work else {
            return self.done(job);
        };
        match result {
            Ok(0) => job.result = Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                transfer.moved = transfer.len.min(transfer.moved + count as u64);
                if transfer.moved < transfer.len {
                    return self.assign(job);
                }
            }
            Err(error) => match Errno::from_io_error(&error) {
                // Not now: a thread can wait.
                Some(Errno::AGAIN | Errno::INTR) => return self.lane.submit(job),
                // Not asynchronously, whatever is asked.
                Some(Errno::OPNOTSUPP) => {
                    self.takes = Takes::Nothing;
                    return self.lane.submit(job);
                }
                _ => job.result = Err(error),
            },
        }
        self.done(job);
    }

    /// What a job was for is done, or has failed; what must be stable is not yet complete.
    fn done(&mut self, mut job: Waiting) {
        match job.work {
            Work::Sync => {
                let fine = job.result.is_ok();
                if let Some(next) = self.flushes.end(fine, &mut self.ended) {
                    self.lane.submit(next);
                }
                self.ended.push_back(job);
            }
            Work::Transfer(_) | Work::Erase(_) if job.stable && job.result.is_ok() => {
                job.work = Work::Sync;
                self.sync(job);
            }
            Work::Transfer(_) | Work::Erase(_) => self.ended.push_back(job),
        }
    }

    fn sync(&mut self, mut job: Waiting) {
        if self.flushes.failed() {
            job.result = Err(io::ErrorKind::Other.into());
            self.ended.push_back(job);
        } else if let Some(job) = self.flushes.join(job) {
            self.lane.submit(job);
        }
    }
}
