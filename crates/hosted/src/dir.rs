//! The broker's directory: one broker at a time, sockets that nobody else can reach, and nothing left over.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use xen_hal::hosted::layout;
use xen_types::{DomId, parse_decimal};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The broker cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Another broker lives there.
    #[error("another broker runs in {}: choose another directory, or stop it", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// A file or socket below the directory.
    #[error("{what} {} failed", path.display())]
    Path {
        /// What was done to it.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// This host.
    #[error("{what} failed on this host")]
    Host {
        /// What was done.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The directory of a running broker; removes its sockets when dropped.
#[derive(Debug)]
pub(crate) struct BrokerDir {
    path: PathBuf,
    /// Held for as long as the broker runs; the kernel lets it go when it dies.
    _lock: File,
}

impl BrokerDir {
    /// Makes the directory if it is missing, keeps others out of it, and clears what a dead broker left.
    pub(crate) fn open(path: &Path) -> Result<Self, BrokerError> {
        let error = |what| {
            move |source| BrokerError::Path {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(error("making"))?;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(path, private).map_err(error("closing to others"))?;
        let lock = File::create(path.join("lock")).map_err(error("locking"))?;
        lock.try_lock().map_err(|failed| match failed {
            TryLockError::WouldBlock => BrokerError::Busy {
                dir: path.to_owned(),
            },
            TryLockError::Error(source) => error("locking")(source),
        })?;
        let dir = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        dir.clear();
        Ok(dir)
    }

    /// The two sockets of a domain, listening and non-blocking: hypervisor and XenStore.
    pub(crate) fn listen(&self, domid: DomId) -> Result<(OwnedFd, UnixListener), BrokerError> {
        let hypervisor = layout::hypervisor_socket(&self.path, domid);
        let store = layout::store_socket(&self.path, domid);
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| BrokerError::Path {
                what: "listening at",
                path,
                source,
            }
        };
        for socket in [&hypervisor, &store] {
            if let Some(parent) = socket.parent() {
                fs::create_dir_all(parent).map_err(at(socket))?;
            }
        }
        let packets = listen_for_packets(&hypervisor).map_err(at(&hypervisor))?;
        let stream = UnixListener::bind(&store).map_err(at(&store))?;
        stream.set_nonblocking(true).map_err(at(&store))?;
        Ok((packets, stream))
    }

    /// Removes the sockets of a domain.
    pub(crate) fn remove(&self, domid: DomId) {
        let sockets = [
            layout::hypervisor_socket(&self.path, domid),
            layout::store_socket(&self.path, domid),
        ];
        for socket in sockets {
            // Missing files are fine, and a directory with something else in it is not ours to remove.
            fs::remove_file(&socket).ok();
            socket.parent().map(fs::remove_dir);
        }
    }

    /// Removes the sockets of every domain.
    fn clear(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("dom"));
            let domid = number.and_then(|number| parse_decimal(number.as_bytes()));
            if let Some(domid) = domid.and_then(|domid| u16::try_from(domid).ok()) {
                self.remove(DomId(domid));
            }
        }
    }
}

impl Drop for BrokerDir {
    fn drop(&mut self) {
        self.clear();
    }
}

fn listen_for_packets(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broker_a_directory() {
        let temp = tempfile::tempdir().unwrap();
        let first = BrokerDir::open(temp.path()).unwrap();
        let second = BrokerDir::open(temp.path());
        assert!(
            matches!(second, Err(BrokerError::Busy { .. })),
            "{second:?}"
        );
        drop(first);
        BrokerDir::open(temp.path()).unwrap();
    }

    #[test]
    fn the_directory_is_closed_to_others_and_left_as_found() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("deep/er");
        let dir = BrokerDir::open(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let _sockets = [0, 5].map(|domid| dir.listen(DomId(domid)).unwrap());
        assert!(path.join("xenstored/socket").exists());
        drop(dir);
        let left: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["lock"]);
    }

    #[test]
    fn sockets_of_a_dead_broker_are_replaced() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("dom3")).unwrap();
        fs::create_dir_all(temp.path().join("dom0")).unwrap();
        drop(UnixListener::bind(temp.path().join("dom3/socket")).unwrap());
        drop(UnixListener::bind(temp.path().join("dom0/hypervisor")).unwrap());
        fs::write(temp.path().join("dom3/stranger"), "").unwrap();
        let dir = BrokerDir::open(temp.path()).unwrap();
        assert!(!temp.path().join("dom3/socket").exists());
        assert!(temp.path().join("dom3/stranger").exists());
        dir.listen(DomId::DOM0).unwrap();
    }
}
