//! One bus instance from the driver's side, as its user sees it: claim it, connect, share memory,
//! find devices, leave (binding sections 1, 4 and 8).
//!
//! One thread, one caller. [`Frontend::pump`] does what can be done at once; [`Frontend::wait`]
//! sleeps until the backend or XenStore has something to say.

mod alarm;
mod devices;
mod session;
mod turn;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_msg::wire::MsgId;
use xen_bus::handshake::{FrontendHandshake, Wait, XenbusState};
use xen_bus::messages::{AREA_SHARE, AreaResult, PrivateMessage};
use xen_bus::patience::Patience;
use xen_hal::{EventChannels, GrantedPages, Platform, PlatformSpec, StorePath};
use xen_types::EvtchnPort;
use xenstore::{Client, RequestCounts, Tree as _};

use crate::clock::Clock;
use crate::error::{FrontendError, backend_command};
use crate::instance::{FrontendLock, Instance};
use crate::link::{Link, LinkOptions};

use alarm::Alarm;
pub use devices::Wants;
use turn::Readable;
pub use turn::Watched;

/// Pages of the one shared area (binding section 4: a user-space frontend's default).
const POOL_PAGES: usize = 512;
/// Below this a pool is of no use: a disk with one slot takes 36 pages.
const MIN_POOL_PAGES: usize = 64;
/// Token of the watch on the backend's state.
const WATCH_STATE: &str = "state";
/// Token of the watch on `online`.
const WATCH_ONLINE: &str = "online";
/// How many watches those are.
const WATCHES: usize = 2;

/// How long a backend may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the answer to a message.
    pub answer: Duration,
    /// For a reset: I/O may have to end first.
    pub reset: Duration,
    /// For a request in a queue.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(10),
            reset: Duration::from_secs(60),
            request: Duration::from_secs(60),
        }
    }
}

/// The driver side of one bus instance.
#[derive(Debug)]
pub struct Frontend {
    spec: PlatformSpec,
    platform: Platform,
    store: Client,
    channels: EventChannels,
    instance: Instance,
    _lock: FrontendLock,
    options: LinkOptions,
    limits: Limits,
    clock: Arc<Clock>,
    alarm: Alarm,
    handshake: FrontendHandshake,
    link: Option<Link>,
    /// How often a connection was begun.
    connections: u64,
    /// Pages of former sessions that could not be revoked yet.
    quarantine: Vec<GrantedPages>,
    /// Watches that have not fired yet, as each does once when it is set.
    unheard: usize,
    /// What is in XenStore may have changed.
    look: bool,
    /// `online` as it was read, until its watch says that it was written.
    online: Option<bool>,
    retry_at: Option<Instant>,
    wait: Option<(Wait, Instant)>,
    readable: Readable,
    ports: Vec<EvtchnPort>,
    patience: Patience,
    last_fault: Option<String>,
}

impl Frontend {
    /// Claims bus `handle` of this domain; connects nothing yet.
    ///
    /// # Errors
    /// No platform, no such bus, or another driver has it.
    pub fn open(spec: &PlatformSpec, handle: u32) -> Result<Self, FrontendError> {
        let (platform, mut store) = open_platform(spec)?;
        let lock = match spec {
            PlatformSpec::Xen => FrontendLock::take_on_xen(handle)?,
            PlatformSpec::Hosted { dir, domid } => {
                FrontendLock::take(&dir.join("run").join(format!("dom{domid}")), handle)?
            }
        };
        let instance =
            Instance::read(&mut store, handle)?.ok_or(FrontendError::NoInstance { handle })?;
        store.watch(&instance.peer("state"), WATCH_STATE)?;
        store.watch(&instance.peer("online"), WATCH_ONLINE)?;
        Ok(Self {
            spec: spec.clone(),
            channels: platform.event_channels()?,
            platform,
            store,
            instance,
            _lock: lock,
            options: LinkOptions::default(),
            limits: Limits::default(),
            clock: Arc::new(Clock::start()),
            alarm: Alarm::new()?,
            handshake: FrontendHandshake::started(),
            link: None,
            connections: 0,
            quarantine: Vec::new(),
            unheard: WATCHES,
            look: false,
            online: None,
            retry_at: None,
            wait: None,
            readable: Readable::default(),
            ports: Vec::new(),
            patience: xen_hal::wake_cost().map_or(Patience::none(), Patience::new),
            last_fault: None,
        })
    }

    /// Buffers are named by their grants in connections to come, if the backend offers that
    /// (binding section 5); queues stay in the shared area.
    pub fn name_grants(&mut self) {
        self.options.grant_addresses = true;
    }

    /// The instance.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// What was asked of XenStore so far.
    #[must_use]
    pub fn store_requests(&self) -> &RequestCounts {
        self.store.requests()
    }

    /// Waits until messages flow.
    ///
    /// # Errors
    /// No backend within `limit`; the message says how far it came.
    pub fn connect(&mut self, limit: Duration) -> Result<(), FrontendError> {
        let deadline = self.now().checked_add(limit);
        loop {
            self.pump()?;
            if self.is_connected() {
                return Ok(());
            }
            if self.handshake.is_stuck() || !self.wait_before(deadline)? {
                return Err(self.no_backend(limit));
            }
        }
    }

    /// The time as of the last tick, for limits of seconds: no request pays for a look at the clock.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Whether a moment has passed.
    pub(crate) fn has_passed(&self, at: Instant) -> bool {
        self.clock.has_passed(at)
    }

    /// How often the exact time was asked for, which can cost a system call or a trap.
    #[must_use]
    pub fn clock_reads(&self) -> u64 {
        self.clock.exact_reads()
    }

    /// Whether messages flow.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.handshake.is_connected() && self.link.is_some()
    }

    /// The link, while messages flow.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn link(&mut self) -> Result<&mut Link, FrontendError> {
        match &mut self.link {
            Some(link) if self.handshake.is_connected() => Ok(link),
            _ => Err(FrontendError::Disconnected {
                handle: self.instance.handle,
                why: match &self.last_fault {
                    Some(fault) => fault.clone(),
                    None => "the backend closed it".into(),
                },
            }),
        }
    }

    /// How long the backend may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Changes how long the backend may take, from the next message on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Shares the memory that devices and their buffers live in, once per connection: 512 pages,
    /// or fewer where this domain or the backend has no room for so many.
    ///
    /// # Errors
    /// No memory, or the backend refuses it.
    pub fn share_pool(&mut self) -> Result<(), FrontendError> {
        let mut pages = POOL_PAGES;
        while self.link()?.pool().is_none() {
            match self.share_pages(pages) {
                Err(error) if error.is_no_room() && pages / 2 >= MIN_POOL_PAGES => {
                    tracing::info!(
                        handle = self.instance.handle,
                        %error,
                        "no room for a pool of {pages} pages, trying {}",
                        pages / 2
                    );
                    pages /= 2;
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn share_pages(&mut self, pages: usize) -> Result<(), FrontendError> {
        let limit = self.limits.answer;
        let sharing = self.link()?.begin_share(pages)?;
        let answer = self
            .until(limit, "AREA_SHARE", |link| {
                link.news().answered(sharing.id())
            })?
            .ok_or_else(|| self.late("AREA_SHARE", limit))?;
        let handle = self.instance.handle;
        match PrivateMessage::parse(AREA_SHARE, true, &answer) {
            Ok(PrivateMessage::AreaShareReply(reply)) if reply.result == AreaResult::DONE => {
                self.link()?.finish_share(sharing);
                Ok(())
            }
            Ok(PrivateMessage::AreaShareReply(reply)) => Err(FrontendError::AreaRefused {
                handle,
                pages,
                result: reply.result,
            }),
            Ok(_) => Err(FrontendError::answer(
                handle,
                "AREA_SHARE",
                "another message",
            )),
            Err(error) => Err(FrontendError::answer(handle, "AREA_SHARE", error)),
        }
    }

    /// Sends a private request of the bus (binding section 6), and waits for its answer. For
    /// frontends that share areas of their own beside the pool.
    ///
    /// # Errors
    /// The connection ended, there is no answer in time, or it cannot be read.
    pub fn ask(&mut self, request: &PrivateMessage) -> Result<PrivateMessage, FrontendError> {
        let (limit, handle) = (self.limits.answer, self.instance.handle);
        let what = "a private request";
        let link = self.link()?;
        let (now, msg_id) = (link.now(), request.msg_id());
        let sent = link
            .bus()
            .send_private(now, MsgId(msg_id), &request.emit())
            .ok_or_else(|| FrontendError::answer(handle, what, "it does not fit a message"))?;
        let answer = self
            .until(limit, what, |link| link.news().answered(sent))?
            .ok_or_else(|| self.late(what, limit))?;
        PrivateMessage::parse(msg_id, true, &answer)
            .map_err(|error| FrontendError::answer(handle, what, error))
    }

    /// Pumps until `wanted` finds something.
    ///
    /// # Errors
    /// The connection ended, or nothing was found within `limit`.
    pub(crate) fn until<T>(
        &mut self,
        limit: Duration,
        what: impl Display,
        mut wanted: impl FnMut(&mut Link) -> Option<T>,
    ) -> Result<T, FrontendError> {
        let deadline = self.now().checked_add(limit);
        loop {
            if let Some(found) = wanted(self.link()?) {
                return Ok(found);
            }
            if !self.wait_before(deadline)? {
                return Err(self.late(what, limit));
            }
            self.pump()?;
        }
    }

    /// Nothing came within `limit`.
    pub(crate) fn late(&self, what: impl Display, limit: Duration) -> FrontendError {
        FrontendError::Timeout {
            handle: self.instance.handle,
            backend: self.instance.backend.0,
            what: what.to_string(),
            limit,
        }
    }

    /// Ends the connection in order, and gives everything back.
    ///
    /// # Errors
    /// XenStore failed, or the backend did not let go within `limit`.
    pub fn leave(mut self, limit: Duration) -> Result<(), FrontendError> {
        self.handshake.leave();
        self.look = true;
        let deadline = self.now().checked_add(limit);
        loop {
            self.pump()?;
            if self.handshake.is_over() {
                return Ok(());
            }
            if !self.wait_before(deadline)? {
                return Err(self.late("the end of the connection", limit));
            }
        }
    }

    fn no_backend(&mut self, waited: Duration) -> FrontendError {
        let state = self
            .store
            .read_opt(&self.instance.peer("state"))
            .ok()
            .flatten()
            .map_or(XenbusState::Unknown, |text| XenbusState::parse(&text));
        let said = self.store.read_opt(&self.instance.peer("error"));
        let hint = match (&self.last_fault, said.ok().flatten(), state) {
            (Some(fault), ..) => fault.clone(),
            (_, Some(error), XenbusState::Closing | XenbusState::Closed) => {
                format!("it says: {}", String::from_utf8_lossy(&error))
            }
            (.., XenbusState::Unknown) => "its directory is gone".into(),
            (.., XenbusState::Initialising) => {
                let command = backend_command(&self.spec, self.instance.backend);
                format!("no backend runs there: start {command}")
            }
            _ => "it does not go on".into(),
        };
        FrontendError::NoBackend {
            handle: self.instance.handle,
            backend: self.instance.backend.0,
            state,
            waited,
            hint,
        }
    }
}

/// Opens the platform and XenStore of this domain.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn open_platform(spec: &PlatformSpec) -> Result<(Platform, Client), FrontendError> {
    let platform = Platform::open(spec)?;
    let store = match platform.store_path() {
        StorePath::Socket(path) => Client::connect_socket(&path)?,
        StorePath::Device(path) => Client::connect_device(&path)?,
    };
    Ok((platform, store))
}
