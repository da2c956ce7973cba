//! The socket in the file system: for its owner alone, and gone when the export ends.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Where to listen: `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address(PathBuf);

/// What stands there instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected unix:PATH")]
pub(crate) struct NotUnix;

impl std::str::FromStr for Address {
    type Err = NotUnix;

    fn from_str(text: &str) -> Result<Self, NotUnix> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err(NotUnix),
        }
    }
}

/// As a URI, which all clients understand (the NBD project's `doc/uri.md`).
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nbd+unix:///?socket=")?;
        for byte in self.0.as_os_str().as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    write!(f, "{}", char::from(*byte))?;
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

/// A listening socket; its file goes when it is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl Socket {
    /// Makes the file. A socket that its owner left behind, and that nobody listens on, is
    /// replaced; anything else is not.
    pub(super) fn listen(address: &Address) -> anyhow::Result<Self> {
        let path = &address.0;
        Self::make(path).with_context(|| format!("{}", path.display()))
    }

    fn make(path: &Path) -> anyhow::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file's mode from its first moment on: Linux takes the socket's.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        let name = SocketAddrUnix::new(path).context("the path of a socket")?;
        match bind(&socket, &name) {
            Err(rustix::io::Errno::ADDRINUSE) => {
                remove_stale(path)?;
                bind(&socket, &name)?;
            }
            result => result?,
        }
        let file = identity(path)?;
        listen(&socket, BACKLOG)?;
        Ok(Self {
            listener: socket.into(),
            path: path.to_owned(),
            file,
        })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody else's file at this place stays.
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            eprintln!("vmsg: {}: {error}", self.path.display());
        }
    }
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let found = std::fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        bail!("exists, and is no socket");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        bail!("is somebody else's socket");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error.into()),
        Ok(_) => bail!("another process listens there"),
    }
    Ok(std::fs::remove_file(path)?)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &Path) -> Address {
        Address(path.to_owned())
    }

    #[test]
    fn the_file_is_for_its_owner_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let socket = Socket::listen(&at(&path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let error = Socket::listen(&at(&path)).unwrap_err();
        assert!(format!("{error:#}").ends_with("another process listens there"));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        drop(UnixListener::bind(&path).unwrap());
        drop(Socket::listen(&at(&path)).unwrap());
        std::fs::write(&path, "precious").unwrap();
        let error = Socket::listen(&at(&path)).unwrap_err();
        assert!(format!("{error:#}").ends_with("exists, and is no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_file_that_took_the_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let socket = Socket::listen(&at(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn an_address_is_a_unix_path_and_shows_as_a_uri() {
        let address: Address = "unix:/run/a b&c".parse().unwrap();
        assert_eq!(address.to_string(), "nbd+unix:///?socket=/run/a%20b%26c");
        assert_eq!("tcp:1".parse::<Address>(), Err(NotUnix));
        assert_eq!("unix:".parse::<Address>(), Err(NotUnix));
    }
}
