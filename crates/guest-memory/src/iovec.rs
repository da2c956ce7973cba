//! File I/O straight into and out of guest memory: preadv2 and pwritev2 with raw iovecs.

use std::borrow::Borrow;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::ReadWriteFlags;

use crate::{Access, GuestRange};

/// Most ranges of one call: `UIO_MAXIOV`, above which Linux refuses.
pub const MAX_IOVECS: usize = 1024;

/// Reads a file at `offset` into the ranges, in order. Flags pass through (`RWF_NOWAIT` and so on).
/// Returns the bytes read: fewer than asked at the end of the file, and wherever Linux stops early.
///
/// # Errors
/// `InvalidInput` before any byte moves: more than [`MAX_IOVECS`] ranges, a range that may only be
/// read, an offset above `i64::MAX`. Else what the kernel says.
pub fn preadv2<'a>(
    file: BorrowedFd<'_>,
    into: impl IntoIterator<Item = impl Borrow<GuestRange<'a>>>,
    offset: u64,
    flags: ReadWriteFlags,
) -> io::Result<usize> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_IOVECS];
    let count = fill(&mut room, into, Access::Write)?;
    let (offset, flags) = (file_offset(offset)?, raw_flags(flags));
    let iovecs = room.as_ptr().cast();
    // SAFETY: the first `count` iovecs are initialised, each names memory that stays mapped and
    // writable for `'a`, which outlives the call; the kernel needs no exclusive access.
    let read = unsafe { vectored(libc::SYS_preadv2, file, iovecs, count, offset, flags) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes the ranges, in order, to a file at `offset`. Flags pass through (`RWF_DSYNC` and so on).
/// Returns the bytes written, which may be fewer than asked.
///
/// # Errors
/// As [`preadv2`], but ranges need only be readable.
pub fn pwritev2<'a>(
    file: BorrowedFd<'_>,
    from: impl IntoIterator<Item = impl Borrow<GuestRange<'a>>>,
    offset: u64,
    flags: ReadWriteFlags,
) -> io::Result<usize> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_IOVECS];
    let count = fill(&mut room, from, Access::Read)?;
    let (offset, flags) = (file_offset(offset)?, raw_flags(flags));
    let iovecs = room.as_ptr().cast();
    // SAFETY: the first `count` iovecs are initialised, each names memory that stays mapped and
    // readable for `'a`, which outlives the call; the kernel needs no exclusive access.
    let written = unsafe { vectored(libc::SYS_pwritev2, file, iovecs, count, offset, flags) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// The system call itself. libc's functions are points where a thread can be cancelled, and spend
/// more instructions on that than all of a request's checks take.
///
/// # Safety
/// `call` is preadv2 or pwritev2; `iovecs` are `count` of them, and the memory that they name may
/// be written to or read by it.
unsafe fn vectored(
    call: libc::c_long,
    file: BorrowedFd<'_>,
    iovecs: *const libc::iovec,
    count: libc::c_int,
    offset: libc::off_t,
    flags: libc::c_int,
) -> libc::c_long {
    // The offset comes in two halves, the lower of which is a whole one where words have 64 bits.
    const UPPER: libc::c_long = 0;
    const _: () = assert!(size_of::<libc::c_long>() == size_of::<libc::off_t>());
    // SAFETY: as the caller promises.
    unsafe { libc::syscall(call, file.as_raw_fd(), iovecs, count, offset, UPPER, flags) }
}

/// Fills `room` from the front; returns how many iovecs are initialised.
fn fill<'a>(
    room: &mut [MaybeUninit<libc::iovec>; MAX_IOVECS],
    ranges: impl IntoIterator<Item = impl Borrow<GuestRange<'a>>>,
    access: Access,
) -> io::Result<libc::c_int> {
    let mut slots = room.iter_mut();
    let mut count = 0;
    for range in ranges {
        let range: &GuestRange<'a> = range.borrow();
        if !range.access().allows(access) {
            return Err(invalid("a range to read into is read-only"));
        }
        let slot = slots
            .next()
            .ok_or_else(|| invalid("more ranges than one call takes"))?;
        slot.write(libc::iovec {
            iov_base: range.base().as_ptr().cast(),
            iov_len: range.len(),
        });
        count += 1;
    }
    Ok(count)
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| invalid("a file offset above the largest there is"))
}

fn raw_flags(flags: ReadWriteFlags) -> libc::c_int {
    flags.bits().cast_signed()
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Area;
    use std::os::fd::AsFd;

    const NONE: ReadWriteFlags = ReadWriteFlags::empty();

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn scattered_ranges_go_to_a_file_and_back() {
        let file = tempfile::tempfile().unwrap();
        let area = Area::anonymous(8192).unwrap();
        let bytes = pattern(1000);
        let at = |offset, len| area.range(offset, len, Access::Write).unwrap();
        at(3, 1000).write(0, &bytes).unwrap();

        let from = [at(3, 100), at(103, 0), at(103, 900)];
        assert_eq!(pwritev2(file.as_fd(), from, 512, NONE).unwrap(), 1000);
        let into = [at(4096, 1), at(5000, 998), at(7000, 1)];
        assert_eq!(preadv2(file.as_fd(), into, 512, NONE).unwrap(), 1000);
        let mut seen = vec![0; 1000];
        at(4096, 1).read(0, &mut seen[..1]).unwrap();
        at(5000, 998).read(0, &mut seen[1..999]).unwrap();
        at(7000, 1).read(0, &mut seen[999..]).unwrap();
        assert_eq!(seen, bytes);
    }

    #[test]
    fn reads_stop_at_the_end_of_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let area = Area::anonymous(4096).unwrap();
        let all = [area.range(0, 4096, Access::Write).unwrap()];
        assert_eq!(preadv2(file.as_fd(), all, 40, NONE).unwrap(), 60);
        assert_eq!(preadv2(file.as_fd(), all, 100, NONE).unwrap(), 0);
    }

    #[test]
    fn flags_reach_the_kernel() {
        let file = tempfile::tempfile().unwrap();
        let area = Area::anonymous(4096).unwrap();
        let part = [area.range(0, 16, Access::Write).unwrap()];
        assert_eq!(
            pwritev2(file.as_fd(), part, 0, ReadWriteFlags::DSYNC).unwrap(),
            16
        );
        let unknown = ReadWriteFlags::from_bits_retain(1 << 30);
        let error = pwritev2(file.as_fd(), part, 0, unknown).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn read_only_ranges_are_no_target() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16).unwrap();
        let area = Area::anonymous(4096).unwrap();
        let part = [area.range(0, 16, Access::Read).unwrap()];
        let error = preadv2(file.as_fd(), part, 0, NONE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(pwritev2(file.as_fd(), part, 0, NONE).unwrap(), 16);
    }

    #[test]
    fn as_many_ranges_as_the_kernel_takes_and_no_more() {
        let file = tempfile::tempfile().unwrap();
        let area = Area::anonymous(4096).unwrap();
        let byte = area.range(0, 1, Access::Write).unwrap();
        let many = vec![byte; MAX_IOVECS];
        assert_eq!(pwritev2(file.as_fd(), &many, 0, NONE).unwrap(), MAX_IOVECS);
        let more = vec![byte; MAX_IOVECS + 1];
        let error = pwritev2(file.as_fd(), &more, 0, NONE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(file.metadata().unwrap().len(), MAX_IOVECS as u64);
    }

    #[test]
    fn the_current_position_cannot_be_meant() {
        let file = tempfile::tempfile().unwrap();
        let none: [GuestRange<'_>; 0] = [];
        for offset in [u64::MAX, 1 << 63] {
            let error = preadv2(file.as_fd(), none, offset, NONE).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
