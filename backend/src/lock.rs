//! The lock of an instance (binding section 9): one process at a time works for it.
//!
//! The kernel holds the lock as long as any thread of a dying process still
//! runs a system call, or any io_uring that holds the file does I/O; so whoever
//! gets it knows that no I/O of a dead process is in flight any more.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::instance::InstanceId;

/// Held while this process may touch anything of the instance.
#[derive(Debug)]
pub(crate) struct InstanceLock {
    file: File,
}

impl AsFd for InstanceLock {
    /// What an io_uring has to hold.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl InstanceLock {
    /// Takes the lock of `id` in `dir`, which is made if it is not there.
    ///
    /// `Ok(None)`: another process holds it, or died and still has I/O in flight; try again later.
    ///
    /// # Errors
    /// The directory or file cannot be made or opened; the message names it.
    pub(crate) fn try_take(dir: &Path, id: InstanceId) -> io::Result<Option<Self>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| named(dir, &error))?;
        let path = Self::path(dir, id);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| named(&path, &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if still_named(&path, &file)? => Ok(Some(Self { file })),
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(named(&path, &error.into())),
        }
    }

    /// Removes the lock's file once the instance is gone for good.
    pub(crate) fn remove(self, dir: &Path, id: InstanceId) {
        let path = Self::path(dir, id);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%id, path = %path.display(), %error, "lock file stays behind");
        }
    }

    fn path(dir: &Path, id: InstanceId) -> PathBuf {
        dir.join(format!("{}-{}.state", id.frontend, id.handle))
    }
}

/// Whether `path` still names `file`: its former holder may have removed it in between.
fn still_named(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_types::DomId;

    #[test]
    fn a_second_holder_is_turned_away_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let id = InstanceId {
            frontend: DomId(7),
            handle: 1,
        };
        let held = InstanceLock::try_take(&run, id).unwrap().unwrap();
        assert!(InstanceLock::try_take(&run, id).unwrap().is_none());
        drop(held);
        let again = InstanceLock::try_take(&run, id).unwrap().unwrap();
        again.remove(&run, id);
        assert_eq!(std::fs::read_dir(&run).unwrap().count(), 0);
    }
}
