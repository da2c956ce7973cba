//! Keeping an image file from everybody who would destroy it, in the way of QEMU's raw files, so
//! that its tools and guests see our lock and we see theirs.
//!
//! Whoever opens an image says by shared locks on single bytes what it does with the image, and
//! what nobody else may do at the same time; then it looks for the opposite by others. Locked
//! first and looked for later, so that of two that begin at once at least one finds the other.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use guest_memory::{foreign_lock, lock_byte};
use rustix::io::Errno;

/// Byte `DOES + n` is locked by who does action `n`.
const DOES: u64 = 100;
/// Byte `FORBIDS + n` is locked by who cannot stand action `n` of others.
const FORBIDS: u64 = 200;

/// Reading what a guest could have written at one moment.
const READS: u64 = 0;
/// Writing.
const WRITES: u64 = 1;
/// Changing the size.
const RESIZES: u64 = 3;

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Lock {
    /// Held until the last descriptor of this opening is closed and its last I/O has ended.
    Taken,
    /// Somebody does what does not go together with us. What was locked goes with the file.
    InUse {
        /// The process, if the kernel tells.
        holder: Option<u32>,
    },
    /// The file system has no locks.
    Unsupported(io::Error),
}

/// Locks an image that was just opened: readers share it, a writer is alone.
pub(super) fn take(file: &File, read_only: bool) -> io::Result<Lock> {
    attempt(file, read_only).or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Lock::Unsupported(error)),
        _ => Err(error),
    })
}

fn attempt(file: &File, read_only: bool) -> io::Result<Lock> {
    // A writer follows a file that changes its size; who only reads wants it at rest.
    let (does, forbids): (&[u64], &[u64]) = match read_only {
        true => (&[READS], &[WRITES, RESIZES]),
        false => (&[READS, WRITES], &[WRITES]),
    };
    let bytes = |base: u64, actions: &'static [u64]| actions.iter().map(move |n| base + n);
    for byte in bytes(DOES, does).chain(bytes(FORBIDS, forbids)) {
        match lock_byte(file.as_fd(), byte) {
            // A lock of another kind over the same bytes, or over all of the file.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let holder = foreign_lock(file.as_fd(), byte)?.and_then(|other| other.pid);
                return Ok(Lock::InUse { holder });
            }
            other => other?,
        }
    }
    for byte in bytes(FORBIDS, does).chain(bytes(DOES, forbids)) {
        if let Some(other) = foreign_lock(file.as_fd(), byte)? {
            return Ok(Lock::InUse { holder: other.pid });
        }
    }
    Ok(Lock::Taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, fcntl_lock};
    use std::path::Path;

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        image
    }

    fn open(path: &Path, read_only: bool) -> (File, Lock) {
        let file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .unwrap();
        let lock = take(&file, read_only).unwrap();
        (file, lock)
    }

    fn is_taken(path: &Path, read_only: bool) -> bool {
        matches!(open(path, read_only).1, Lock::Taken)
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let image = image();
        let readers = [open(image.path(), true), open(image.path(), true)];
        assert!(readers.iter().all(|(_, lock)| matches!(lock, Lock::Taken)));
        assert!(!is_taken(image.path(), false));
        drop(readers);
        let writer = open(image.path(), false);
        assert!(matches!(writer.1, Lock::Taken));
        assert!(!is_taken(image.path(), false));
        assert!(!is_taken(image.path(), true));
        drop(writer);
        assert!(is_taken(image.path(), false));
    }

    #[test]
    fn a_failed_attempt_leaves_no_lock_behind() {
        let image = image();
        let writer = open(image.path(), false);
        for read_only in [false, true] {
            drop(open(image.path(), read_only));
        }
        drop(writer);
        assert!(is_taken(image.path(), true));
        assert!(is_taken(image.path(), false));
    }

    #[test]
    fn a_lock_lasts_as_long_as_any_descriptor_of_its_opening() {
        let image = image();
        let (file, _) = open(image.path(), false);
        let in_a_thread = file.try_clone().unwrap();
        drop(file);
        assert!(!is_taken(image.path(), false));
        drop(in_a_thread);
        assert!(is_taken(image.path(), false));
    }

    #[test]
    fn a_posix_lock_names_its_process() {
        // The test itself holds it, of the whole file.
        let image = image();
        fcntl_lock(image.as_file(), FlockOperation::NonBlockingLockExclusive).unwrap();
        let (file, lock) = open(image.path(), false);
        let pid = std::process::id();
        assert!(matches!(lock, Lock::InUse { holder: Some(holder) } if holder == pid));
        drop(file);
    }
}
