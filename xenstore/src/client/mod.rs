//! A XenStore client: one request at a time, each with a time limit; watch events wait in a queue.
//!
//! Not here: threads, and several requests in flight. Who wants both opens two clients.

mod error;
mod events;
mod exchange;
mod link;
mod transaction;
mod tree;

pub use error::StoreError;
pub use events::WatchEvent;
pub use transaction::Transaction;
pub use tree::Tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use xen_types::DomId;

use crate::wire::{ErrorCode, MessageType, PAYLOAD_MAX, RequestCounts, check_path};
use events::EventQueue;
use link::Link;

/// How long a request may take before the daemon counts as dead. Requests take well under a
/// millisecond; the rest is room for an overloaded host.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often [`Client::transact`] tries a transaction again that met a change made by another.
/// Each try that fails means that somebody else got on, so more than a few mean a flood.
pub const TRANSACT_ATTEMPTS: usize = 16;

/// A connection to XenStore.
///
/// The operations on the tree are in the trait [`Tree`], because a [`Transaction`] has them too.
///
/// After [`StoreError::Timeout`], [`StoreError::Protocol`] or [`StoreError::Io`] the state of the
/// connection is unknown: every later request fails with [`StoreError::Closed`]. Open a new one.
#[derive(Debug)]
pub struct Client {
    link: Link,
    events: EventQueue,
    timeout: Duration,
    last_req_id: u32,
    counts: RequestCounts,
    broken: bool,
}

impl Client {
    /// Connects to the socket of xenstored or of the hosted platform. Relative paths mean the home
    /// of the domain as which the daemon knows this socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect_socket(path: &Path) -> Result<Self, StoreError> {
        Link::connect(path).map(Self::over)
    }

    /// Opens `/dev/xen/xenbus`: the connection of this domain's kernel, shared with it.
    ///
    /// The kernel handles WATCH and UNWATCH inside `write` and waits there for the daemon: these
    /// two cannot be bounded by the time-out.
    ///
    /// # Errors
    /// The device cannot be opened.
    pub fn connect_device(path: &Path) -> Result<Self, StoreError> {
        Link::open_device(path).map(Self::over)
    }

    /// Speaks over a connected socket.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn from_stream(stream: UnixStream) -> Result<Self, StoreError> {
        Link::from_stream(stream).map(Self::over)
    }

    /// Speaks over a descriptor that behaves as `/dev/xen/xenbus` does.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub fn from_device(fd: OwnedFd) -> Result<Self, StoreError> {
        Link::from_device(fd).map(Self::over)
    }

    fn over(link: Link) -> Self {
        Self {
            link,
            events: EventQueue::default(),
            timeout: DEFAULT_TIMEOUT,
            last_req_id: 0,
            counts: RequestCounts::default(),
            broken: false,
        }
    }

    /// Changes the limit for each later request from [`DEFAULT_TIMEOUT`].
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The requests made so far.
    #[must_use]
    pub fn requests(&self) -> &RequestCounts {
        &self.counts
    }

    /// How often the connection was read, whether there was something or not: a system call each.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.link.reads()
    }

    /// Registers a watch on `path` and everything below it, or on a special name such as
    /// `@releaseDomain`. One event comes at once. `token` comes back with each event.
    ///
    /// # Errors
    /// See [`StoreError`]; the same path and token twice are refused (EEXIST).
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), StoreError> {
        check_token(path, token)?;
        // Over the device a second one would be a watch of its own to the daemon.
        if !self.events.add_watch(path, token) {
            let (kind, code) = (MessageType::WATCH, ErrorCode::Exists);
            return Err(StoreError::from_code(code, kind, path));
        }
        // It is known before the answer: the device may deliver the first event ahead of it.
        let args = [path.as_bytes(), token.as_bytes()];
        let answer = self.ask(0, MessageType::WATCH, path, &args);
        if answer.is_err() {
            self.events.remove_watch(path, token);
        }
        answer.map(drop)
    }

    /// Drops a watch, and its events that are still queued.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), StoreError> {
        check_token(path, token)?;
        self.ask(
            0,
            MessageType::UNWATCH,
            path,
            &[path.as_bytes(), token.as_bytes()],
        )?;
        self.events.remove_watch(path, token);
        Ok(())
    }

    /// The next watch event, if there is one. Never waits. `None`: the descriptor was read until it
    /// had nothing more, so that an edge-triggered poller hears of the next event.
    ///
    /// Requests take events in too: whoever sleeps on the descriptor looks at
    /// [`Client::has_event`] first.
    ///
    /// # Errors
    /// The connection ended or the daemon sent what is no message.
    pub fn next_event(&mut self) -> Result<Option<WatchEvent>, StoreError> {
        if self.events.is_empty() {
            self.drain()?;
        }
        Ok(self.events.pop())
    }

    /// Whether a watch event is queued: it arrived during a request, so the descriptor will not
    /// become readable for it.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Waits at most `limit` for a watch event.
    ///
    /// # Errors
    /// As [`Client::next_event`]. `Ok(None)` when the time is over.
    pub fn wait_event(&mut self, limit: Duration) -> Result<Option<WatchEvent>, StoreError> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            if let Some(event) = self.next_event()? {
                return Ok(Some(event));
            }
            let ready = self.link.wait_readable(deadline);
            if !self.break_on_error(ready)? {
                return Ok(None);
            }
        }
    }

    /// Starts a transaction. Dropping it aborts it.
    ///
    /// # Errors
    /// See [`StoreError`]; a guest may have 10 at a time.
    pub fn begin(&mut self) -> Result<Transaction<'_>, StoreError> {
        let id = self.ask(
            0,
            MessageType::TRANSACTION_START,
            "a new transaction",
            &[b""],
        )?;
        let id = transaction_id(&id).ok_or(StoreError::Protocol {
            problem: "a transaction id that is no number",
        });
        let id = self.break_on_error(id)?;
        Ok(Transaction::new(self, id))
    }

    /// Runs `work` in a transaction and commits it. If somebody else's change is in the way,
    /// everything is done again, [`TRANSACT_ATTEMPTS`] times at most.
    ///
    /// # Errors
    /// The error of `work`, which aborts, or of the commit; [`StoreError::Conflict`] after the
    /// last attempt.
    pub fn transact<T, E: From<StoreError>>(
        &mut self,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        for _ in 0..TRANSACT_ATTEMPTS {
            let mut transaction = self.begin()?;
            let result = work(&mut transaction)?;
            match transaction.commit() {
                Ok(()) => return Ok(result),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict.into())
    }

    /// The home directory of a domain, `/local/domain/<domid>`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn get_domain_path(&mut self, domid: DomId) -> Result<String, StoreError> {
        let path = self.domain_call(MessageType::GET_DOMAIN_PATH, domid)?;
        let path = check_path(path.strip_suffix(&[0]).unwrap_or(&path))
            .map(str::to_owned)
            .map_err(|_| StoreError::Protocol {
                problem: "a home directory that is no path",
            });
        self.break_on_error(path)
    }

    /// Whether the domain is connected to XenStore. Dom0 only.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn is_domain_introduced(&mut self, domid: DomId) -> Result<bool, StoreError> {
        self.domain_call(MessageType::IS_DOMAIN_INTRODUCED, domid)
            .map(|answer| answer.starts_with(b"T"))
    }

    /// Connects a domain to XenStore, which fires `@introduceDomain`. Dom0 only.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn introduce(&mut self, domid: DomId, gfn: u64, port: u32) -> Result<(), StoreError> {
        let name = domain_name(domid);
        let (domid, gfn, port) = (domid.to_string(), gfn.to_string(), port.to_string());
        let args = [domid.as_bytes(), gfn.as_bytes(), port.as_bytes()];
        self.ask(0, MessageType::INTRODUCE, &name, &args).map(drop)
    }

    /// Disconnects a domain, which fires `@releaseDomain`. Dom0 only.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn release(&mut self, domid: DomId) -> Result<(), StoreError> {
        self.domain_call(MessageType::RELEASE, domid).map(drop)
    }

    fn domain_call(&mut self, kind: MessageType, domid: DomId) -> Result<Vec<u8>, StoreError> {
        let digits = domid.to_string();
        self.ask(0, kind, &domain_name(domid), &[digits.as_bytes()])
    }
}

/// Readable when an answer or an event came in. Events that a request brought in already are in
/// the queue and do not show here.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

fn transaction_id(payload: &[u8]) -> Option<u32> {
    xen_types::parse_decimal(payload.strip_suffix(&[0]).unwrap_or(payload)).filter(|id| *id != 0)
}

fn check_token(path: &str, token: &str) -> Result<(), StoreError> {
    tree::check(path)?;
    let len = path.len().saturating_add(token.len()).saturating_add(2);
    if token.contains('\0') || len > PAYLOAD_MAX {
        return Err(StoreError::Token {
            path: path.to_owned(),
        });
    }
    Ok(())
}

fn domain_name(domid: DomId) -> String {
    format!("domain {domid}")
}
