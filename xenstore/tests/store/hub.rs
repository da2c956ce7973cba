//! The server behind real sockets, in a thread that ends when its last client is gone.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use xen_types::DomId;
use xenstore::Client;
use xenstore::server::{ConnId, Server};

/// Clients of these domains, and the thread that serves them.
pub(crate) fn connect<const N: usize>(
    mut server: Server,
    domids: [u16; N],
) -> ([Client; N], JoinHandle<Server>) {
    let mut sockets = Vec::new();
    let clients = domids.map(|domid| {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        sockets.push((server.connect(DomId(domid)), far));
        Client::from_stream(near).unwrap()
    });
    let thread = std::thread::spawn(move || serve(server, sockets));
    (clients, thread)
}

fn serve(mut server: Server, mut sockets: Vec<(ConnId, UnixStream)>) -> Server {
    while !sockets.is_empty() {
        let mut ready: Vec<PollFd<'_>> = sockets
            .iter()
            .map(|(id, socket)| {
                let read = server.wants_input(*id).then_some(PollFlags::IN);
                let write = (!server.output(*id).is_empty()).then_some(PollFlags::OUT);
                let flags =
                    read.unwrap_or(PollFlags::empty()) | write.unwrap_or(PollFlags::empty());
                PollFd::from_borrowed_fd(socket.as_fd(), flags)
            })
            .collect();
        poll(&mut ready, None).unwrap();
        sockets.retain_mut(|(id, socket)| exchange(&mut server, *id, socket));
    }
    server
}

/// Reads and writes what can be; false when the client is gone.
fn exchange(server: &mut Server, id: ConnId, socket: &mut UnixStream) -> bool {
    let mut bytes = [0; 4096];
    while server.wants_input(id) {
        match socket.read(&mut bytes) {
            Ok(0) => {
                server.disconnect(id);
                return false;
            }
            Ok(read) => server.receive(id, &bytes[..read]),
            Err(_) => break,
        }
    }
    while !server.output(id).is_empty() {
        match socket.write(server.output(id)) {
            Ok(written) => server.sent(id, written),
            Err(_) => break,
        }
    }
    true
}
