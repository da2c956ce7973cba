//! One connection to the broker: request out, reply in, one at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use xen_types::DomId;

use super::channel;
use super::layout;
use super::wire::{Reply, Request};
use crate::OpenError;

/// A hypercall of Xen does not wait for anybody; a broker that is this late is taken for stopped.
const REPLY_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Connection(Mutex<OwnedFd>);

impl Connection {
    pub(super) fn open(dir: &Path, domid: DomId) -> Result<Self, OpenError> {
        let socket = layout::hypervisor_socket(dir, domid);
        connect(&socket)
            .map(|fd| Self(Mutex::new(fd)))
            .map_err(|source| OpenError::NoBroker {
                domid,
                socket,
                source,
            })
    }

    /// A refusal comes as the errno that Xen's device would have answered.
    pub(super) fn call(&self, request: &Request) -> io::Result<(Reply, Vec<OwnedFd>)> {
        self.call_with(request, &[])
    }

    pub(super) fn call_with(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match exchange(&socket, request, fds) {
            Ok((Reply::Refused(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
            Ok(answer) => Ok(answer),
            Err(error) => {
                // A late reply must not be taken for the next one's.
                if let Err(error) = rustix::net::shutdown(&*socket, Shutdown::Both) {
                    tracing::debug!(%error, "the connection to the broker was closed already");
                }
                Err(error)
            }
        }
    }

    /// A call whose reply is no more than [`Reply::Done`].
    pub(super) fn done(&self, request: &Request) -> io::Result<()> {
        match self.call(request)? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

/// The broker answered with the wrong kind of reply, or with a part missing.
pub(super) fn unexpected(reply: &Reply) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the broker answered {reply:?}, which is no answer to the request"),
    )
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(REPLY_WITHIN))?;
    set_socket_timeout(&socket, Timeout::Send, Some(REPLY_WITHIN))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

fn exchange(
    socket: &OwnedFd,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> io::Result<(Reply, Vec<OwnedFd>)> {
    channel::send(socket.as_fd(), &request.emit(), fds)?;
    let packet = channel::receive(socket)?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::ConnectionReset,
            "the broker closed the connection",
        )
    })?;
    let reply = Reply::parse(&packet.bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((reply, packet.fds))
}
