//! The descriptor under a client: the socket of a daemon, or `/dev/xen/xenbus`.
//!
//! Both are non-blocking and waited for with a deadline. They differ: the device takes one message
//! per `write`, reports some failures as an errno of that `write`, and is never polled for room.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::StoreError;
use crate::wire::{Decoder, ErrorCode, HEADER_LEN, Message, PAYLOAD_MAX};

/// The device collects a message, header and all, in a buffer of this size.
const DEVICE_MESSAGE_MAX: usize = PAYLOAD_MAX;

/// Bytes taken by one `read`: a whole message at its longest.
const READ_CHUNK: usize = HEADER_LEN + PAYLOAD_MAX;

#[derive(Debug)]
pub(super) struct Link {
    end: End,
    decoder: Decoder,
    /// Read, but not yet decoded.
    input: Vec<u8>,
    taken: usize,
    reads: u64,
}

#[derive(Debug)]
enum End {
    Socket(UnixStream),
    Device(File),
}

impl Link {
    pub(super) fn connect(path: &Path) -> Result<Self, StoreError> {
        connect_socket(path)
            .map(|stream| Self::new(End::Socket(stream)))
            .map_err(|source| connect_error(path, source))
    }

    pub(super) fn open_device(path: &Path) -> Result<Self, StoreError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .map(|fd| Self::new(End::Device(File::from(fd))))
            .map_err(|errno| connect_error(path, errno.into()))
    }

    pub(super) fn from_stream(stream: UnixStream) -> Result<Self, StoreError> {
        stream.set_nonblocking(true)?;
        Ok(Self::new(End::Socket(stream)))
    }

    pub(super) fn from_device(fd: OwnedFd) -> Result<Self, StoreError> {
        rustix::io::ioctl_fionbio(&fd, true).map_err(io::Error::from)?;
        Ok(Self::new(End::Device(File::from(fd))))
    }

    fn new(end: End) -> Self {
        Self {
            end,
            decoder: Decoder::default(),
            input: Vec::new(),
            taken: 0,
            reads: 0,
        }
    }

    /// How often the descriptor was read.
    pub(super) fn reads(&self) -> u64 {
        self.reads
    }

    /// Most bytes of payload in a request.
    pub(super) fn payload_max(&self) -> usize {
        match self.end {
            End::Socket(_) => PAYLOAD_MAX,
            End::Device(_) => DEVICE_MESSAGE_MAX - HEADER_LEN,
        }
    }

    /// Sends one message. `Some` is the answer already: the device refused it.
    pub(super) fn send(
        &mut self,
        message: &Message,
        deadline: Option<Instant>,
        timeout: impl FnOnce() -> StoreError,
    ) -> Result<Option<ErrorCode>, StoreError> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).map_err(StoreError::Wire)?;
        match &mut self.end {
            End::Socket(stream) => send_all(stream, &bytes, deadline, timeout).map(|()| None),
            End::Device(device) => send_whole(device, &bytes),
        }
    }

    /// The next message if it is there. Never waits.
    pub(super) fn receive(&mut self) -> Result<Option<Message>, StoreError> {
        loop {
            let message = self.decode()?;
            if message.is_some() || !self.refill()? {
                return Ok(message);
            }
        }
    }

    /// The next message of those that have been read.
    pub(super) fn decode(&mut self) -> Result<Option<Message>, StoreError> {
        let mut rest = self.input.get(self.taken..).unwrap_or_default();
        let before = rest.len();
        let message = self.decoder.decode(&mut rest).map_err(StoreError::Wire)?;
        self.taken = self.taken.saturating_add(before.saturating_sub(rest.len()));
        Ok(message)
    }

    /// The next message; `None` at the deadline, also if messages never stop coming.
    pub(super) fn receive_before(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Message>, StoreError> {
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            if let Some(message) = self.receive()? {
                return Ok(Some(message));
            }
            self.wait_readable(deadline)?;
        }
        Ok(None)
    }

    /// Reads once; whether anything came.
    fn refill(&mut self) -> Result<bool, StoreError> {
        self.taken = 0;
        self.input.resize(READ_CHUNK, 0);
        let read = loop {
            self.reads = self.reads.saturating_add(1);
            let result = match &mut self.end {
                End::Socket(stream) => stream.read(&mut self.input),
                End::Device(device) => device.read(&mut self.input),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.input.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(StoreError::Closed),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(StoreError::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for something to read; false when the time is over. No deadline: for ever.
    pub(super) fn wait_readable(&self, deadline: Option<Instant>) -> Result<bool, StoreError> {
        wait(self.as_fd(), PollFlags::IN, deadline).map_err(StoreError::Io)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.end {
            End::Socket(stream) => stream.as_fd(),
            End::Device(device) => device.as_fd(),
        }
    }
}

/// Connects without waiting: a daemon that does not take connections any more is an error.
fn connect_socket(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

fn connect_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Connect {
        place: path.display().to_string(),
        source,
    }
}

fn send_all(
    stream: &mut UnixStream,
    mut bytes: &[u8],
    deadline: Option<Instant>,
    timeout: impl FnOnce() -> StoreError,
) -> Result<(), StoreError> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait(stream.as_fd(), PollFlags::OUT, deadline)? {
                    return Err(timeout());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Err(StoreError::Closed);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One message, one `write`. An errno that is one of the protocol's is the kernel's answer, and
/// the connection stays good; the device never asks to come back later.
fn send_whole(device: &mut File, bytes: &[u8]) -> Result<Option<ErrorCode>, StoreError> {
    loop {
        match device.write(bytes) {
            Ok(sent) if sent == bytes.len() => return Ok(None),
            Ok(_) => {
                return Err(StoreError::Protocol {
                    problem: "half of a message back",
                });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return match error.raw_os_error().and_then(ErrorCode::from_errno) {
                    Some(code) => Ok(Some(code)),
                    None => Err(error.into()),
                };
            }
        }
    }
}

/// Waits until the descriptor has one of `flags`, is hung up or broken; false at the deadline.
fn wait(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], limit.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
