//! The event loop of the backend: one thread, many sessions, nothing that waits.
//!
//! It wakes for XenStore watches, event channels, completions of devices and the stop signal,
//! finds the sessions concerned, and gives each a bounded turn, round robin.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use xen_bus::patience::Patience;
use xen_types::{DomId, EvtchnPort, parse_decimal};
use xenstore::{StoreError, Tree as _};

use crate::gauges::{GaugeSocket, Gauges};
use crate::host::Host;
use crate::instance::{InstanceId, Subject, backend_root, parse_frontend, parse_instance, subject};
use crate::session::{Session, Turn};
use crate::timers::Timers;

/// Token of the XenStore connection.
const STORE: Token = Token(usize::MAX);
/// Token of the event-channel device.
const CHANNELS: Token = Token(usize::MAX - 1);
/// Token of the stop signal.
const STOP: Token = Token(usize::MAX - 2);
/// Token of the socket for those who want to know the gauges.
const GAUGES: Token = Token(usize::MAX - 3);

/// Events of the kernel taken in one turn; more wait for the next one.
const EVENTS_PER_TURN: usize = 128;
/// Watch events handled in one turn, so that a guest writing its state does not keep the loop.
const WATCHES_PER_TURN: usize = 64;
/// Guests that one turn looks after when something may have changed about any of them: a domain
/// ended, or a flood of watch events was cut short. Each takes up to ten requests to XenStore, and
/// a guest that reboots without end causes them for everybody.
pub const GUESTS_PER_TURN: usize = 32;
/// Bus instances served at once; each costs a ring page, a port and a few kilobytes.
pub const MAX_SESSIONS: usize = 4096;

/// Token of the watch on this backend's instances.
const WATCH_INSTANCES: &str = "instances";
/// Token of the watch on dying domains.
const WATCH_RELEASE: &str = "release";

/// What ends the service.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// XenStore is gone or does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The event loop or the event-channel device failed.
    #[error("event loop: {0}")]
    Io(#[from] io::Error),
}

/// What the loop has done; how much of it one event causes says what idle guests cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopCounters {
    /// Times that the kernel was asked for events.
    pub rounds: u64,
    /// Turns that sessions were given.
    pub turns: u64,
}

/// The backend of one domain.
#[derive(Debug)]
pub struct Service {
    host: Host,
    poll: Poll,
    events: Events,
    sessions: Slab<Session>,
    by_id: BTreeMap<InstanceId, usize>,
    by_port: HashMap<EvtchnPort, usize>,
    /// Sessions with something to do, in the order in which they get their turn.
    ready: VecDeque<usize>,
    timers: Timers,
    /// Sessions whose domain may have died, in the order in which they are looked after.
    unchecked: VecDeque<usize>,
    /// Frontends whose instances may have changed.
    unscanned: VecDeque<DomId>,
    /// More may have changed since that set was made.
    scan_again: bool,
    /// Counts sessions, so that an event for one that is gone does not reach its successor.
    generation: u32,
    ports: Vec<EvtchnPort>,
    gauges: Option<GaugeSocket>,
    /// XenStore's descriptor became readable and was not read to its end yet. It is edge-triggered
    /// here, and on the path of a request it is not read at all.
    watches_left: bool,
    stopping: bool,
    patience: Patience,
    counters: LoopCounters,
}

impl Service {
    /// Starts to watch XenStore. `stop` becomes readable when the service shall end in order.
    ///
    /// # Errors
    /// XenStore cannot be watched, or the loop cannot be set up.
    pub fn new(mut host: Host, stop: Option<BorrowedFd<'_>>) -> Result<Self, ServiceError> {
        let poll = Poll::new()?;
        let register = |fd: BorrowedFd<'_>, token| {
            poll.registry()
                .register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
        };
        register(host.store.as_fd(), STORE)?;
        register(host.channels.as_fd(), CHANNELS)?;
        if let Some(stop) = stop {
            register(stop, STOP)?;
        }
        let gauges = match GaugeSocket::bind(&host.run_dir, host.own) {
            Ok(socket) => {
                let fd = socket.as_raw_fd();
                let interest = Interest::READABLE;
                poll.registry()
                    .register(&mut SourceFd(&fd), GAUGES, interest)?;
                Some(socket)
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!(domain = %host.own, "another backend runs in this domain; waiting for it to let go of its guests, and only it tells the gauges");
                None
            }
            // Guests are served all the same.
            Err(error) => {
                tracing::warn!(%error, "nobody can ask for the gauges");
                None
            }
        };
        // A driver domain may not make it, and need not: the watch tells when its toolstack did.
        if host.own == DomId::DOM0 {
            host.store.mkdir(&backend_root(host.own))?;
        }
        host.store.watch(&backend_root(host.own), WATCH_INSTANCES)?;
        host.store.watch("@releaseDomain", WATCH_RELEASE)?;
        tracing::info!(domain = %host.own, "backend is ready");
        Ok(Self {
            host,
            poll,
            events: Events::with_capacity(EVENTS_PER_TURN),
            sessions: Slab::new(),
            by_id: BTreeMap::new(),
            by_port: HashMap::new(),
            ready: VecDeque::new(),
            timers: Timers::default(),
            unchecked: VecDeque::new(),
            unscanned: VecDeque::new(),
            scan_again: false,
            generation: 0,
            ports: Vec::new(),
            gauges,
            watches_left: false,
            stopping: false,
            patience: xen_hal::wake_cost().map_or(Patience::none(), Patience::new),
            counters: LoopCounters::default(),
        })
    }

    /// Serves until the stop signal, then ends every session in order.
    ///
    /// # Errors
    /// XenStore or the loop failed; sessions end as if the process had died.
    pub fn run(&mut self) -> Result<(), ServiceError> {
        while !(self.stopping && self.sessions.is_empty()) {
            self.turn(None)?;
        }
        Ok(())
    }

    /// One round: waits at most `limit` (`None`: as long as it takes) for events, then gives each
    /// ready session its turn. Answers whether some session has more to do at once.
    ///
    /// # Errors
    /// XenStore or the loop failed.
    pub fn turn(&mut self, limit: Option<Duration>) -> Result<bool, ServiceError> {
        let wait = self.wait_limit(limit);
        match self.wait(wait) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            other => other?,
        };
        let mut stop = false;
        let mut channels = false;
        let mut asked = false;
        for event in &self.events {
            match event.token() {
                STORE => self.watches_left = true,
                CHANNELS => channels = true,
                STOP => stop = true,
                GAUGES => asked = true,
                Token(token) => {
                    let (key, generation) = untoken(token);
                    if let Some(session) = self.sessions.get_mut(key)
                        && session.generation == generation
                    {
                        make_ready(&mut self.ready, key, session);
                    }
                }
            }
        }
        if channels {
            self.take_ports()?;
        }
        if asked {
            self.tell();
        }
        // Requests of sessions queue watch events too, without a sign of the kernel's.
        if self.watches_left || self.host.store.has_event() {
            self.take_watches()?;
        }
        if stop && !self.stopping {
            self.stop();
        }
        self.take_timers();
        self.check_domains();
        self.scan_some()?;
        self.serve()?;
        Ok(self.has_work())
    }

    /// What the loop has done.
    #[must_use]
    pub fn counters(&self) -> LoopCounters {
        self.counters
    }

    /// When the next turn comes without an event; `None`: never, so that waiting costs nothing.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// How many instances are known.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// What is held for every instance, and was done.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        Gauges {
            pid: std::process::id(),
            instances: self
                .sessions
                .iter()
                .map(|(_, session)| session.gauges())
                .collect(),
        }
    }

    /// What the sessions share.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Whether the next turn need not wait.
    fn has_work(&self) -> bool {
        !self.ready.is_empty()
            || !self.unchecked.is_empty()
            || !self.unscanned.is_empty()
            || self.scan_again
            || self.watches_left
            || self.host.store.has_event()
    }

    fn wait_limit(&self, limit: Option<Duration>) -> Option<Duration> {
        if self.has_work() {
            return Some(Duration::ZERO);
        }
        let timer = self
            .timers
            .next()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match (limit, timer) {
            (Some(limit), Some(timer)) => Some(limit.min(timer)),
            (limit, timer) => limit.or(timer),
        }
    }

    /// Waits for events of the kernel, without sleeping where that is cheaper.
    fn wait(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        // In a guest of Xen a look at the clock can cost as much as a request: no more than are needed.
        let start = OnceCell::new();
        let Self {
            patience,
            poll,
            events,
            counters,
            ..
        } = self;
        let ask = |limit| {
            counters.rounds += 1;
            poll.poll(events, limit)?;
            Ok(!events.is_empty())
        };
        patience.wait(limit, || start.get_or_init(Instant::now).elapsed(), ask)
    }

    /// Finds the sessions of the ports that have an event. The device is edge-triggered here, so
    /// it is read until it has nothing more.
    fn take_ports(&mut self) -> io::Result<()> {
        self.ports.clear();
        self.host.channels.pending(&mut self.ports)?;
        for port in &self.ports {
            if let Some(key) = self.by_port.get(port)
                && let Some(session) = self.sessions.get_mut(*key)
            {
                session.event();
                make_ready(&mut self.ready, *key, session);
            }
        }
        Ok(())
    }

    fn tell(&self) {
        if let Some(socket) = &self.gauges
            && let Err(error) = socket.answer(&self.gauges())
        {
            tracing::warn!(%error, "cannot tell the gauges");
        }
    }

    fn take_watches(&mut self) -> Result<(), ServiceError> {
        self.watches_left = true;
        for _ in 0..WATCHES_PER_TURN {
            let Some(event) = self.host.store.next_event()? else {
                self.watches_left = false;
                break;
            };
            match event.token.as_str() {
                WATCH_RELEASE => self.domains_changed(),
                WATCH_INSTANCES => match subject(self.host.own, &event.path) {
                    Subject::Instances => self.scan_again = true,
                    Subject::Frontend(frontend) => self.look_for(frontend)?,
                    Subject::Directory(id) => {
                        self.look_again(id, Session::instance_changed);
                        self.look_again(id, Session::devices_changed);
                    }
                    Subject::Instance(id) if !self.by_id.contains_key(&id) => self.discover(id),
                    Subject::Instance(id) => self.look_again(id, Session::instance_changed),
                    Subject::Devices(id) => self.look_again(id, Session::devices_changed),
                    Subject::Own => {}
                },
                token => {
                    if let Some((frontend, handle)) = token.split_once('/')
                        && let Some(id) = parse_instance(frontend, handle)
                    {
                        self.look_again(id, Session::frontend_changed);
                    }
                }
            }
        }
        Ok(())
    }

    fn look_again(&mut self, id: InstanceId, tell: fn(&mut Session)) {
        if let Some(key) = self.by_id.get(&id)
            && let Some(session) = self.sessions.get_mut(*key)
        {
            tell(session);
            make_ready(&mut self.ready, *key, session);
        }
    }

    /// Some domain ended: every session is to look for its own, a few in each turn.
    fn domains_changed(&mut self) {
        for (key, session) in &mut self.sessions {
            if !std::mem::replace(&mut session.unchecked, true) {
                self.unchecked.push_back(key);
            }
        }
    }

    fn check_domains(&mut self) {
        for _ in 0..GUESTS_PER_TURN {
            let Some(key) = self.unchecked.pop_front() else {
                break;
            };
            if let Some(session) = self.sessions.get_mut(key) {
                session.unchecked = false;
                session.domains_changed();
                make_ready(&mut self.ready, key, session);
            }
        }
    }

    /// Looks after every frontend that is known or listed, a few in each turn.
    ///
    /// Those that are known come first, and before their own new instances: a session that is gone
    /// lets go of its images, and a new one may have been given them.
    fn scan_some(&mut self) -> Result<(), ServiceError> {
        if self.unscanned.is_empty() && std::mem::take(&mut self.scan_again) {
            let listed = self.list(&backend_root(self.host.own))?;
            let known: BTreeSet<_> = self.by_id.keys().map(|id| id.frontend).collect();
            let listed = listed.iter().filter_map(|name| parse_frontend(name));
            let new = listed.filter(|frontend| !known.contains(frontend));
            self.unscanned = known.iter().copied().chain(new).collect();
        }
        for _ in 0..GUESTS_PER_TURN {
            let Some(frontend) = self.unscanned.pop_front() else {
                break;
            };
            self.look_for(frontend)?;
        }
        Ok(())
    }

    /// Has the sessions of one frontend look, and makes one for each new instance in its list.
    fn look_for(&mut self, frontend: DomId) -> Result<(), ServiceError> {
        let all = InstanceId {
            frontend,
            handle: 0,
        }..=InstanceId {
            frontend,
            handle: u32::MAX,
        };
        for (_, key) in self.by_id.range(all) {
            if let Some(session) = self.sessions.get_mut(*key) {
                session.instance_changed();
                session.devices_changed();
                make_ready(&mut self.ready, *key, session);
            }
        }
        let directory = format!("{}/{frontend}", backend_root(self.host.own));
        for handle in self.list(&directory)? {
            if let Some(handle) = parse_decimal(handle.as_bytes()) {
                self.discover(InstanceId { frontend, handle });
            }
        }
        Ok(())
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        match self.host.store.directory(path) {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            other => other,
        }
    }

    fn discover(&mut self, id: InstanceId) {
        if self.by_id.contains_key(&id) || self.stopping {
            return;
        }
        if self.sessions.len() >= MAX_SESSIONS {
            tracing::error!(%id, limit = MAX_SESSIONS, "not served: too many bus instances");
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let entry = self.sessions.vacant_entry();
        let key = entry.key();
        let token = token(key, self.generation);
        match Session::new(&mut self.host, id, self.generation, token) {
            Ok(session) => {
                tracing::info!(%id, "found");
                let session = entry.insert(session);
                make_ready(&mut self.ready, key, session);
                self.by_id.insert(id, key);
            }
            Err(error) => tracing::warn!(%id, %error, "cannot watch the frontend"),
        }
    }

    fn stop(&mut self) {
        tracing::info!(sessions = self.sessions.len(), "ending every session");
        self.stopping = true;
        for (key, session) in &mut self.sessions {
            session.stop();
            make_ready(&mut self.ready, key, session);
        }
    }

    fn take_timers(&mut self) {
        if self.timers.next().is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(key) = self.timers.take_due(now) {
            if let Some(session) = self.sessions.get_mut(key) {
                make_ready(&mut self.ready, key, session);
            }
        }
    }

    /// Gives each session that is ready now one turn.
    fn serve(&mut self) -> Result<(), ServiceError> {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else {
                break;
            };
            let Some(session) = self.sessions.get_mut(key) else {
                continue;
            };
            session.queued = false;
            self.counters.turns += 1;
            let before = session.port();
            let turn = session.turn(&mut self.host, self.poll.registry())?;
            let after = session.port();
            if before != after {
                if let Some(port) = before {
                    self.by_port.remove(&port);
                }
                if let Some(port) = after {
                    self.by_port.insert(port, key);
                }
            }
            // Only here: a session changes its deadline in its turn, or is ready for one.
            self.timers.set(key, session.deadline());
            match turn {
                Turn::Idle => {}
                Turn::More => make_ready(&mut self.ready, key, session),
                Turn::Gone => {
                    self.timers.set(key, None);
                    let session = self.sessions.remove(key);
                    self.by_id.remove(&session.id());
                    session.forget(&mut self.host);
                }
            }
        }
        Ok(())
    }
}

fn make_ready(ready: &mut VecDeque<usize>, key: usize, session: &mut Session) {
    if !std::mem::replace(&mut session.queued, true) {
        ready.push_back(key);
    }
}

/// Slab keys are used again, so a token carries the generation too.
fn token(key: usize, generation: u32) -> Token {
    Token((generation as usize) << 32 | key)
}

fn untoken(token: usize) -> (usize, u32) {
    let key = token & u32::MAX as usize;
    (key, u32::try_from(token >> 32).unwrap_or(u32::MAX))
}
