//! Locks on single bytes of a file that belong to an open file description (fcntl `F_OFD_SETLK`):
//! what QEMU speaks. Here because no safe library of ours offers them.
//!
//! Unlike POSIX locks they are neither lost when another descriptor of the file is closed, nor
//! shared by all of a process; they end with the last descriptor and the last I/O through it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Another open file description has a lock where it was looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignLock {
    /// The process, which the kernel tells for POSIX locks only.
    pub pid: Option<u32>,
}

/// Takes a shared lock on one byte of the file, which need not exist, or keeps it. Never waits.
///
/// # Errors
/// `WouldBlock`: somebody has an exclusive lock there. Else what the kernel says: a network file
/// system may have no locks.
pub fn lock_byte(file: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    let mut lock = one_byte(libc::F_RDLCK, byte)?;
    control(file, libc::F_OFD_SETLK, &mut lock)
}

/// Whether anybody but this open file description has a lock of any kind on one byte of the file.
///
/// # Errors
/// What the kernel says, as for [`lock_byte`].
pub fn foreign_lock(file: BorrowedFd<'_>, byte: u64) -> io::Result<Option<ForeignLock>> {
    let mut lock = one_byte(libc::F_WRLCK, byte)?;
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    let held = i32::from(lock.l_type) != libc::F_UNLCK;
    Ok(held.then(|| ForeignLock {
        // -1 for a lock of an open file description, which many processes can share.
        pid: u32::try_from(lock.l_pid).ok().filter(|pid| *pid != 0),
    }))
}

fn one_byte(kind: libc::c_int, byte: u64) -> io::Result<libc::flock> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let small = |number: libc::c_int| libc::c_short::try_from(number).map_err(invalid);
    Ok(libc::flock {
        l_type: small(kind)?,
        l_whence: small(libc::SEEK_SET)?,
        l_start: libc::off_t::try_from(byte).map_err(invalid)?,
        l_len: 1,
        // The kernel insists on it.
        l_pid: 0,
    })
}

fn control(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    let lock: *mut libc::flock = lock;
    // SAFETY: both commands read and write one `struct flock`, which `lock` points to for the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_lock_is_seen_by_every_other_description_and_by_no_duplicate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let (one, two) = (open(), open());
        lock_byte(one.as_fd(), 100).unwrap();
        lock_byte(one.as_fd(), 100).unwrap();
        assert_eq!(foreign_lock(one.as_fd(), 100).unwrap(), None);
        let copy = one.try_clone().unwrap();
        assert_eq!(foreign_lock(copy.as_fd(), 100).unwrap(), None);
        let unknown = Some(ForeignLock { pid: None });
        assert_eq!(foreign_lock(two.as_fd(), 100).unwrap(), unknown);
        assert_eq!(foreign_lock(two.as_fd(), 99).unwrap(), None);
        assert_eq!(foreign_lock(two.as_fd(), 101).unwrap(), None);
        // Shared: a second holder is welcome.
        lock_byte(two.as_fd(), 100).unwrap();
        drop(one);
        // The copy keeps the description, and with it the lock.
        assert_eq!(foreign_lock(two.as_fd(), 100).unwrap(), unknown);
        drop(copy);
        assert_eq!(foreign_lock(two.as_fd(), 100).unwrap(), None);
    }

    #[test]
    fn offsets_that_no_file_has_are_refused() {
        let file = tempfile::tempfile().unwrap();
        for byte in [1 << 63, u64::MAX] {
            let error = lock_byte(file.as_fd(), byte).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
