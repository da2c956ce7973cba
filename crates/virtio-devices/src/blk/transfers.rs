//! Transfers that go on without a thread: the seam to io_uring and Linux AIO, where tests hold them.

use std::fmt;
use std::io;

use guest_memory::{AsyncIo, IoBuffers, NotTaken};

use super::direct::Alignment;
use super::job::{Transfer, Waiting};
use super::serve::INLINE_BYTES;
use super::storage::Direction;

/// Which transfers of an image need no thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// None.
    Nothing,
    /// Reads through the page cache, of as many bytes as the loop itself would copy: the ring
    /// copies them on the loop as well.
    Reads,
    /// Reads and writes that the disk takes as they are.
    Aligned(Alignment),
}

impl Takes {
    /// Whether that is one of them, of what `buffers` has selected.
    pub(super) fn includes(self, transfer: &Transfer, buffers: &IoBuffers) -> bool {
        match self {
            Self::Nothing => false,
            Self::Reads => transfer.direction == Direction::In && transfer.len <= INLINE_BYTES,
            Self::Aligned(alignment) => alignment.allows_transfer(transfer.rest_offset(), buffers),
        }
    }
}

/// What has ended: the job, its memory, and the bytes moved.
pub(super) type Moved = (Waiting, IoBuffers, io::Result<usize>);

/// As [`AsyncIo`], for jobs.
pub(super) trait Transfers: Send + fmt::Debug {
    /// Queues a transfer of what `buffers` has selected.
    fn add(
        &mut self,
        direction: Direction,
        offset: u64,
        buffers: IoBuffers,
        job: Waiting,
    ) -> Result<(), NotTaken<Waiting>>;

    /// Begins what was added; appends what is not taken. True: call again. `reap` is to be called
    /// right behind it.
    fn submit(&mut self, refused: &mut Vec<NotTaken<Waiting>>) -> bool;

    /// Whether what ends while `submit` runs wakes as well.
    fn submit_wakes(&self) -> bool;

    /// Appends what has ended.
    fn reap(&mut self, ended: &mut Vec<Moved>);
}

impl Transfers for AsyncIo<Waiting> {
    fn add(
        &mut self,
        direction: Direction,
        offset: u64,
        buffers: IoBuffers,
        job: Waiting,
    ) -> Result<(), NotTaken<Waiting>> {
        let transfer = match direction {
            Direction::In => guest_memory::Transfer::Read,
            Direction::Out => guest_memory::Transfer::Write,
        };
        AsyncIo::add(self, transfer, offset, buffers, job)
    }

    fn submit(&mut self, refused: &mut Vec<NotTaken<Waiting>>) -> bool {
        AsyncIo::submit(self, |transfer| refused.push(transfer))
    }

    fn submit_wakes(&self) -> bool {
        AsyncIo::submit_wakes(self)
    }

    fn reap(&mut self, ended: &mut Vec<Moved>) {
        AsyncIo::reap(self, |job, buffers, result| {
            ended.push((job, buffers, result))
        });
    }
}
