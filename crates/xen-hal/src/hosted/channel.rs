//! Packets with descriptors over a SEQPACKET socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::wire::{MAX_FDS, MAX_PACKET};

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What came along.
    pub fds: Vec<OwnedFd>,
}

/// Sends one packet.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(bytes)];
    let flags = SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(&socket, &parts, &mut ancillary, flags))?;
    Ok(())
}

/// Receives one packet; `None` when the other side is gone. A packet that is too long, or
/// whose descriptors did not all fit into this process, is an error: the connection cannot go on.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Errno::MSGSIZE.into());
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some(Packet { bytes, fds }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_packet_keeps_its_bounds_and_its_descriptors() {
        let (a, b) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&a, b"one", &[writer.as_fd()]).unwrap();
        send(&a, b"two", &[]).unwrap();
        let one = receive(&b).unwrap().unwrap();
        assert_eq!((one.bytes.as_slice(), one.fds.len()), (&b"one"[..], 1));
        rustix::io::write(&one.fds[0], b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(&reader, &mut byte).unwrap();
        assert_eq!(byte, *b"x");
        assert_eq!(receive(&b).unwrap().unwrap().bytes, b"two");
    }

    #[test]
    fn the_largest_packet_with_all_descriptors_goes_through() {
        let (a, b) = pair();
        send(&a, &vec![7; MAX_PACKET], &vec![b.as_fd(); MAX_FDS]).unwrap();
        let packet = receive(&b).unwrap().unwrap();
        assert_eq!(
            (packet.bytes.len(), packet.fds.len()),
            (MAX_PACKET, MAX_FDS)
        );
    }

    #[test]
    fn a_packet_that_is_too_long_is_an_error() {
        let (a, b) = pair();
        send(&a, &vec![7; MAX_PACKET + 1], &[]).unwrap();
        assert!(receive(&b).is_err());
    }

    #[test]
    fn the_end_is_none() {
        let (a, b) = pair();
        drop(a);
        assert!(receive(&b).unwrap().is_none());
    }
}
