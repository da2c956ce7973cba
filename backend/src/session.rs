//! One bus instance from its discovery to its end: executes the connection states, minds the
//! devices, and owns the link while messages flow (binding sections 3, 8 and 9).

use std::fmt::Display;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::os::fd::{AsFd as _, AsRawFd as _};
use xen_bus::handshake::{
    BackendCommand, BackendHandshake, Look, Outcome, RETRY_DELAY, STEPS_PER_TURN, Wait, XenbusState,
};
use xen_bus::keys::{BackendOffer, FrontendKeys};
use xen_types::{DomId, EvtchnPort, Session as SessionId};
use xenstore::StoreError;

use crate::devices::{Change, Devices};
use crate::gauges::InstanceGauges;
use crate::guest_log::{GuestLog, in_full};
use crate::host::Host;
use crate::instance::{InstanceId, Paths};
use crate::link::{Link, LinkFault, LinkTurn};
use crate::lock::InstanceLock;
use crate::negotiation::{self, Done, View, is_fatal};
use crate::retry::Retry;

/// How often a lock that a dying process still holds is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing to do until an event or the deadline.
    Idle,
    /// More to do at once.
    More,
    /// The instance is gone and nothing of it is held.
    Gone,
}

/// One bus instance.
#[derive(Debug)]
pub(crate) struct Session {
    id: InstanceId,
    paths: Paths,
    handshake: BackendHandshake,
    view: View,
    /// The watch has not fired yet, as it does once when it is set: what is read before would be
    /// read again.
    unheard: bool,
    /// What the present session was offered.
    offer: Option<BackendOffer>,
    lock: Option<InstanceLock>,
    /// It was said that another holds the lock.
    told_lock: bool,
    lock_retry: Retry,
    /// When to try again for the lock.
    lock_delay: Duration,
    devices: Devices,
    link: Option<Link>,
    log: GuestLog,
    /// Connections that a fault ended.
    faults: u64,
    /// Told to the loop's registry with each device's wake descriptor.
    token: Token,
    pub(crate) generation: u32,
    pub(crate) queued: bool,
    /// The loop is to let it look for its domain.
    pub(crate) unchecked: bool,
    /// Look at the connection states again.
    look: bool,
    look_at_devices: bool,
    devices_retry: Retry,
    /// The last look at the devices came to nothing, or not to its end.
    devices_retry_at: Option<Instant>,
    /// The toolstack has made the directory, perhaps in the place of an older one, and no session
    /// was offered there yet.
    anew: bool,
    /// Why something of the guest's may stay mapped as long as this process lives.
    stuck: Option<String>,
    retry_at: Option<Instant>,
    wait: Option<(Wait, Instant)>,
    check_domain: bool,
    frontend_alive: bool,
    stopping: bool,
    gone: bool,
}

impl Session {
    /// Watches the frontend's state.
    pub(crate) fn new(
        host: &mut Host,
        id: InstanceId,
        generation: u32,
        token: Token,
    ) -> Result<Self, StoreError> {
        let paths = Paths::new(host.own, id);
        host.store.watch(&paths.peer("state"), &watch_token(id))?;
        Ok(Self {
            id,
            paths,
            handshake: BackendHandshake::started(),
            view: View::default(),
            unheard: true,
            offer: None,
            lock: None,
            told_lock: false,
            lock_retry: Retry::default(),
            lock_delay: LOCK_RETRY,
            devices: Devices::default(),
            link: None,
            log: GuestLog::new(id),
            faults: 0,
            token,
            generation,
            queued: false,
            unchecked: false,
            look: true,
            look_at_devices: true,
            devices_retry: Retry::default(),
            devices_retry_at: None,
            anew: false,
            stuck: None,
            retry_at: None,
            wait: None,
            check_domain: true,
            frontend_alive: true,
            stopping: false,
            gone: false,
        })
    }

    pub(crate) fn id(&self) -> InstanceId {
        self.id
    }

    /// The port of the link, while there is one.
    pub(crate) fn port(&self) -> Option<EvtchnPort> {
        self.link.as_ref().map(Link::port)
    }

    /// What is held and was done.
    pub(crate) fn gauges(&self) -> InstanceGauges {
        InstanceGauges {
            frontend: self.id.frontend.0,
            handle: self.id.handle,
            devices: self.devices.len(),
            faults: self.faults,
            link: self.link.as_ref().map(Link::gauges),
        }
    }

    /// When the session wants a turn even without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let wait = self.wait.map(|(_, deadline)| deadline);
        let link = self.link.as_ref().filter(|_| self.handshake.serves());
        let link = link.and_then(Link::deadline);
        let times = [self.retry_at, self.devices_retry_at, wait, link];
        times.into_iter().flatten().min()
    }

    /// The peer sent an event.
    pub(crate) fn event(&mut self) {
        if let Some(link) = &mut self.link {
            link.event();
        }
    }

    /// Keys of the instance may have changed.
    pub(crate) fn instance_changed(&mut self) {
        self.view.forget();
        self.look = true;
    }

    /// The frontend's state may have changed.
    pub(crate) fn frontend_changed(&mut self) {
        self.unheard = false;
        self.view.forget_peer();
        self.look = true;
    }

    /// The list or the wishes of the devices may have changed.
    pub(crate) fn devices_changed(&mut self) {
        self.look_at_devices = true;
    }

    /// Some domain may have died.
    pub(crate) fn domains_changed(&mut self) {
        self.check_domain = true;
        self.look = true;
    }

    /// The service ends: let go of everything, in order.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
        self.look = true;
    }

    /// Does what is due, bounded.
    ///
    /// # Errors
    /// The connection to XenStore failed.
    pub(crate) fn turn(
        &mut self,
        host: &mut Host,
        registry: &Registry,
    ) -> Result<Turn, StoreError> {
        self.take_timers();
        let mut more = false;
        if std::mem::take(&mut self.check_domain) {
            self.frontend_alive = is_alive(host, self.id, &self.paths)?;
        }
        // First, because it finds out whether the directory is still the one that is known.
        if self.may_look() {
            more |= self.negotiate(host)?;
        }
        more |= self.serve(host)?;
        if self.minds_devices() && std::mem::take(&mut self.look_at_devices) {
            self.update_devices(host, registry)?;
            more |= self.link.is_some();
        }
        if self.is_over() {
            return Ok(Turn::Gone);
        }
        // A step may have made work for what came before it in this turn.
        more |= self.may_look() || (self.minds_devices() && self.look_at_devices);
        Ok(if more { Turn::More } else { Turn::Idle })
    }

    /// Lets go of the watch, of the lock, and of the directories of a domain that is gone.
    pub(crate) fn forget(self, host: &mut Host) {
        let watch = host
            .store
            .unwatch(&self.paths.peer("state"), &watch_token(self.id));
        if let Err(error) = watch {
            tracing::debug!(id = %self.id, %error, "unwatch");
        }
        if !self.frontend_alive && !self.stopping {
            crate::cleanup::remove_dead(host, self.id, &self.paths);
        }
        if let Some(lock) = self.lock
            && (self.gone || !self.frontend_alive)
        {
            lock.remove(&host.run_dir, self.id);
        }
        tracing::info!(id = %self.id, "forgotten");
    }

    fn may_look(&self) -> bool {
        self.look && (!self.unheard || self.stopping || !self.frontend_alive)
    }

    /// Whether the devices are this session's to open: it has the lock, and the directory is the
    /// one that it knows.
    fn minds_devices(&self) -> bool {
        self.lock.is_some() && !self.stopping && !self.anew
    }

    fn is_over(&self) -> bool {
        (!self.handshake.holds() || (self.stuck.is_some() && self.stopping))
            && self.link.is_none()
            && (self.stopping || self.gone || !self.frontend_alive)
    }

    fn take_timers(&mut self) {
        if self.retry_at.is_none() && self.devices_retry_at.is_none() && self.wait.is_none() {
            return;
        }
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.view.forget();
            self.look = true;
        }
        if self.devices_retry_at.is_some_and(|at| at <= now) {
            self.devices_retry_at = None;
            self.look_at_devices = true;
        }
        if let Some((wait, deadline)) = self.wait
            && deadline <= now
        {
            self.wait = None;
            self.handshake.timed_out(wait);
            self.look = true;
        }
    }

    /// Runs the link; true: it wants another turn.
    fn serve(&mut self, host: &mut Host) -> Result<bool, StoreError> {
        let Some(link) = &mut self.link else {
            return Ok(false);
        };
        if !self.handshake.serves() && !link.is_ending() {
            return Ok(false);
        }
        let (turn, removed) = link.turn(host, &mut self.devices, &mut self.log);
        for number in removed {
            if self.anew {
                continue;
            }
            self.devices.removed(&mut host.store, &self.paths, number)?;
        }
        match turn {
            Ok(LinkTurn::Idle) => {}
            Ok(LinkTurn::More) => return Ok(true),
            Ok(LinkTurn::Ended) => {
                if let Some(link) = self.link.take()
                    && let Err(fault) = link.close(host)
                {
                    let fault = in_full(&fault);
                    tracing::error!(id = %self.id, %fault, "cannot let go of the guest's memory; restart the backend");
                    self.stuck = Some(fault);
                } else if self.log.admits() {
                    tracing::info!(id = %self.id, "detached: nothing of the guest is held");
                }
                if !self.anew {
                    self.devices.remove_leaving(&mut host.store, &self.paths)?;
                }
                self.finish(self.torn_down());
            }
            Err(fault) => self.fault(&fault),
        }
        if self.handshake.wait() == Some(Wait::Drain) && self.devices.is_empty() {
            self.handshake.drained();
            self.look = true;
        }
        Ok(false)
    }

    /// What became of a teardown: state 6 is never published while something may be mapped.
    fn torn_down(&self) -> Outcome {
        match &self.stuck {
            None => Outcome::Done,
            Some(why) => Outcome::Failed(why.clone()),
        }
    }

    fn fault(&mut self, fault: &LinkFault) {
        let fault = in_full(fault);
        if self.log.admits() {
            tracing::warn!(id = %self.id, %fault, "the instance ends");
        }
        self.faults = self.faults.saturating_add(1);
        self.handshake.fault(fault);
        self.look = true;
    }

    /// Executes the connection states until there is nothing to do; true: more to do at once.
    fn negotiate(&mut self, host: &mut Host) -> Result<bool, StoreError> {
        self.look = false;
        // First, as what stands in the store may be another process's until then.
        if self.lock.is_none() && !self.stopping {
            self.take_lock(host);
        }
        let mut stepped = false;
        for _ in 0..STEPS_PER_TURN {
            if self.stopping {
                self.handshake.fault("the backend was stopped");
            }
            let random = getrandom::u32().unwrap_or_else(|_| std::process::id());
            let alive = self.frontend_alive;
            let seen = self
                .view
                .look(&mut host.store, &self.paths, alive, random)?;
            self.gone = seen.own.is_none();
            self.anew = seen.own == Some(XenbusState::Initialising);
            if self.stopping && !self.handshake.holds() {
                return Ok(false);
            }
            // Before a frontend is served, as it asks for its devices at once.
            if self.look_at_devices && self.minds_devices() {
                self.look = true;
                return Ok(true);
            }
            let Some(command) = self.handshake.next(&seen) else {
                self.arm_wait();
                // Messages may flow since the last step, and their event have come before it.
                return Ok(stepped);
            };
            stepped = true;
            tracing::debug!(id = %self.id, ?command, "step");
            let Some(outcome) = self.execute(host, command)? else {
                return Ok(true);
            };
            if !self.finish(outcome) {
                return Ok(false);
            }
        }
        self.look = true;
        Ok(true)
    }

    /// Tells the states what became of a step; whether to look again at once.
    fn finish(&mut self, outcome: Outcome) -> bool {
        let look = self.handshake.done(outcome);
        self.arm_wait();
        match look {
            Look::Again => {
                self.look = true;
                true
            }
            Look::Later => {
                self.view.step_refused();
                let delay = if self.lock.is_none() {
                    self.lock_delay
                } else {
                    RETRY_DELAY
                };
                self.retry_at = Instant::now().checked_add(delay);
                false
            }
        }
    }

    fn arm_wait(&mut self) {
        let wait = self.handshake.wait();
        if wait != self.wait.map(|(wait, _)| wait) {
            self.wait =
                wait.and_then(|wait| Some((wait, Instant::now().checked_add(wait.limit())?)));
        }
    }

    /// One step; `None`: it goes on in later turns.
    fn execute(
        &mut self,
        host: &mut Host,
        command: BackendCommand,
    ) -> Result<Option<Outcome>, StoreError> {
        let done = match command {
            // It was tried before the look.
            BackendCommand::TakeLock if self.lock.is_some() => Outcome::Done,
            BackendCommand::TakeLock => Outcome::NotDone,
            BackendCommand::EnterInitWait { session } => {
                let offer = BackendOffer::new(session);
                self.offer = Some(offer);
                let done = negotiation::enter_init_wait(&mut host.store, &self.paths, &offer)?;
                if let Done::Yes(()) = done {
                    self.view.wrote(XenbusState::InitWait, Some(session));
                    if std::mem::take(&mut self.anew) {
                        self.devices = Devices::default();
                        self.look_at_devices = true;
                    }
                }
                done.into()
            }
            BackendCommand::Attach { session } => self.attach(host, session)?,
            BackendCommand::Reattach => Outcome::NotDone,
            BackendCommand::Publish { from, state, error } => {
                if self.log.admits() {
                    tracing::info!(id = %self.id, state = state.number(), error, "state");
                }
                let error = error.as_deref();
                let done = negotiation::publish(&mut host.store, &self.paths, from, state, error)?;
                if let Done::Yes(()) = done {
                    self.view.wrote(state, None);
                }
                done.into()
            }
            BackendCommand::AskRemoval => {
                if let Some(link) = &mut self.link {
                    for (number, _) in self.devices.iter_mut() {
                        link.ask_removal(number);
                    }
                }
                Outcome::Done
            }
            BackendCommand::Teardown => match &mut self.link {
                None => self.torn_down(),
                Some(link) => {
                    link.begin_end(&mut self.devices);
                    return Ok(None);
                }
            },
        };
        Ok(Some(done))
    }

    fn take_lock(&mut self, host: &Host) {
        match InstanceLock::try_take(&host.run_dir, self.id) {
            Ok(Some(lock)) => {
                self.lock = Some(lock);
                self.view.forget();
                self.look_at_devices = true;
            }
            Ok(None) => {
                self.lock_delay = LOCK_RETRY;
                if !std::mem::replace(&mut self.told_lock, true) {
                    tracing::warn!(id = %self.id, "another backend holds it, or one that died still has I/O in flight; waiting");
                }
            }
            Err(error) => {
                self.lock_delay = self.lock_retry.failed();
                if self.lock_retry.tells(Instant::now()) {
                    tracing::error!(id = %self.id, %error, "cannot take the lock; it is tried again");
                }
            }
        }
    }

    fn attach(&mut self, host: &mut Host, session: SessionId) -> Result<Outcome, StoreError> {
        let keys = match negotiation::read_keys(&mut host.store, &self.paths, session)? {
            Done::Yes(keys) => keys,
            Done::No => return Ok(Outcome::NotDone),
        };
        self.view.wrote(XenbusState::Initialised, None);
        let Some(offer) = self.offer.filter(|offer| offer.session == session) else {
            return Ok(Outcome::Failed(
                "the session was not offered by this backend".into(),
            ));
        };
        let outcome = FrontendKeys::parse(&keys)
            .map_err(LinkFault::from)
            .and_then(|keys| Link::attach(host, self.id, &keys, &offer, &mut self.log));
        Ok(match outcome {
            Ok(mut link) => {
                for (number, device) in self.devices.iter_mut() {
                    link.add_device(number, device);
                }
                self.link = Some(link);
                Outcome::Done
            }
            Err(fault) => {
                let fault = in_full(&fault);
                if self.log.admits() {
                    tracing::warn!(id = %self.id, %fault, "cannot attach");
                }
                self.faults = self.faults.saturating_add(1);
                Outcome::Failed(fault)
            }
        })
    }

    fn update_devices(&mut self, host: &mut Host, registry: &Registry) -> Result<(), StoreError> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        // What their I/O holds, so that the lock outlives this process as long as that does.
        let engine = match host.engine.holding(lock.as_fd()) {
            Ok(engine) => engine,
            Err(error) => {
                self.look_at_devices_later(&error);
                return Ok(());
            }
        };
        let changes = self
            .devices
            .reconcile(&mut host.store, &self.paths, &engine);
        let changes = match changes {
            Err(error) if !is_fatal(&error) => {
                self.look_at_devices_later(&error);
                return Ok(());
            }
            other => other?,
        };
        match self.devices.take_shortage() {
            Some(why) => self.look_at_devices_later(&why),
            None => self.devices_retry.succeeded(),
        }
        for change in changes {
            match change {
                Change::Added(number) => {
                    if let Some(device) = self.devices.get_mut(number) {
                        register(registry, device, self.token);
                        if let Some(link) = &mut self.link {
                            link.add_device(number, device);
                        }
                    }
                }
                Change::Ask(number) | Change::Force(number) if self.link.is_none() => {
                    self.devices.removed(&mut host.store, &self.paths, number)?;
                }
                Change::Ask(number) => {
                    if let Some(link) = &mut self.link {
                        link.ask_removal(number);
                    }
                }
                Change::Force(number) => {
                    if let Some(link) = &mut self.link {
                        link.force_removal(number, &mut self.devices);
                    }
                }
            }
        }
        Ok(())
    }

    /// This host kept the session from seeing to all of its devices: a timer brings the next look.
    fn look_at_devices_later(&mut self, why: &dyn Display) {
        let delay = self.devices_retry.failed();
        let now = Instant::now();
        self.devices_retry_at = now.checked_add(delay);
        if self.devices_retry.tells(now) {
            tracing::error!(id = %self.id, %why, "cannot see to the devices; it is tried again");
        }
    }
}

/// Whether the frontend's domain exists. Only dom0 is told. Elsewhere its directory has gone with it,
/// or a guest has cut itself off: the toolstack makes and removes both directories at once.
fn is_alive(host: &mut Host, id: InstanceId, paths: &Paths) -> Result<bool, StoreError> {
    if host.own != DomId::DOM0 {
        return Ok(negotiation::read(&mut host.store, &paths.frontend)?.is_some());
    }
    match host.store.is_domain_introduced(id.frontend) {
        Err(error) if !is_fatal(&error) => Ok(true),
        other => other,
    }
}

/// The token of the watch on the frontend's state; also how the loop finds the session again.
fn watch_token(id: InstanceId) -> String {
    format!("{}/{}", id.frontend, id.handle)
}

/// A device without a wake descriptor never has anything to do by itself.
fn register(registry: &Registry, device: &crate::devices::Device, token: Token) {
    if let Some(fd) = device.model.wake_fd() {
        let source = &mut SourceFd(&fd.as_raw_fd());
        if let Err(error) = registry.register(source, token, Interest::READABLE) {
            tracing::error!(%error, "completions of a device will not be seen");
        }
    }
}

impl From<Done<()>> for Outcome {
    fn from(done: Done<()>) -> Self {
        match done {
            Done::Yes(()) => Self::Done,
            Done::No => Self::NotDone,
        }
    }
}
