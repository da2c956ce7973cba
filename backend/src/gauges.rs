//! What a backend holds for its guests and has done for them (binding section 10: every resource
//! has a gauge), told to the tools of its host.
//!
//! Whoever connects to the socket `backend-<domid>.socket` in the run directory, which only root
//! can reach, gets one JSON document and the end of the stream: `socat - UNIX:...` shows it. What
//! the states are is in XenStore and not repeated here.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xen_types::DomId;

/// How long one end waits for the other. The document is ready at once; only a tool that does not
/// read, or a backend that hangs, takes longer.
const LIMIT: Duration = Duration::from_secs(5);

/// Everything that one backend tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// The backend's process.
    pub pid: u32,
    /// Every bus instance that it knows.
    pub instances: Vec<InstanceGauges>,
}

/// One bus instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceGauges {
    /// The domain of the driver.
    pub frontend: u16,
    /// Which of that domain's buses.
    pub handle: u32,
    /// Devices that are open.
    pub devices: usize,
    /// Connections that ended because either side broke a rule, since the backend started.
    pub faults: u64,
    /// The connection, while there is one.
    pub link: Option<LinkGauges>,
}

/// A connection; counters are since it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkGauges {
    /// The local port of the event channel.
    pub port: u32,
    /// Pages of the ring that are mapped.
    pub ring_pages: usize,
    /// Areas that are shared.
    pub areas: usize,
    /// Their data pages, mapped or being mapped.
    pub area_pages: u32,
    /// Pages of rings at grant addresses that are mapped.
    pub grant_ring_pages: u32,
    /// Pages lent for buffers at grant addresses.
    pub lent_pages: u32,
    /// Messages taken from the ring.
    pub messages_received: u64,
    /// Messages written.
    pub messages_sent: u64,
    /// Events sent.
    pub notifications: u64,
    /// Events that found nothing to do.
    pub spurious_events: u64,
}

impl Gauges {
    /// Asks the backend of domain `own` that runs with `run_dir`; `None` if none runs on this host.
    ///
    /// # Errors
    /// It does not answer, or this user may not ask.
    pub fn read(run_dir: &Path, own: DomId) -> io::Result<Option<Self>> {
        let mut stream = match UnixStream::connect(socket_path(run_dir, own)) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            other => other?,
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut document = Vec::new();
        stream.read_to_end(&mut document)?;
        Ok(Some(serde_json::from_slice(&document)?))
    }
}

/// Where a backend listens for those who want to know; the socket goes with it.
#[derive(Debug)]
pub(crate) struct GaugeSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl GaugeSocket {
    /// Listens, in place of a backend that died.
    ///
    /// # Errors
    /// Another backend of this domain runs, or the socket cannot be made; the message names it.
    pub(crate) fn bind(run_dir: &Path, own: DomId) -> io::Result<Self> {
        let path = socket_path(run_dir, own);
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(named)?;
        if UnixStream::connect(&path).is_ok() {
            return Err(named(ErrorKind::AddrInUse.into()));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(named(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(named)?;
        listener.set_nonblocking(true).map_err(named)?;
        Ok(Self { listener, path })
    }

    /// For the event loop: readable when somebody wants to know.
    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Hands the gauges to everybody who is waiting for them. Writing is left to a thread: the
    /// loop waits for nobody.
    pub(crate) fn answer(&self, gauges: &Gauges) -> io::Result<()> {
        let mut streams = Vec::new();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => streams.push(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if streams.is_empty() {
            return Ok(());
        }
        let document = serde_json::to_vec(gauges)?;
        std::thread::Builder::new()
            .name("gauges".into())
            .spawn(move || {
                for stream in streams {
                    if let Err(error) = write(stream, &document) {
                        tracing::debug!(%error, "nobody reads the gauges");
                    }
                }
            })?;
        Ok(())
    }
}

impl Drop for GaugeSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket stays behind");
        }
    }
}

fn write(mut stream: UnixStream, document: &[u8]) -> io::Result<()> {
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(document)?;
    stream.write_all(b"\n")
}

fn socket_path(run_dir: &Path, own: DomId) -> PathBuf {
    run_dir.join(format!("backend-{own}.socket"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: DomId = DomId(3);

    fn gauges(instances: usize) -> Gauges {
        let instance = InstanceGauges {
            frontend: 7,
            handle: 1,
            devices: 2,
            faults: 3,
            link: Some(LinkGauges {
                port: 9,
                ring_pages: 4,
                areas: 1,
                grant_ring_pages: 0,
                lent_pages: 0,
                area_pages: 512,
                messages_received: 10,
                messages_sent: 11,
                notifications: 12,
                spurious_events: 13,
            }),
        };
        Gauges {
            pid: 1,
            instances: vec![instance; instances],
        }
    }

    #[test]
    fn every_reader_gets_the_whole_document() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let socket = GaugeSocket::bind(&run, OWN).unwrap();
        // More than a socket's buffer holds, so that the readers have to read.
        let expected = gauges(4096);
        let readers: Vec<_> = (0..2)
            .map(|_| UnixStream::connect(socket_path(&run, OWN)).unwrap())
            .collect();
        socket.answer(&expected).unwrap();
        for mut reader in readers {
            let mut document = Vec::new();
            reader.read_to_end(&mut document).unwrap();
            let found: Gauges = serde_json::from_slice(&document).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_backend_has_its_socket_alone_and_takes_it_along() {
        let dir = tempfile::tempdir().unwrap();
        let none_runs = || Gauges::read(dir.path(), OWN).unwrap().is_none();
        assert!(none_runs());
        let socket = GaugeSocket::bind(dir.path(), OWN).unwrap();
        let second = GaugeSocket::bind(dir.path(), OWN).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::AddrInUse);
        assert!(second.to_string().contains("backend-3.socket"), "{second}");
        drop(socket);
        assert!(none_runs());

        // As a killed one leaves it.
        drop(UnixListener::bind(socket_path(dir.path(), OWN)).unwrap());
        assert!(none_runs());
        GaugeSocket::bind(dir.path(), OWN).unwrap();
    }
}
