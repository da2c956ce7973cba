//! One bus instance from the driver's side: executes the connection states, and pumps the link
//! while messages flow (binding section 3).
//!
//! One thread, one caller. [`Frontend::pump`] does what can be done at once; [`Frontend::wait`]
//! sleeps until the backend or XenStore has something to say.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_msg::DriverBusAction;
use xen_bus::handshake::{
    FrontendCommand, FrontendHandshake, FrontendSeen, Look, Outcome, RETRY_DELAY, STEPS_PER_TURN,
    Wait, XenbusState,
};
use xen_bus::keys::BackendOffer;
use xen_bus::messages::{AREA_SHARE, AreaResult, PrivateMessage};
use xen_hal::{EventChannels, GrantedPages, Platform, PlatformSpec, StorePath};
use xen_types::{EvtchnPort, Session, parse_decimal};
use xenstore::{Client, RequestCounts, StoreError, Tree as _};

use crate::error::FrontendError;
use crate::instance::{FrontendLock, Instance};
use crate::link::{Link, LinkOptions, revoke_all};

/// Pages of the one shared area (binding section 4: a user-space frontend's default).
const POOL_PAGES: usize = 512;
/// How long the backend may take for an answer of the bus.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Token of the watch on the backend's state.
const WATCH_STATE: &str = "state";
/// Token of the watch on `online`.
const WATCH_ONLINE: &str = "online";

/// The driver side of one bus instance.
#[derive(Debug)]
pub struct Frontend {
    platform: Platform,
    store: Client,
    channels: EventChannels,
    instance: Instance,
    _lock: FrontendLock,
    options: LinkOptions,
    handshake: FrontendHandshake,
    link: Option<Link>,
    /// Pages of former sessions that could not be revoked yet.
    quarantine: Vec<GrantedPages>,
    look: bool,
    retry_at: Option<Instant>,
    wait: Option<(Wait, Instant)>,
    ports: Vec<EvtchnPort>,
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
            channels: platform.event_channels()?,
            platform,
            store,
            instance,
            _lock: lock,
            options: LinkOptions::default(),
            handshake: FrontendHandshake::started(),
            link: None,
            quarantine: Vec::new(),
            look: true,
            retry_at: None,
            wait: None,
            ports: Vec::new(),
            last_fault: None,
        })
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
        let deadline = Instant::now().checked_add(limit);
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
        let why = self.last_fault.clone();
        let handle = self.instance.handle;
        match &mut self.link {
            Some(link) if self.handshake.is_connected() => Ok(link),
            _ => Err(FrontendError::Disconnected {
                handle,
                why: why.unwrap_or_else(|| "the backend closed it".into()),
            }),
        }
    }

    /// Shares the memory that devices and their buffers live in, once per connection.
    ///
    /// # Errors
    /// No memory, or the backend refuses it.
    pub fn share_pool(&mut self) -> Result<(), FrontendError> {
        if self.link()?.pool().is_some() {
            return Ok(());
        }
        let handle = self.instance.handle;
        let sharing = self.link()?.begin_share(POOL_PAGES)?;
        let wanted = sharing.id();
        let answer = self.until(ANSWER_LIMIT, "AREA_SHARE", |action| match action {
            DriverBusAction::PrivateAnswer { id, payload } if id == wanted => Some(payload),
            _ => None,
        })?;
        let result = match PrivateMessage::parse(AREA_SHARE, true, &answer) {
            Ok(PrivateMessage::AreaShareReply(reply)) if reply.result == AreaResult::DONE => {
                self.link()?.finish_share(sharing);
                return Ok(());
            }
            Ok(PrivateMessage::AreaShareReply(reply)) => reply.result.to_string(),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        };
        Err(FrontendError::AreaRefused {
            handle,
            pages: POOL_PAGES,
            result,
        })
    }

    /// The device numbers on the bus, ascending.
    ///
    /// # Errors
    /// The connection ended, or the backend does not answer.
    pub fn devices(&mut self) -> Result<Vec<u16>, FrontendError> {
        let link = self.link()?;
        let now = link.now();
        link.bus().enumerate(now);
        let mut found = Vec::new();
        self.until(ANSWER_LIMIT, "GET_DEVICES", |action| {
            match action {
                DriverBusAction::Added(dev_num) => found.push(dev_num.0),
                DriverBusAction::Removed(dev_num) => found.retain(|number| *number != dev_num.0),
                DriverBusAction::Enumerated => return Some(()),
                _ => {}
            }
            None
        })?;
        found.extend(self.link()?.bus().devices().map(|dev_num| dev_num.0));
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Pumps until `wanted` picks something from what the bus says.
    ///
    /// # Errors
    /// The connection ended, or nothing came within `limit`.
    pub fn until<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut wanted: impl FnMut(DriverBusAction) -> Option<T>,
    ) -> Result<T, FrontendError> {
        let deadline = Instant::now().checked_add(limit);
        loop {
            while let Some(action) = self.link()?.poll_action() {
                if let Some(found) = wanted(action) {
                    return Ok(found);
                }
            }
            if !self.wait_before(deadline)? {
                return Err(FrontendError::Timeout {
                    handle: self.instance.handle,
                    what: what.to_owned(),
                    limit,
                });
            }
            self.pump()?;
        }
    }

    /// Does what can be done at once.
    ///
    /// # Errors
    /// XenStore or this host failed; a fault of the backend ends the connection instead.
    pub fn pump(&mut self) -> Result<(), FrontendError> {
        self.take_watches()?;
        self.take_timers();
        if self.take_events()?
            && let Some(link) = &mut self.link
        {
            let noted = link.event(&self.channels);
            self.check(noted)?;
        }
        if self.look {
            self.negotiate()?;
        }
        self.pump_link()
    }

    /// Sends and receives what is there, without a look at XenStore.
    fn pump_link(&mut self) -> Result<(), FrontendError> {
        if self.handshake.is_connected()
            && let Some(link) = &mut self.link
        {
            let pumped = link.pump();
            self.check(pumped)?;
        }
        Ok(())
    }

    /// Sleeps until there may be something to do, at most until `deadline` (`None`: for ever).
    /// False: the deadline has passed.
    ///
    /// # Errors
    /// XenStore or this host failed.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool, FrontendError> {
        self.wait_with(deadline, &mut [])
    }

    /// As [`Frontend::wait`], but false also if there is always something to do: a backend that
    /// never stops sending does not outlast a deadline.
    pub(crate) fn wait_before(&mut self, deadline: Option<Instant>) -> Result<bool, FrontendError> {
        let in_time = deadline.is_none_or(|deadline| Instant::now() < deadline);
        Ok(in_time && self.wait(deadline)?)
    }

    /// As [`Frontend::wait`], and for `others` as well; says of each what it is ready for, also if
    /// it did not have to sleep.
    ///
    /// # Errors
    /// XenStore or this host failed.
    pub fn wait_with(
        &mut self,
        deadline: Option<Instant>,
        others: &mut [Watched<'_>],
    ) -> Result<bool, FrontendError> {
        let mut at_once = false;
        if self.handshake.is_connected()
            && let Some(link) = &mut self.link
        {
            let slept = link.prepare_sleep(&self.channels);
            at_once = !self.check(slept)?.unwrap_or(false);
        }
        at_once |= self.look || self.store.has_event();
        if at_once && others.is_empty() {
            return Ok(true);
        }
        let now = Instant::now();
        if !at_once && deadline.is_some_and(|deadline| deadline <= now) {
            return Ok(false);
        }
        let bus = self.link.as_ref().and_then(Link::deadline);
        let at_once = at_once.then_some(now);
        let wait = self.wait.map(|(_, at)| at);
        let timeout = [at_once, deadline, self.retry_at, wait, bus]
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.saturating_duration_since(now));
        let own = [
            PollFd::new(&self.store, PollFlags::IN),
            PollFd::from_borrowed_fd(self.channels.as_fd(), PollFlags::IN),
        ];
        match poll_all(own, others, timeout) {
            Ok(()) | Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(std::io::Error::from(error).into()),
        }
    }

    /// Ends the connection in order, and gives everything back.
    ///
    /// # Errors
    /// XenStore failed, or the backend did not let go within `limit`.
    pub fn leave(mut self, limit: Duration) -> Result<(), FrontendError> {
        self.handshake.leave();
        self.look = true;
        let deadline = Instant::now().checked_add(limit);
        loop {
            self.pump()?;
            if self.handshake.is_over() {
                return Ok(());
            }
            if !self.wait_before(deadline)? {
                return Err(FrontendError::Timeout {
                    handle: self.instance.handle,
                    what: "the end of the connection".into(),
                    limit,
                });
            }
        }
    }

    /// Turns a fault of the link into the end of the connection.
    fn check<T>(&mut self, result: Result<T, FrontendError>) -> Result<Option<T>, FrontendError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ (FrontendError::Store(_) | FrontendError::Io(_))) => Err(error),
            Err(fault) => {
                tracing::warn!(handle = self.instance.handle, %fault, "the connection ends");
                self.last_fault = Some(fault.to_string());
                self.handshake.fault();
                self.look = true;
                Ok(None)
            }
        }
    }

    fn take_watches(&mut self) -> Result<(), FrontendError> {
        while let Some(event) = self.store.next_event()? {
            if event.token == WATCH_ONLINE {
                self.handshake.online_written();
            }
            self.look = true;
        }
        Ok(())
    }

    fn take_timers(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.look = true;
        }
        if let Some((wait, at)) = self.wait
            && at <= now
        {
            self.wait = None;
            self.handshake.timed_out(wait);
            self.look = true;
        }
    }

    fn take_events(&mut self) -> Result<bool, FrontendError> {
        self.ports.clear();
        self.channels.pending(&mut self.ports)?;
        Ok(!self.ports.is_empty())
    }

    fn negotiate(&mut self) -> Result<(), FrontendError> {
        self.look = false;
        let kept = std::mem::take(&mut self.quarantine);
        self.quarantine = revoke_all(self.instance.handle, kept);
        for _ in 0..STEPS_PER_TURN {
            let seen = self.look_at_store()?;
            let Some(command) = self.handshake.next(&seen) else {
                self.arm_wait();
                return Ok(());
            };
            tracing::debug!(handle = self.instance.handle, ?command, "step");
            let outcome = self.execute(command)?;
            let look = self.handshake.done(outcome);
            self.arm_wait();
            if look == Look::Later {
                self.retry_at = Instant::now().checked_add(RETRY_DELAY);
                return Ok(());
            }
        }
        self.look = true;
        Ok(())
    }

    fn arm_wait(&mut self) {
        let wait = self.handshake.wait();
        if wait != self.wait.map(|(wait, _)| wait) {
            self.wait =
                wait.and_then(|wait| Some((wait, Instant::now().checked_add(wait.limit())?)));
        }
    }

    /// The session is read before the state, so that the state is never the older of the two.
    fn look_at_store(&mut self) -> Result<FrontendSeen, StoreError> {
        let own = self.store.read_opt(&self.instance.own("state"))?;
        let session = self.store.read_opt(&self.instance.peer("session"))?;
        let backend = self.store.read_opt(&self.instance.peer("state"))?;
        let online = self.store.read_opt(&self.instance.peer("online"))?;
        Ok(FrontendSeen {
            own: own.map(|text| XenbusState::parse(&text)),
            session: session.and_then(|text| parse_decimal(&text)).map(Session),
            backend: backend.map(|text| XenbusState::parse(&text)),
            online: online.as_deref() == Some(b"1"),
        })
    }

    fn execute(&mut self, command: FrontendCommand) -> Result<Outcome, FrontendError> {
        match command {
            FrontendCommand::Publish(state) => {
                self.store
                    .write(&self.instance.own("state"), state.number().to_string())?;
                Ok(Outcome::Done)
            }
            FrontendCommand::Share { session } => match self.share(session) {
                Ok(true) => Ok(Outcome::Done),
                Ok(false) => Ok(Outcome::NotDone),
                Err(error @ (FrontendError::Store(_) | FrontendError::Io(_))) => Err(error),
                Err(error) => {
                    tracing::error!(handle = self.instance.handle, %error, "cannot connect");
                    let why = error.to_string();
                    self.last_fault = Some(why.clone());
                    Ok(Outcome::Failed(why))
                }
            },
            FrontendCommand::Stop => {
                if let Some(link) = &mut self.link {
                    link.stop();
                }
                Ok(Outcome::Done)
            }
            FrontendCommand::Revoke => {
                if let Some(link) = self.link.take() {
                    self.quarantine.extend(link.revoke(&self.channels));
                }
                Ok(Outcome::Done)
            }
        }
    }

    /// Allocates ring and port for `session` and publishes the keys, state 3 last. False: the
    /// backend offers another session by now.
    fn share(&mut self, session: Session) -> Result<bool, FrontendError> {
        let mut offered = BTreeMap::new();
        for key in BackendOffer::KEYS {
            if let Some(value) = self.store.read_opt(&self.instance.peer(key))? {
                offered.insert(key.to_owned(), value);
            }
        }
        let offer = BackendOffer::parse(&offered)?;
        if offer.session != session {
            return Ok(false);
        }
        let (link, keys) = Link::create(
            &self.platform,
            &self.channels,
            &self.instance,
            &offer,
            self.options,
        )?;
        self.link = Some(link);
        for (key, value) in keys.emit() {
            self.store.write(&self.instance.own(&key), value)?;
        }
        let state = XenbusState::Initialised.number().to_string();
        self.store.write(&self.instance.own("state"), state)?;
        Ok(true)
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
            (.., XenbusState::Initialising) => "no backend runs there: start `vmsg backend`".into(),
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

/// A descriptor of somebody else that is waited for as well.
#[derive(Debug)]
pub struct Watched<'fd> {
    /// The descriptor.
    pub fd: BorrowedFd<'fd>,
    /// What to wait for.
    pub interest: PollFlags,
    /// What it is ready for.
    pub ready: PollFlags,
}

impl<'fd> Watched<'fd> {
    /// To wait for `interest`.
    #[must_use]
    pub fn new(fd: BorrowedFd<'fd>, interest: PollFlags) -> Self {
        let ready = PollFlags::empty();
        Self {
            fd,
            interest,
            ready,
        }
    }
}

fn poll_all(
    mut own: [PollFd<'_>; 2],
    others: &mut [Watched<'_>],
    timeout: Option<Duration>,
) -> rustix::io::Result<()> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    if others.is_empty() {
        // The path of a request: no allocation.
        poll(&mut own, timeout.as_ref())?;
        return Ok(());
    }
    let watched = others
        .iter()
        .map(|other| PollFd::from_borrowed_fd(other.fd, other.interest));
    let mut all: Vec<_> = watched.chain(own).collect();
    poll(&mut all, timeout.as_ref())?;
    for (other, polled) in others.iter_mut().zip(&all) {
        other.ready = polled.revents();
    }
    Ok(())
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
