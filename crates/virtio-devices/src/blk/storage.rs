//! What can be done with an image: moving bytes between it and guest memory without a copy,
//! erasing, syncing.
//!
//! Knows no request and no queue.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use arrayvec::ArrayVec;
use guest_memory::{AsyncIo, GuestRange, discard_blocks, preadv2, pwritev2};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, pwrite, retry_on_intr};

use super::image::{BLOCK_MAX, Image};
use super::transfers::{Takes, Transfers};
use super::waits::IN_FLIGHT_MAX;
use crate::engine::{Engine, EngineKind};
use crate::ranges;

/// Zeros to write where the kernel cannot make them: large enough that the system calls do not
/// count, and where direct I/O can take them from.
static ZEROS: Zeros = Zeros([0; 64 * 1024]);

#[repr(align(4096))]
struct Zeros([u8; 64 * 1024]);

const _: () = assert!(align_of::<Zeros>() == BLOCK_MAX as usize);

/// What holds the sectors. The seam where tests let a disk fail.
pub(super) trait Storage: Send + Sync + fmt::Debug {
    /// Reads at `offset`; may be short. `RWF_NOWAIT` is honoured or refused.
    fn read(
        &self,
        into: &[GuestRange<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize>;

    /// Writes at `offset`; as `read`.
    fn write(
        &self,
        from: &[GuestRange<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize>;

    /// Gives up what a range holds: its contents are undefined afterwards. May wait.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeros, giving up its space if it may `unmap`. May wait.
    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Puts all completed writes on stable storage. May wait for long.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that there are at this moment.
    fn bytes(&self) -> io::Result<u64>;

    /// Whether transfers go through the page cache.
    fn is_cached(&self) -> bool {
        false
    }

    /// Which transfers need no thread with this engine.
    fn takes(&self, _engine: EngineKind) -> Takes {
        Takes::Nothing
    }

    /// A queue for these transfers, which writes to the eventfd `wake` when some have ended.
    fn transfers(&self, _engine: &Engine, _wake: BorrowedFd<'_>) -> io::Result<Box<dyn Transfers>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Storage for Image {
    fn read(
        &self,
        into: &[GuestRange<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize> {
        match &self.direct {
            Some(direct) => direct.unless_nowait(&self.file, Direction::In, into, offset, flags),
            None => preadv2(self.file.as_fd(), into, offset, flags),
        }
    }

    fn write(
        &self,
        from: &[GuestRange<'_>],
        offset: u64,
        flags: ReadWriteFlags,
    ) -> io::Result<usize> {
        match &self.direct {
            Some(direct) => direct.unless_nowait(&self.file, Direction::Out, from, offset, flags),
            None => pwritev2(self.file.as_fd(), from, offset, flags),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // A hole in a block device is made of zeros that are written: no discard.
        let discarded = if self.is_block_device {
            discard_blocks(self.file.as_fd(), offset, len)
        } else {
            erase(&self.file, FallocateFlags::PUNCH_HOLE, offset, len).map_err(Into::into)
        };
        match discarded {
            // Only a hint: whoever sends it is content with what the range held. A device may have
            // no discards, or none for parts of its blocks.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::OPNOTSUPP | Errno::INVAL)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        // Of block devices too: the kernel zeroes by the device's own means, or writes zeros.
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        for way in ways.into_iter().skip(usize::from(!unmap)) {
            match erase(&self.file, way, offset, len) {
                // The file system or disk cannot, or not with a range that begins inside a block.
                Err(Errno::OPNOTSUPP | Errno::INVAL) => {}
                other => return Ok(other?),
            }
        }
        write_zeros(&self.file, offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        Image::bytes(self)
    }

    fn is_cached(&self) -> bool {
        self.direct.is_none()
    }

    fn takes(&self, engine: EngineKind) -> Takes {
        match (engine, &self.direct) {
            (EngineKind::IoUring | EngineKind::LinuxAio, Some(direct)) => {
                Takes::Aligned(direct.alignment)
            }
            // Many file systems have no asynchronous write into the page cache: the ring would hand
            // it to threads of its own, one for a file, and not bounded for each device.
            (EngineKind::IoUring, None) => Takes::Reads,
            // It would wait in the call.
            (EngineKind::LinuxAio, None) | (EngineKind::Threads, _) => Takes::Nothing,
        }
    }

    fn transfers(&self, engine: &Engine, wake: BorrowedFd<'_>) -> io::Result<Box<dyn Transfers>> {
        let (file, entries) = (self.file.as_fd(), IN_FLIGHT_MAX);
        Ok(Box::new(match engine.choice().kind {
            EngineKind::IoUring => {
                let held: ArrayVec<_, 1> = engine.held().map(AsFd::as_fd).into_iter().collect();
                AsyncIo::io_uring(file, &held, wake, entries)?
            }
            EngineKind::LinuxAio => AsyncIo::linux_aio(file, wake, entries)?,
            EngineKind::Threads => return Err(io::ErrorKind::Unsupported.into()),
        }))
    }
}

fn erase(file: &File, way: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    retry_on_intr(|| fallocate(file, way | FallocateFlags::KEEP_SIZE, offset, len))
}

pub(super) fn write_zeros(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let most = usize::try_from(len)
            .unwrap_or(usize::MAX)
            .min(ZEROS.0.len());
        let (zeros, _) = ZEROS.0.split_at(most);
        match retry_on_intr(|| pwrite(file, zeros, offset))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => {
                offset += count as u64;
                len -= count as u64;
            }
        }
    }
    Ok(())
}

/// Which way a transfer goes, as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the image into guest memory.
    In,
    /// From guest memory into the image.
    Out,
}

/// How a transfer ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Every byte was moved.
    Done,
    /// The rest would wait. Only where waiting was not allowed.
    WouldWait,
    /// As `WouldWait`, and this image never does such a transfer without waiting.
    AlwaysWaits,
    /// The rest cannot be moved.
    Failed(io::Error),
}

/// Moves bytes between `ranges` and the image at `offset`, until all are moved or one cannot be.
/// Answers how many were moved from the front. Waits only if it `may_wait`.
pub(super) fn transfer(
    storage: &dyn Storage,
    direction: Direction,
    ranges: &mut [GuestRange<'_>],
    offset: u64,
    may_wait: bool,
) -> (u64, Outcome) {
    let flags = if may_wait {
        ReadWriteFlags::empty()
    } else {
        ReadWriteFlags::NOWAIT
    };
    let mut rest = ranges;
    let mut moved = 0;
    while !rest.is_empty() {
        let result = match (direction, offset.checked_add(moved)) {
            (_, None) => Err(Errno::FBIG.into()),
            (Direction::In, Some(at)) => storage.read(rest, at, flags),
            (Direction::Out, Some(at)) => storage.write(rest, at, flags),
        };
        match result {
            // A short transfer is asked for the rest; none at all is the end of the file.
            Ok(0) => return (moved, Outcome::Failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                moved += count as u64;
                rest = ranges::skip(rest, count as u64);
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => {}
                Some(Errno::AGAIN) if !may_wait => return (moved, Outcome::WouldWait),
                Some(Errno::OPNOTSUPP) if !may_wait => return (moved, Outcome::AlwaysWaits),
                _ => return (moved, Outcome::Failed(error)),
            },
        }
    }
    (moved, Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::{Access, Area};
    use std::collections::VecDeque;
    use std::sync::Mutex;

    /// Answers calls from a list; a count larger than asked for means all.
    #[derive(Debug)]
    struct Scripted(Mutex<VecDeque<io::Result<usize>>>, Mutex<Vec<(u64, usize)>>);

    impl Scripted {
        fn new(answers: impl IntoIterator<Item = Result<usize, Errno>>) -> Self {
            let answers = answers.into_iter().map(|answer| answer.map_err(Into::into));
            Self(Mutex::new(answers.collect()), Mutex::default())
        }

        fn next(&self, ranges: &[GuestRange<'_>], offset: u64) -> io::Result<usize> {
            let len = ranges.iter().map(GuestRange::len).sum();
            self.1.lock().unwrap().push((offset, len));
            let answer = self
                .0
                .lock()
                .unwrap()
                .pop_front()
                .expect("one call too many");
            answer.map(|count| count.min(len))
        }
    }

    impl Storage for Scripted {
        fn read(&self, into: &[GuestRange<'_>], at: u64, _: ReadWriteFlags) -> io::Result<usize> {
            self.next(into, at)
        }

        fn write(&self, from: &[GuestRange<'_>], at: u64, _: ReadWriteFlags) -> io::Result<usize> {
            self.next(from, at)
        }

        fn discard(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!()
        }

        fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            unreachable!()
        }

        fn sync(&self) -> io::Result<()> {
            unreachable!()
        }

        fn bytes(&self) -> io::Result<u64> {
            unreachable!()
        }
    }

    /// Transfers 3 × 100 bytes at 1000.
    fn run(script: &Scripted, may_wait: bool) -> (u64, Outcome) {
        let area = Area::anonymous(4096).unwrap();
        let at = |offset| area.range(offset, 100, Access::Write).unwrap();
        let mut ranges = [at(0), at(512), at(1024)];
        transfer(script, Direction::In, &mut ranges, 1000, may_wait)
    }

    #[test]
    fn r40_short_and_interrupted_transfers_go_on_where_they_stopped() {
        let script = Scripted::new([Ok(1), Ok(149), Err(Errno::INTR), Ok(50), Ok(usize::MAX)]);
        assert!(matches!(run(&script, true), (300, Outcome::Done)));
        let calls = [
            (1000, 300),
            (1001, 299),
            (1150, 150),
            (1150, 150),
            (1200, 100),
        ];
        assert_eq!(*script.1.lock().unwrap(), calls);
    }

    #[test]
    fn r40_the_end_of_the_file_and_errors_end_a_transfer() {
        let script = Scripted::new([Ok(120), Ok(0)]);
        assert!(matches!(run(&script, true), (120, Outcome::Failed(_))));
        for errno in [Errno::IO, Errno::NOSPC] {
            let script = Scripted::new([Ok(7), Err(errno)]);
            assert!(matches!(run(&script, false), (7, Outcome::Failed(_))));
        }
    }

    #[test]
    fn r40_what_would_wait_is_an_error_only_where_waiting_was_allowed() {
        for may_wait in [false, true] {
            let again = run(&Scripted::new([Ok(5), Err(Errno::AGAIN)]), may_wait);
            let never = run(&Scripted::new([Err(Errno::OPNOTSUPP)]), may_wait);
            if may_wait {
                assert!(matches!(again, (5, Outcome::Failed(_))));
                assert!(matches!(never, (0, Outcome::Failed(_))));
            } else {
                assert!(matches!(again, (5, Outcome::WouldWait)));
                assert!(matches!(never, (0, Outcome::AlwaysWaits)));
            }
        }
    }

    fn image(bytes: u64) -> Image {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        write_all(&file, &vec![0xee; usize::try_from(bytes).unwrap()]);
        over(file)
    }

    fn over(file: File) -> Image {
        Image {
            file,
            is_block_device: false,
            direct: None,
        }
    }

    fn write_all(file: &File, bytes: &[u8]) {
        assert_eq!(pwrite(file, bytes, 0), Ok(bytes.len()));
    }

    /// Whether exactly this range is zero, and the file as long as before.
    fn only_zero(image: &Image, bytes: u64, offset: u64, len: u64) -> bool {
        let mut got = vec![0; usize::try_from(bytes).unwrap() + 1];
        let count = rustix::io::pread(&image.file, got.as_mut_slice(), 0).unwrap();
        count as u64 == bytes
            && (0..bytes).zip(&got).all(|(at, byte)| {
                *byte
                    == if (offset..offset + len).contains(&at) {
                        0
                    } else {
                        0xee
                    }
            })
    }

    #[test]
    fn r32_zeroed_ranges_read_as_zeros_however_they_are_made() {
        const BYTES: u64 = 1 << 20;
        for (offset, len) in [
            (0, BYTES),
            (512, 512),
            (4096, 8192),
            (4608, 70_000),
            (BYTES - 512, 512),
        ] {
            for unmap in [false, true] {
                let file = image(BYTES);
                file.zero(offset, len, unmap).unwrap();
                assert!(
                    only_zero(&file, BYTES, offset, len),
                    "{offset} {len} {unmap}"
                );
            }
            let file = image(BYTES);
            write_zeros(&file.file, offset, len).unwrap();
            assert!(only_zero(&file, BYTES, offset, len), "{offset} {len}");
        }
        // What was never written, too.
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(BYTES).unwrap();
        let sparse = over(sparse);
        for unmap in [false, true] {
            sparse.zero(4096, 4096, unmap).unwrap();
        }
        assert_eq!(sparse.bytes().unwrap(), BYTES);
    }

    #[test]
    fn unmapping_gives_space_back_and_keeps_the_size() {
        use std::os::unix::fs::MetadataExt;
        const BYTES: u64 = 1 << 20;
        let discard = |image: &Image| image.discard(0, BYTES);
        let zero = |image: &Image| image.zero(0, BYTES, true);
        for unmap in [discard, zero] {
            let image = image(BYTES);
            image.file.sync_all().unwrap();
            let before = image.file.metadata().unwrap().blocks();
            unmap(&image).unwrap();
            let after = image.file.metadata().unwrap();
            assert_eq!(after.len(), BYTES);
            assert!(
                after.blocks() < before / 2,
                "{before} to {}",
                after.blocks()
            );
        }
    }

    #[test]
    fn r40_what_cannot_be_erased_is_an_error() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(8192).unwrap();
        let image = over(File::open(image.path()).unwrap());
        for unmap in [false, true] {
            assert!(image.zero(0, 4096, unmap).is_err());
        }
        assert!(image.discard(0, 4096).is_err());
        assert!(write_zeros(&image.file, 0, 4096).is_err());
    }
}
