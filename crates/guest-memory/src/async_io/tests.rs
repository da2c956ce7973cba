//! Both kernels, with the same tests where they do the same.

use super::*;
use crate::{Area, foreign_lock, lock_byte};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Advice, OFlags, fadvise};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

const ENTRIES: u16 = 8;
const BLOCK: usize = 4096;

/// A file on which both kernels are asynchronous, if its file system can.
fn file() -> tempfile::NamedTempFile {
    // Beside the executable, as a temporary folder may be in memory, without direct I/O.
    let exe = std::env::current_exe().unwrap();
    tempfile::NamedTempFile::new_in(exe.parent().unwrap()).unwrap()
}

fn open(file: &tempfile::NamedTempFile, direct: bool) -> io::Result<File> {
    let flags = if direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(flags.bits().cast_signed());
    options.open(file.path())
}

fn wake() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Both kernels over the file; says loudly when one cannot be had.
fn kernels(file: &tempfile::NamedTempFile, wake: &OwnedFd) -> Vec<AsyncIo<u32>> {
    let mut kernels = Vec::new();
    let plain = open(file, false).unwrap();
    match AsyncIo::io_uring(plain.as_fd(), &[], wake.as_fd(), ENTRIES) {
        Ok(io) => kernels.push(io),
        Err(error) => eprintln!("\n*** NOT TESTED: io_uring: {error} ***\n"),
    }
    let direct = open(file, true)
        .and_then(|direct| AsyncIo::linux_aio(direct.as_fd(), wake.as_fd(), ENTRIES));
    match direct {
        Ok(io) => kernels.push(io),
        Err(error) => eprintln!("\n*** NOT TESTED: Linux AIO: {error} ***\n"),
    }
    kernels
}

fn buffers(area: &Area, pieces: &[(usize, usize)]) -> IoBuffers {
    let mut buffers = IoBuffers::default();
    let mut all = 0;
    for (offset, len) in pieces {
        let (offset, len) = (*offset as u64, *len as u64);
        let lease = area.lease();
        buffers.push(lease.window(offset, len, Access::Write).unwrap());
        all += len;
    }
    assert!(buffers.select(0, all));
    buffers
}

fn is_readable(fd: &OwnedFd, seconds: i64) -> bool {
    let limit = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let fd = fd.as_fd();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) == Ok(1)
}

/// Waits until `count` transfers have ended, for the eventfd if need be.
fn wait(io: &mut AsyncIo<u32>, wake: &OwnedFd, count: usize) -> Vec<(u32, io::Result<usize>)> {
    let mut ended = Vec::new();
    io.reap(|tag, _, result| ended.push((tag, result)));
    while ended.len() < count {
        assert!(is_readable(wake, 30), "nothing ends");
        let _ = rustix::io::read(wake, &mut [0; 8]);
        io.reap(|tag, _, result| ended.push((tag, result)));
    }
    ended.sort_by_key(|(tag, _)| *tag);
    ended
}

fn no_refusal(refused: NotTaken<u32>) {
    panic!("{refused:?}");
}

#[test]
fn what_was_written_is_read_into_other_memory() {
    let (file, wake) = (file(), wake());
    for mut io in kernels(&file, &wake) {
        // Blocks that are there and not in the cache: what is different would wait.
        std::fs::write(file.path(), [0; 4 * BLOCK]).unwrap();
        file.as_file().sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let area = Area::anonymous(8 * BLOCK).unwrap();
        let all = area.range(0, 8 * BLOCK as u64, Access::Write).unwrap();
        let bytes: Vec<_> = (0..2 * BLOCK)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        all.write(0, &bytes).unwrap();
        let from = buffers(&area, &[(BLOCK, BLOCK), (0, BLOCK)]);
        io.add(Transfer::Write, BLOCK as u64, from, 7).unwrap();
        assert!(!io.submit(no_refusal));
        let ended = wait(&mut io, &wake, 1);
        assert!(
            matches!(ended[..], [(7, Ok(moved))] if moved == 2 * BLOCK),
            "{ended:?}"
        );

        let into = buffers(&area, &[(4 * BLOCK, 2 * BLOCK)]);
        io.add(Transfer::Read, BLOCK as u64, into, 8).unwrap();
        assert!(!io.submit(no_refusal));
        wait(&mut io, &wake, 1);
        let mut got = vec![0; 2 * BLOCK];
        all.read(4 * BLOCK as u64, &mut got).unwrap();
        assert!(
            got[..BLOCK] == bytes[BLOCK..] && got[BLOCK..] == bytes[..BLOCK],
            "{io:?}"
        );
        assert_eq!(io.in_flight(), 0);
    }
}

#[test]
fn many_are_begun_together_and_each_ends_once_with_its_own_result() {
    let (file, wake) = (file(), wake());
    file.as_file().set_len(4 * BLOCK as u64).unwrap();
    for mut io in kernels(&file, &wake) {
        let area = Area::anonymous(usize::from(ENTRIES) * BLOCK).unwrap();
        for _ in 0..50 {
            for n in 0..ENTRIES {
                let into = buffers(&area, &[(usize::from(n) * BLOCK, BLOCK)]);
                let offset = u64::from(n) * BLOCK as u64;
                io.add(Transfer::Read, offset, into, n.into()).unwrap();
            }
            assert!(!io.submit(no_refusal));
            let ended = wait(&mut io, &wake, ENTRIES.into());
            for (n, (tag, result)) in (0..).zip(ended) {
                // The second half lies behind the end of the file.
                assert_eq!(tag, n);
                assert_eq!(result.unwrap(), if n < 4 { BLOCK } else { 0 });
            }
        }
        assert_eq!(area.leases(), 0);
    }
}

#[test]
fn what_ends_while_it_is_submitted_is_found_without_a_wake() {
    let (file, wake) = (file(), wake());
    std::fs::write(file.path(), [7; 2 * BLOCK]).unwrap();
    // Through the page cache, where nothing has to be waited for.
    let file = open(&file, false).unwrap();
    for io in [
        AsyncIo::io_uring(file.as_fd(), &[], wake.as_fd(), ENTRIES),
        AsyncIo::linux_aio(file.as_fd(), wake.as_fd(), ENTRIES),
    ] {
        let mut io = match io {
            Ok(io) => io,
            Err(error) => {
                eprintln!("\n*** NOT TESTED: {error} ***\n");
                continue;
            }
        };
        let area = Area::anonymous(BLOCK).unwrap();
        // More often than the ring of what has ended has room.
        for _ in 0..1000 {
            for n in 0..ENTRIES {
                let into = buffers(&area, &[(0, 100), (200, 100)]);
                io.add(Transfer::Read, u64::from(n), into, n.into())
                    .unwrap();
            }
            assert!(!io.submit(no_refusal));
            let mut ended = Vec::new();
            io.reap(|tag, _, result| ended.push((tag, result.unwrap())));
            assert_eq!(ended, [0, 1, 2, 3, 4, 5, 6, 7].map(|tag| (tag, 200)));
            assert_eq!(is_readable(&wake, 0), io.submit_wakes(), "{io:?}");
            let _ = rustix::io::read(&wake, &mut [0; 8]);
        }
    }
}

#[test]
fn what_cannot_be_is_given_back_and_costs_nothing() {
    let (file, wake) = (file(), wake());
    for mut io in kernels(&file, &wake) {
        let area = Area::anonymous(BLOCK).unwrap();
        let kind = |io: &mut AsyncIo<u32>, offset, buffers| {
            let refused = io.add(Transfer::Read, offset, buffers, 1).unwrap_err();
            assert_eq!(refused.tag, 1);
            refused.error.kind()
        };
        let invalid = io::ErrorKind::InvalidInput;
        assert_eq!(kind(&mut io, 0, IoBuffers::default()), invalid);
        assert_eq!(
            kind(&mut io, 1 << 63, buffers(&area, &[(0, BLOCK)])),
            invalid
        );
        let mut read_only = IoBuffers::default();
        read_only.push(area.lease().window(0, 512, Access::Read).unwrap());
        assert!(read_only.select(0, 512));
        assert_eq!(kind(&mut io, 0, read_only), invalid);
        for n in 0..ENTRIES {
            io.add(Transfer::Read, 0, buffers(&area, &[(0, BLOCK)]), n.into())
                .unwrap();
        }
        let full = kind(&mut io, 0, buffers(&area, &[(0, BLOCK)]));
        assert_eq!(full, io::ErrorKind::WouldBlock);
        io.submit(no_refusal);
        wait(&mut io, &wake, ENTRIES.into());
    }
}

#[test]
fn a_part_of_the_memory_is_selected_across_its_pieces() {
    let area = Area::anonymous(BLOCK).unwrap();
    let mut all = buffers(&area, &[(0, 100), (200, 50), (300, 1000)]);
    let base = area
        .range(0, 1, Access::Read)
        .unwrap()
        .base()
        .as_ptr()
        .addr();
    let selected = |all: &IoBuffers| -> Vec<_> {
        let piece = |iovec: &libc::iovec| (iovec.iov_base.addr() - base, iovec.iov_len);
        all.iovecs().iter().map(piece).collect()
    };
    assert!(all.select(90, 70));
    assert_eq!(selected(&all), [(90, 10), (200, 50), (300, 10)]);
    assert!(all.select(150, 1000));
    assert_eq!(selected(&all), [(300, 1000)]);
    for (skip, len) in [(150, 1001), (1151, 0), (u64::MAX, 1), (0, u64::MAX)] {
        assert_eq!(all.select(skip, len), len == 0, "{skip} {len}");
        assert_eq!(selected(&all), []);
    }
}

/// io_uring over a pipe that nobody has written to: the read is held until somebody does.
fn over_a_pipe(wake: &OwnedFd, held: &[BorrowedFd<'_>]) -> Option<(AsyncIo<u32>, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    match AsyncIo::io_uring(reader.as_fd(), held, wake.as_fd(), ENTRIES) {
        Ok(io) => Some((io, writer)),
        Err(error) => {
            eprintln!("\n*** NOT TESTED: io_uring: {error} ***\n");
            None
        }
    }
}

#[test]
fn what_is_in_flight_keeps_its_memory_and_its_files() {
    let (lock, wake) = (tempfile::NamedTempFile::new().unwrap(), wake());
    let held = File::open(lock.path()).unwrap();
    lock_byte(held.as_fd(), 0).unwrap();
    let Some((mut io, writer)) = over_a_pipe(&wake, &[held.as_fd()]) else {
        return;
    };
    drop(held);
    let area = Area::anonymous(BLOCK).unwrap();
    io.add(Transfer::Read, 0, buffers(&area, &[(0, 16)]), 1)
        .unwrap();
    assert!(!io.submit(no_refusal));
    let mut ended = 0;
    io.reap(|_, _, _| ended += 1);
    assert_eq!((ended, io.in_flight(), area.leases()), (0, 1, 1));
    assert!(!is_readable(&wake, 0));
    rustix::io::write(&writer, b"four").unwrap();
    let results = wait(&mut io, &wake, 1);
    assert!(matches!(results[..], [(1, Ok(4))]), "{results:?}");
    assert_eq!(area.leases(), 0);
    // The lock is the ring's as well, and ends with it.
    let is_locked = || foreign_lock(lock.as_file().as_fd(), 0).unwrap().is_some();
    assert!(is_locked());
    drop(io);
    assert!(!is_locked());
}

#[test]
fn dropping_waits_for_what_is_in_flight() {
    let wake = wake();
    let Some((mut io, writer)) = over_a_pipe(&wake, &[]) else {
        return;
    };
    let area = Area::anonymous(BLOCK).unwrap();
    io.add(Transfer::Read, 0, buffers(&area, &[(0, 16)]), 1)
        .unwrap();
    io.submit(no_refusal);
    std::thread::scope(|scope| {
        let dropping = scope.spawn(move || drop(io));
        // Long enough for a drop that does not wait to end, most of the time.
        for _ in 0..100 {
            std::thread::yield_now();
            assert!(!dropping.is_finished());
        }
        assert_eq!(area.leases(), 1);
        rustix::io::write(&writer, b"four").unwrap();
        dropping.join().unwrap();
    });
    assert_eq!(area.leases(), 0);
    let seen: [u8; 4] = area
        .range(0, 4, Access::Read)
        .unwrap()
        .read_array(0)
        .unwrap();
    assert_eq!(&seen, b"four");
}
