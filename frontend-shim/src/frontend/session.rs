//! The connection states: what is read goes into the handshake, its commands are executed
//! (binding section 3).

use std::collections::BTreeMap;

use xen_bus::handshake::{
    FrontendCommand, FrontendSeen, Look, Outcome, RETRY_DELAY, STEPS_PER_TURN, XenbusState,
};
use xen_bus::keys::BackendOffer;
use xen_types::{Session, parse_decimal};
use xenstore::{StoreError, Tree as _};

use super::Frontend;
use crate::error::FrontendError;
use crate::link::{Host, Link, revoke_all};

impl Frontend {
    /// Takes the steps that are due, and looks again after each.
    pub(super) fn negotiate(&mut self) -> Result<(), FrontendError> {
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
                self.retry_at = self.now().checked_add(RETRY_DELAY);
                return Ok(());
            }
            if self.handshake.session().is_some() {
                // From here all depends on the backend's state and session, as they were seen. Its
                // next session comes with a state, so the watch tells of both.
                return Ok(());
            }
        }
        self.look = true;
        Ok(())
    }

    fn arm_wait(&mut self) {
        let wait = self.handshake.wait();
        if wait != self.wait.map(|(wait, _)| wait) {
            self.wait = wait.and_then(|wait| Some((wait, self.now().checked_add(wait.limit())?)));
        }
    }

    /// The session is read before the state, so that the state is never the older of the two. The own
    /// state is read while it matters, which it does not in a session; `online` when it was written.
    fn look_at_store(&mut self) -> Result<FrontendSeen, StoreError> {
        let own = match self.handshake.session() {
            None => self.store.read_opt(&self.instance.own("state"))?,
            Some(_) => None,
        };
        let session = self.store.read_opt(&self.instance.peer("session"))?;
        let backend = self.store.read_opt(&self.instance.peer("state"))?;
        let online = match self.online {
            Some(online) => online,
            None => {
                self.store
                    .read_opt(&self.instance.peer("online"))?
                    .as_deref()
                    == Some(b"1")
            }
        };
        self.online = Some(online);
        Ok(FrontendSeen {
            own: own.map(|text| XenbusState::parse(&text)),
            session: session.and_then(|text| parse_decimal(&text)).map(Session),
            backend: backend.map(|text| XenbusState::parse(&text)),
            online,
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
        // What is not wanted counts as not offered.
        let wanted = |key: &&str| match *key {
            "transport-features" => false,
            "feature-grant-addresses" => self.options.grant_addresses,
            _ => true,
        };
        for key in BackendOffer::KEYS.into_iter().filter(wanted) {
            if let Some(value) = self.store.read_opt(&self.instance.peer(key))? {
                offered.insert(key.to_owned(), value);
            }
        }
        let offer = BackendOffer::parse(&offered)?;
        if offer.session != session {
            return Ok(false);
        }
        self.connections += 1;
        let host = Host {
            platform: &self.platform,
            channels: &self.channels,
            clock: &self.clock,
        };
        let (link, keys) = Link::create(
            host,
            &self.instance,
            &offer,
            self.options,
            self.limits.answer,
            self.connections,
        )?;
        self.link = Some(link);
        for (key, value) in keys.emit() {
            self.store.write(&self.instance.own(&key), value)?;
        }
        let state = XenbusState::Initialised.number().to_string();
        self.store.write(&self.instance.own("state"), state)?;
        Ok(true)
    }
}
