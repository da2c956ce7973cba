//! A client's socket, and what it is told and asks.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd::{Connection, Errno, Export, Request, Ticket};
use rustix::event::PollFlags;

/// Bytes read from a client at a time.
const READ_SIZE: usize = 256 << 10;
/// Pieces that one system call sends.
const MAX_PIECES: usize = 32;

/// How long a client may take to say what it wants: one that is silent takes the place of others.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    socket: UnixStream,
    since: Instant,
    connection: Connection,
    /// What was read from the socket, and how much of it the connection has taken.
    input: Vec<u8>,
    taken: usize,
}

impl Client {
    pub(super) fn new(socket: UnixStream, export: Export) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            since: Instant::now(),
            connection: Connection::new(export),
            input: Vec::new(),
            taken: 0,
        })
    }

    /// What to wait for; `None`: it is the disk's turn.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.connection.wants_input());
        flags.set(PollFlags::OUT, self.connection.has_output());
        // A hang-up shows always, and would wake us for nothing if we could not act on it.
        (!flags.is_empty()).then(|| (self.socket.as_fd(), flags))
    }

    /// Reads from the socket once, if there is nothing left of what was read before.
    pub(super) fn receive(&mut self) {
        if !self.connection.wants_input() || self.taken < self.input.len() {
            return;
        }
        self.taken = 0;
        self.input.resize(READ_SIZE, 0);
        let read = self.socket.read(&mut self.input);
        self.input.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.connection.end_input(),
            Ok(_) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// The next request of what was read, unless enough of the client's is held already.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        while self.connection.wants_input() && self.taken < self.input.len() {
            let mut rest = &self.input[self.taken..];
            let received = self.connection.receive(&mut rest);
            self.taken = self.input.len() - rest.len();
            match received {
                Ok(Some(request)) => return Some(request),
                Ok(None) => {}
                Err(error) => eprintln!("vmsg: a client is let go: {error}"),
            }
        }
        None
    }

    /// Answers a request.
    pub(super) fn reply(&mut self, ticket: Ticket, result: Result<Vec<u8>, Errno>) {
        self.connection.reply(ticket, result);
    }

    /// When it must have said what it wants, if it has not.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let negotiates = self.connection.is_negotiating();
        negotiates.then(|| self.since + HANDSHAKE_LIMIT)
    }

    /// Lets it go if it is late.
    pub(super) fn check(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            eprintln!(
                "vmsg: a client is let go: it has not said within {HANDSHAKE_LIMIT:?} what it wants"
            );
            self.connection.end_input();
            self.connection.end_output();
        }
    }

    /// Takes no more requests.
    pub(super) fn end(&mut self) {
        self.connection.end_input();
    }

    /// Sends what can be sent now.
    pub(super) fn send(&mut self) {
        while self.connection.has_output() {
            let pieces = self.connection.output().take(MAX_PIECES).map(IoSlice::new);
            let pieces: Vec<_> = pieces.collect();
            match self.socket.write_vectored(&pieces) {
                Ok(len) => self.connection.sent(len),
                Err(error) if is_transient(&error) => return,
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Whether it is gone and the disk does nothing for it any more.
    pub(super) fn is_over(&self) -> bool {
        self.connection.is_over()
    }

    fn fail(&mut self, error: &io::Error) {
        // One that goes without goodbye is nothing to talk of.
        if !matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ) {
            eprintln!("vmsg: a client is let go: {error}");
        }
        self.connection.end_input();
        self.connection.end_output();
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
