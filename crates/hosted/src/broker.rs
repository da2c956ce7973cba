//! The broker: one loop that carries packets between domains, the hypervisor and XenStore.
//!
//! Each event is one packet or one read: so the loop takes things in the order in which they happened, the
//! death of a process before what another asks after it, and no client keeps the others waiting.
//!
//! It survives any client: what a client sends is parsed before it is used, a client that sends garbage or
//! does not read is disconnected, and one that dies is forgotten with all that it held.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use mio::{Events, Poll, Token, Waker};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{WaitId, WaitIdOptions};
use xen_hal::hosted::channel;
use xen_hal::hosted::wire::{DomainReport, Reply, Request};
use xen_types::DomId;
use xenstore::server::{ConnId, EVENT_TIMEOUT, Wake};

use crate::dir::{BrokerDir, BrokerError};
use crate::hypervisor::{Answer, ConnectionId, Hypervisor};
use crate::sources::{Source, Sources};
use crate::store::Store;

/// Connections of one domain, of both kinds together.
const MAX_CONNECTIONS: usize = 512;
/// Bytes of a domain's name.
const MAX_NAME: usize = 64;
/// Bytes read from a XenStore connection at once: a message of the largest size.
const STORE_READ: usize = 4096 + 16;
/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// No source has this token.
const WAKER: Token = Token(usize::MAX);

/// A broker that holds its directory and listens, but does not run yet.
#[derive(Debug)]
pub struct Broker {
    poll: Poll,
    sources: Sources,
    hypervisor: Hypervisor,
    store: Store,
    guests: BTreeMap<DomId, Guest>,
    stopper: Stopper,
    dir: BrokerDir,
}

#[derive(Debug)]
struct Guest {
    name: String,
    uuid: String,
}

/// Ends a broker from another thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stopper {
    /// The broker ends its loop soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "the broker cannot be woken");
        }
    }
}

/// A broker on a thread of its own; ends when dropped.
#[derive(Debug)]
pub struct Running {
    stopper: Stopper,
    thread: Option<JoinHandle<Result<(), BrokerError>>>,
}

impl Running {
    /// Ends the broker and waits for it.
    pub fn stop(mut self) -> Result<(), BrokerError> {
        self.join()
    }

    fn join(&mut self) -> Result<(), BrokerError> {
        self.stopper.stop();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(host("the broker's thread")(ErrorKind::Other.into())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "the broker ended with an error");
        }
    }
}

impl Broker {
    /// Takes the directory and listens there for dom0. Domains can connect from now on; they are
    /// answered when the broker runs.
    pub fn open(dir: &Path) -> Result<Self, BrokerError> {
        // One descriptor an allocation, two a set of event channels, one a connection.
        if let Err(error) = xen_hal::raise_file_limit() {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
        let dir = BrokerDir::open(dir)?;
        let poll = Poll::new().map_err(host("epoll"))?;
        let registry = poll.registry().try_clone().map_err(host("epoll"))?;
        let waker = Waker::new(&registry, WAKER).map_err(host("eventfd"))?;
        let stopper = Stopper {
            stop: Arc::default(),
            waker: Arc::new(waker),
        };
        let store = Store::new()
            .map_err(|code| host("making XenStore")(io::Error::other(code.to_string())))?;
        let mut broker = Self {
            poll,
            sources: Sources::new(registry),
            hypervisor: Hypervisor::new().map_err(host("randomness"))?,
            store,
            guests: BTreeMap::new(),
            stopper,
            dir,
        };
        broker.listen(DomId::DOM0)?;
        Ok(broker)
    }

    /// A handle that ends the loop.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Runs on a new thread.
    pub fn spawn(self) -> Result<Running, BrokerError> {
        let stopper = self.stopper();
        let thread = std::thread::Builder::new().name("hosted-broker".to_owned());
        let thread = thread.spawn(|| self.run()).map_err(host("a thread"))?;
        Ok(Running {
            stopper,
            thread: Some(thread),
        })
    }

    /// Serves until it is stopped; removes its sockets then.
    pub fn run(mut self) -> Result<(), BrokerError> {
        let mut events = Events::with_capacity(EVENTS);
        let mut tick = Instant::now() + EVENT_TIMEOUT;
        while !self.stopper.stop.load(Ordering::Acquire) {
            let left = tick.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.store.server.tick();
                self.serve_wakes();
                tick = Instant::now() + EVENT_TIMEOUT;
            }
            match self.poll.poll(&mut events, Some(left)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled.map_err(host("epoll"))?,
            }
            for event in &events {
                self.serve(event.token());
                self.serve_wakes();
            }
        }
        Ok(())
    }

    fn listen(&mut self, domid: DomId) -> Result<(), BrokerError> {
        let (hypervisor, store) = self.dir.listen(domid)?;
        let listeners = [
            Source::HypervisorListener(Arc::new(hypervisor)),
            Source::StoreListener(Arc::new(store)),
        ];
        for listener in listeners {
            self.sources.add(domid, listener).map_err(host("epoll"))?;
        }
        Ok(())
    }

    fn serve(&mut self, token: Token) {
        // An event of something that was closed in the same batch names nothing.
        let Some((domid, source)) = self.sources.get(token) else {
            return;
        };
        match source {
            Source::HypervisorListener(listener) => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                match rustix::net::accept_with(&*listener, flags) {
                    Ok(socket) => self.add_hypervisor(domid, socket),
                    Err(error) => return refused_by_kernel(domid, error.into()),
                }
                self.sources.rearm(token);
            }
            Source::StoreListener(listener) => {
                match listener.accept() {
                    Ok((stream, _)) => self.add_store(domid, stream),
                    Err(error) => return refused_by_kernel(domid, error),
                }
                self.sources.rearm(token);
            }
            Source::Hypervisor(socket, id) => self.serve_hypervisor(token, domid, &socket, id),
            Source::Store(stream, id) => self.serve_store(token, &stream, id),
            Source::Process(_) => {
                if let Err(error) = self.destroy_domain(domid) {
                    tracing::debug!(%domid, %error, "the domain ended before its process");
                }
            }
        }
    }

    fn add_hypervisor(&mut self, domid: DomId, socket: OwnedFd) {
        if self.is_full(domid) {
            return;
        }
        let id = self.hypervisor.connect(domid);
        let source = Source::Hypervisor(Arc::new(socket), id);
        if let Err(error) = self.sources.add(domid, source) {
            tracing::warn!(%domid, %error, "a connection is refused");
            self.hypervisor.disconnect(id);
        }
    }

    fn add_store(&mut self, domid: DomId, stream: UnixStream) {
        if self.is_full(domid) || stream.set_nonblocking(true).is_err() {
            return;
        }
        let id = self.store.server.connect(domid);
        let source = Source::Store(Arc::new(stream), id);
        if let Err(error) = self.sources.add(domid, source) {
            tracing::warn!(%domid, %error, "a XenStore connection is refused");
            self.store.server.disconnect(id);
        }
    }

    fn is_full(&self, domid: DomId) -> bool {
        let full = self.sources.of(domid).count() >= MAX_CONNECTIONS;
        if full {
            tracing::warn!(%domid, "the domain has {MAX_CONNECTIONS} connections: one more is refused");
        }
        full
    }

    fn serve_hypervisor(&mut self, token: Token, domid: DomId, socket: &OwnedFd, id: ConnectionId) {
        let packet = match channel::receive(socket) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Ok(Some(packet)) => packet,
            Ok(None) | Err(_) => return self.close(token),
        };
        let request = match Request::parse(&packet.bytes) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%domid, %error, "a client of the hypervisor is disconnected");
                return self.close(token);
            }
        };
        let answer = self.answer(domid, id, request, packet.fds);
        let fds: Vec<_> = answer.fds.iter().map(|fd| fd.as_fd()).collect();
        if let Err(error) = channel::send(socket, &answer.reply.emit(), &fds) {
            tracing::debug!(%domid, %error, "a client of the hypervisor takes no answer");
            return self.close(token);
        }
        self.sources.rearm(token);
    }

    fn answer(
        &mut self,
        domid: DomId,
        id: ConnectionId,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Answer {
        let privileged = domid == DomId::DOM0;
        let answered = match request {
            Request::CreateDomain { name } if privileged => {
                self.create_domain(name).map(Reply::Domain)
            }
            Request::DestroyDomain { domid } if privileged => {
                self.destroy_domain(domid).map(|()| Reply::Done)
            }
            Request::BindProcess { domid } if privileged => {
                self.bind_process(domid, fds).map(|()| Reply::Done)
            }
            Request::Domains => Ok(Reply::Domains(self.report((!privileged).then_some(domid)))),
            other => return self.hypervisor.handle(id, other),
        };
        answered
            .unwrap_or_else(|errno| Reply::Refused(errno.raw_os_error()))
            .into()
    }

    fn create_domain(&mut self, name: String) -> Result<DomId, Errno> {
        let is_plain = |c: char| c.is_ascii_graphic() && c != '/';
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) {
            return Err(Errno::INVAL);
        }
        if self.guests.values().any(|guest| guest.name == name) {
            return Err(Errno::EXIST);
        }
        let domid = self.hypervisor.create_domain()?;
        let uuid = uuid::Uuid::new_v4().to_string();
        let made = self.listen(domid).map_err(|error| error.to_string());
        let made = made.and_then(|()| {
            let added = self.store.add_guest(domid, &name, &uuid);
            added.map_err(|code| code.to_string())
        });
        self.guests.insert(domid, Guest { name, uuid });
        if let Err(error) = made {
            tracing::error!(%domid, error, "a domain cannot be made");
            self.destroy_domain(domid)?;
            return Err(Errno::NOMEM);
        }
        Ok(domid)
    }

    fn destroy_domain(&mut self, domid: DomId) -> Result<(), Errno> {
        let guest = self.guests.remove(&domid).ok_or(Errno::SRCH)?;
        self.hypervisor.destroy_domain(domid);
        let tokens: Vec<Token> = self.sources.of(domid).map(|(token, _)| token).collect();
        for token in tokens {
            self.close(token);
        }
        self.dir.remove(domid);
        self.store.remove_guest(domid, &guest.uuid);
        Ok(())
    }

    fn bind_process(&mut self, domid: DomId, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        if !self.guests.contains_key(&domid) {
            return Err(Errno::SRCH);
        }
        let [pidfd] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| Errno::INVAL)?;
        // Anything else would be readable at other times than at the end of a process. Only a pidfd
        // can be waited for; that the process is not our child (ECHILD) does not matter.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(_) | Err(Errno::CHILD) => {}
            Err(error) => return Err(error),
        }
        let source = Source::Process(Arc::new(pidfd));
        self.sources.add(domid, source).map_err(|_| Errno::BADF)?;
        Ok(())
    }

    fn report(&self, only: Option<DomId>) -> Vec<DomainReport> {
        let mut domains = self.hypervisor.report(only);
        for domain in &mut domains {
            let nodes = self.store.server.nodes_of(domain.domid);
            domain.nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        }
        domains
    }

    /// Writes what can be written, then reads once.
    fn serve_store(&mut self, token: Token, mut stream: &UnixStream, id: ConnId) {
        while let output @ [_, ..] = self.store.server.output(id) {
            match stream.write(output) {
                Ok(written) => self.store.server.sent(id, written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.close(token),
            }
        }
        // If not, the output is full: the socket will be writable, and this is called again. Or others
        // have to read first: a wake tells when they have.
        if !self.store.server.wants_input(id) {
            return;
        }
        let mut buffer = [0; STORE_READ];
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => self.close(token),
            Ok(len) => {
                let bytes = buffer.get(..len).unwrap_or_default();
                self.store.server.receive(id, bytes);
                self.sources.rearm(token);
            }
        }
    }

    /// Output that a request of one client made for others, and clients that the store gave up.
    fn serve_wakes(&mut self) {
        while let Some(wake) = self.store.server.poll_wake() {
            let (Wake::Output(id) | Wake::Input(id) | Wake::Gone(id, _)) = wake;
            let Some(token) = self.sources.store(id) else {
                // The broker's own connection, or one that was closed since.
                continue;
            };
            match wake {
                Wake::Output(_) => self.serve(token),
                Wake::Input(_) => {
                    self.store.server.resume(id);
                    // Read in the turn of its next event: others are not kept waiting.
                    self.sources.rearm(token);
                }
                Wake::Gone(..) => self.close(token),
            }
        }
    }

    /// Closes a connection with everything that hangs on it.
    fn close(&mut self, token: Token) {
        match self.sources.remove(token) {
            Some(Source::Hypervisor(_, id)) => self.hypervisor.disconnect(id),
            Some(Source::Store(_, id)) => self.store.server.disconnect(id),
            _ => {}
        }
    }
}

/// No connection is waiting, or this process has no descriptor left for one; then those that
/// wait are accepted with the next one that comes.
fn refused_by_kernel(domid: DomId, error: io::Error) {
    if error.kind() != ErrorKind::WouldBlock {
        tracing::warn!(%domid, %error, "a connection is not accepted");
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> BrokerError {
    move |source| BrokerError::Host { what, source }
}
