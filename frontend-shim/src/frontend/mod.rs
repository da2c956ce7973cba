//! One bus instance from the driver's side, as its user sees it: claim it, connect, share memory,
//! find devices, leave (binding sections 1, 4 and 8).
//!
//! One thread, one caller. [`Frontend::pump`] does what can be done at once; [`Frontend::wait`]
//! sleeps until the backend or XenStore has something to say.

mod session;
mod turn;

use std::time::{Duration, Instant};

use virtio_msg::DriverBusAction;
use xen_bus::handshake::{FrontendHandshake, Wait, XenbusState};
use xen_bus::messages::{AREA_SHARE, AreaResult, PrivateMessage};
use xen_hal::{EventChannels, GrantedPages, Platform, PlatformSpec, StorePath};
use xen_types::EvtchnPort;
use xenstore::{Client, RequestCounts, Tree as _};

use crate::error::FrontendError;
use crate::instance::{FrontendLock, Instance};
use crate::link::{Link, LinkOptions};

pub use turn::Watched;

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
