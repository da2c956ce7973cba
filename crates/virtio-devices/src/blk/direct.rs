//! Direct I/O (`direct=1`): past the page cache, on the disk's terms.
//!
//! The disk wants whole blocks, which the driver is told as its logical block size: requests for
//! parts of them fail. It also wants memory that is aligned, which virtio has no words for: memory
//! that is not goes through a buffer of ours.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_memory::{Access, Area, GuestRange, IoBuffers, ReadWriteFlags, preadv2, pwritev2};
use rustix::fs::{AtFlags, StatxFlags, ioctl_blksszget, statx};
use rustix::io::Errno;

use super::image::BLOCK_MAX;
use super::storage::Direction;
use crate::ranges;

/// Bytes of a buffer of ours, and of one call through it.
const BOUNCE_BYTES: usize = 128 * 1024;

/// Buffers that are kept: one for each thread that works for a device at once.
const SPARE_MAX: usize = 4;

/// The disk's terms, in bytes: powers of two up to [`BLOCK_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of the address of each piece of memory.
    pub(super) memory: u32,
    /// Of offset and length.
    pub(super) block: u32,
}

impl Alignment {
    /// What the kernel says of an open file or block device; `None`: it has no direct I/O.
    pub(super) fn of(file: &File, is_block_device: bool) -> io::Result<Option<Self>> {
        let about = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        let alignment = if about.stx_mask & StatxFlags::DIOALIGN.bits() != 0 {
            Self {
                memory: about.stx_dio_mem_align,
                block: about.stx_dio_offset_align,
            }
        } else if is_block_device {
            // Before Linux 6.1 only what has been safe always.
            let block = ioctl_blksszget(file)?;
            Self {
                memory: block,
                block,
            }
        } else {
            Self {
                memory: BLOCK_MAX,
                block: BLOCK_MAX,
            }
        };
        let usable = |bytes: u32| bytes.is_power_of_two() && bytes <= BLOCK_MAX;
        Ok((usable(alignment.memory) && usable(alignment.block)).then_some(alignment))
    }

    /// Whether the disk takes these pieces as they are.
    fn allows<'a>(self, ranges: impl IntoIterator<Item = &'a GuestRange<'a>>) -> bool {
        let [memory, block] = [self.memory, self.block].map(|bytes| bytes as usize);
        ranges
            .into_iter()
            .all(|range| range.is_aligned(memory) && range.len().is_multiple_of(block))
    }

    /// Whether the disk takes a transfer of what `buffers` has selected.
    pub(super) fn allows_transfer(self, offset: u64, buffers: &IoBuffers) -> bool {
        let [memory, block] = [self.memory, self.block].map(|bytes| bytes as usize);
        offset.is_multiple_of(self.block.into()) && buffers.are_aligned(memory, block)
    }

    fn is_whole(self, offset: u64, len: usize) -> bool {
        let block = u64::from(self.block);
        offset.is_multiple_of(block) && (len as u64).is_multiple_of(block)
    }
}

/// An image past the page cache.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) alignment: Alignment,
    spare: Mutex<Vec<Area>>,
}

impl Direct {
    pub(super) fn new(alignment: Alignment) -> Self {
        Self {
            alignment,
            spare: Mutex::default(),
        }
    }

    /// One transfer, which waits for the disk and is refused where it must not; may be short.
    pub(super) fn unless_nowait(
        &self,
        file: &File,
        direction: Direction,
        ranges: &[GuestRange<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize> {
        // The kernel would honour the flag for everything but the disk itself.
        if flags.contains(ReadWriteFlags::NOWAIT) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let len = ranges.iter().map(GuestRange::len).sum();
        if !self.alignment.is_whole(offset, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.alignment.allows(ranges) {
            return at(file, direction, ranges, offset);
        }
        let buffer = match self.spare().pop() {
            Some(buffer) => buffer,
            None => Area::anonymous(BOUNCE_BYTES).map_err(io::Error::other)?,
        };
        let moved = bounce(&buffer, file, direction, ranges, offset);
        let mut spare = self.spare();
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
        moved
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Area>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at(
    file: &File,
    direction: Direction,
    ranges: &[GuestRange<'_>],
    offset: u64,
) -> io::Result<usize> {
    let (file, flags) = (file.as_fd(), ReadWriteFlags::empty());
    match direction {
        Direction::In => preadv2(file, ranges, offset, flags),
        Direction::Out => pwritev2(file, ranges, offset, flags),
    }
}

/// As much as goes through `buffer` at once.
fn bounce(
    buffer: &Area,
    file: &File,
    direction: Direction,
    ranges: &[GuestRange<'_>],
    offset: u64,
) -> io::Result<usize> {
    let len: usize = ranges.iter().map(GuestRange::len).sum();
    let part = buffer
        .range(0, len.min(BOUNCE_BYTES) as u64, Access::Write)
        .map_err(io::Error::other)?;
    if direction == Direction::Out {
        ranges::copy(ranges, &[part]);
    }
    let moved = at(file, direction, &[part], offset)?;
    if direction == Direction::In {
        let got = part.subrange(0, moved as u64).map_err(io::Error::other)?;
        ranges::copy(&[got], ranges);
    }
    Ok(moved)
}
