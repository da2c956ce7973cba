//! One request from its chain to its answer: inline if nothing waits, else see `waits`.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use guest_memory::{Access, Cursor, GuestRange};
use virtqueue::Chain;

use super::config::{BlkConfig, SERIAL_BYTES};
use super::erase::{Erase, Erasing, LIST_BYTES_MAX};
use super::image::Geometry;
use super::job::{Owner, Transfer, Work, used_len};
use super::request::{HEADER_BYTES, Limits, Request, Status};
use super::storage::{self, Direction, Outcome, Storage};
use super::waits::Waits;
use crate::engine::{Engine, EngineKind};
use crate::ranges::{Ranges, Unreachable, gather, put_last, scatter, skip, take};

/// Bytes that one request may move on the loop: some 25 µs of copying, for which no thread is
/// worth waking and after which the next guest has its turn.
pub(super) const INLINE_BYTES: u64 = 256 * 1024;

/// What a device needs to serve requests, without its queues.
#[derive(Debug)]
pub(super) struct Server {
    path: PathBuf,
    complained: bool,
    storage: Arc<dyn Storage>,
    limits: Limits,
    serial: [u8; SERIAL_BYTES],
    waits: Waits,
    /// Whether the image does any transfer without waiting, by direction.
    inline_in: bool,
    inline_out: bool,
    /// The image may have another size than the driver was told. A guest cannot cause many looks,
    /// which a slow file system makes everybody wait for: it ended before its capacity, or the
    /// toolstack asks.
    look_at_size: bool,
    /// The size that a thread has seen.
    size: Option<u64>,
}

/// What is the same for all requests of a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The queue they came from.
    pub(super) queue: u16,
    /// What its driver accepted.
    pub(super) features: u128,
    /// What writes is answered when its effect is on stable storage (section 4.4).
    pub(super) write_through: bool,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It is answered: give the head back with this length.
    Used(u32),
    /// `reap` will give it.
    InFlight,
}

/// What has ended that was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// A request: give the head back to the queue with this length.
    Used {
        /// The queue.
        queue: u16,
        /// The head.
        head: u16,
        /// Bytes written.
        len: u32,
    },
    /// The sync of [`Server::sync_for_switch`].
    Switched {
        /// Whether all that was written is on stable storage.
        fine: bool,
    },
}

/// The request has writable bytes, but the last one cannot be written: no answer is possible.
#[derive(Debug)]
pub(super) struct NoStatus;

impl Server {
    /// Serves `storage` of so many sectors as `config` says.
    pub(super) fn new(
        config: &BlkConfig,
        storage: Arc<dyn Storage>,
        sectors: u64,
        engine: &Engine,
    ) -> io::Result<Self> {
        Ok(Self {
            path: config.path.clone(),
            complained: false,
            storage: Arc::clone(&storage),
            limits: Limits {
                sectors,
                read_only: config.read_only,
            },
            serial: config.serial(),
            waits: Waits::new(storage, engine)?,
            inline_in: true,
            inline_out: true,
            look_at_size: false,
            size: None,
        })
    }

    /// Whether another request may be taken; if not, the wake descriptor will say when.
    pub(super) fn has_room(&self) -> bool {
        self.waits.has_room()
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.waits.wake_fd()
    }

    /// See [`Blk::engine`](super::Blk::engine).
    pub(super) fn engine(&self) -> EngineKind {
        self.waits.engine()
    }

    /// Serves one request by the table of section 4.3: `chain`, whose descriptors are at `ranges`.
    pub(super) fn serve(
        &mut self,
        memory: &mut Cursor<'_>,
        chain: &Chain,
        ranges: &mut Ranges<'_>,
        terms: Terms,
    ) -> Result<Served, NoStatus> {
        let refused = chain.refusal();
        let Some(data_in) = chain.writable_len().checked_sub(1) else {
            if refused.is_some() {
                return Err(NoStatus);
            }
            tracing::debug!(
                queue = terms.queue,
                head = chain.head(),
                "a request without a status byte"
            );
            return Ok(Served::Used(0));
        };
        let (Ok((readable, writable)), None) = (ranges.split(), refused) else {
            // The status byte may be reachable even so.
            let last = chain.writable().last().ok_or(NoStatus)?;
            let last = memory
                .translate(last.addr, last.len, Access::Write)
                .map_err(|_| NoStatus)?;
            return answer(last, Status::IoErr, 0, data_in);
        };
        let last = *writable.last().ok_or(NoStatus)?;
        let request = match self.parse(chain, readable, data_in, terms.features) {
            Ok(request) => request,
            Err(status) => return answer(last, status, 0, data_in),
        };
        let data_out = chain.readable_len() - HEADER_BYTES;
        let (mut work, data, writes) = match request {
            Request::GetId => {
                let written = scatter(take(writable, data_in), &self.serial);
                return answer(last, Status::Ok, written, data_in);
            }
            Request::Flush => (Work::Sync, Default::default(), false),
            Request::In { offset } => {
                let transfer = Transfer::new(Direction::In, offset, data_in);
                (Work::Transfer(transfer), take(writable, data_in), false)
            }
            Request::Out { offset } => {
                let transfer = Transfer::new(Direction::Out, offset, data_out);
                (Work::Transfer(transfer), skip(readable, HEADER_BYTES), true)
            }
            Request::Erase(erasing) => match self.segments(erasing, skip(readable, HEADER_BYTES)) {
                // What a discard leaves is undefined, so there is nothing to keep.
                Ok(erase) => (
                    Work::Erase(erase),
                    Default::default(),
                    erasing == Erasing::Zero,
                ),
                Err(status) => return answer(last, status, 0, data_in),
            },
        };
        let stable = writes && terms.write_through;
        if let Some(status) = self.try_now(&mut work, data, stable) {
            return answer(last, status, work.written(), data_in);
        }
        let written = work.written();
        match self
            .waits
            .begin(memory.space(), chain, terms.queue, work, stable)
        {
            Ok(()) => Ok(Served::InFlight),
            Err(Unreachable) => answer(last, Status::IoErr, written, data_in),
        }
    }

    /// Copies the header, once, and judges it.
    fn parse(
        &self,
        chain: &Chain,
        readable: &[GuestRange<'_>],
        data_in: u64,
        features: u128,
    ) -> Result<Request, Status> {
        // In one piece, as every driver sends it; or wherever its bytes lie.
        let mut header = readable.first().and_then(|first| first.read_array(0).ok());
        if header.is_none() {
            let mut pieces = [0; 16];
            header = gather(readable, &mut pieces).then_some(pieces);
        }
        let header = header.ok_or(Status::IoErr)?;
        let data_out = chain.readable_len() - HEADER_BYTES;
        Request::parse(header, data_out, data_in, self.limits, features)
    }

    /// Copies the segments, once, and judges them.
    fn segments(&self, erasing: Erasing, data: &[GuestRange<'_>]) -> Result<Erase, Status> {
        let mut segments = [0; LIST_BYTES_MAX];
        let len = data.iter().map(GuestRange::len).sum();
        let segments = segments.get_mut(..len).ok_or(Status::IoErr)?;
        if !gather(data, segments) {
            return Err(Status::IoErr);
        }
        Erase::parse(erasing, segments, self.limits.sectors)
    }

    /// Does what can be done without waiting; `None` if something is left.
    fn try_now(
        &mut self,
        work: &mut Work,
        data: &mut [GuestRange<'_>],
        stable: bool,
    ) -> Option<Status> {
        let transfer = match work {
            Work::Sync => return self.waits.sync_failed().then_some(Status::IoErr),
            Work::Erase(erase) => return erase.extents.is_empty().then_some(Status::Ok),
            Work::Transfer(transfer) => transfer,
        };
        if transfer.len == 0 {
            return Some(Status::Ok);
        }
        let inline = match transfer.direction {
            Direction::In => &mut self.inline_in,
            Direction::Out => &mut self.inline_out,
        };
        if !*inline || transfer.len > INLINE_BYTES || stable {
            return None;
        }
        let (moved, outcome) = storage::transfer(
            &*self.storage,
            transfer.direction,
            data,
            transfer.offset,
            false,
        );
        transfer.moved = moved;
        match outcome {
            Outcome::Done => Some(Status::Ok),
            Outcome::WouldWait => None,
            Outcome::AlwaysWaits => {
                *inline = false;
                None
            }
            Outcome::Failed(error) => {
                self.complain(&error);
                Some(Status::IoErr)
            }
        }
    }

    /// Begins a sync for a driver that switches to write-through; `reap` will tell of its end.
    pub(super) fn sync_for_switch(&mut self) {
        self.waits.begin_switch();
    }

    /// Begins together what a turn has left to the engine, and takes what it finishes at once.
    /// True: call again soon.
    pub(super) fn submit(&mut self) -> bool {
        self.waits.submit()
    }

    /// Whether the image has changed its size since the last call; if so, requests are judged by
    /// the new one from now on.
    pub(super) fn resized(&mut self, geometry: Geometry) -> Option<u64> {
        let seen = self.size.take();
        let bytes = match mem::take(&mut self.look_at_size) {
            true => self.storage.bytes(),
            false => Ok(seen?),
        };
        match bytes {
            Ok(bytes) => {
                let sectors = geometry.sectors_of(bytes);
                let before = mem::replace(&mut self.limits.sectors, sectors);
                (sectors != before).then(|| {
                    tracing::info!(image = %self.path.display(), before, sectors, "the image has another size");
                    sectors
                })
            }
            Err(error) => {
                self.complain(&error);
                None
            }
        }
    }

    /// The size of the image is to be looked at.
    pub(super) fn refresh(&mut self) {
        self.look_at_size = true;
    }

    /// Takes what the engine has finished.
    pub(super) fn reap(&mut self) {
        self.waits.reap();
    }

    /// Answers what was taken from the engine, and tells of each.
    pub(super) fn answer_ended(&mut self, mut tell: impl FnMut(Ended)) {
        while let Some(job) = self.waits.next_ended() {
            if let Err(error) = &job.result {
                self.complain(error);
            }
            self.size = job.size.or(self.size);
            tell(match job.owner {
                Owner::Request { queue, head } => Ended::Used {
                    queue,
                    head,
                    len: job.answer(),
                },
                Owner::CacheMode => Ended::Switched {
                    fine: job.result.is_ok(),
                },
            });
            self.waits.recycle(job);
        }
    }

    /// Tells the operator of the first failure of the image; a guest can cause any number.
    fn complain(&mut self, error: &io::Error) {
        // It ended before its capacity did.
        self.look_at_size |= error.kind() == io::ErrorKind::UnexpectedEof;
        if mem::replace(&mut self.complained, true) {
            tracing::debug!(%error, "the image fails again");
        } else {
            tracing::warn!(image = %self.path.display(), %error, "the image fails");
        }
    }
}

/// Writes the status byte, the last of `last`.
fn answer(
    last: GuestRange<'_>,
    status: Status,
    written: u64,
    data_in: u64,
) -> Result<Served, NoStatus> {
    if put_last(last, status as u8) {
        Ok(Served::Used(used_len(written, data_in)))
    } else {
        Err(NoStatus)
    }
}
