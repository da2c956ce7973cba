//! Transfers that go on without a thread: the seam to io_uring and Linux AIO, where tests hold them.

use std::fmt;
use std::io;

use guest_memory::{AsyncIo, IoBuffers, NotTaken, Transfer};

use super::direct::Alignment;
use super::job::Waiting;
use super::storage::Direction;

/// Which transfers of an image need no thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// None.
    Nothing,
    /// All reads.
    Reads,
    /// Reads and writes that the disk takes as they are.
    Aligned(Alignment),
}

impl Takes {
    /// Whether that is one of them, of what `buffers` has selected.
    pub(super) fn includes(self, direction: Direction, offset: u64, buffers: &IoBuffers) -> bool {
        match self {
            Self::Nothing => false,
            Self::Reads => direction == Direction::In,
            Self::Aligned(alignment) => alignment.allows_transfer(offset, buffers),
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

    /// Begins what was added; appends what is not taken. True: call again.
    fn submit(&mut self, refused: &mut Vec<NotTaken<Waiting>>) -> bool;

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
            Direction::In => Transfer::Read,
            Direction::Out => Transfer::Write,
        };
        AsyncIo::add(self, transfer, offset, buffers, job)
    }

    fn submit(&mut self, refused: &mut Vec<NotTaken<Waiting>>) -> bool {
        AsyncIo::submit(self, |transfer| refused.push(transfer))
    }

    fn reap(&mut self, ended: &mut Vec<Moved>) {
        AsyncIo::reap(self, |job, buffers, result| {
            ended.push((job, buffers, result))
        });
    }
}
