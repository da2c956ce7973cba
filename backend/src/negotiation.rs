//! What the connection states read from XenStore and write into it (binding sections 2 and 3).
//!
//! Which step is due is decided by [`xen_bus::handshake`]; here it is executed. Everything in the
//! frontend's directory is hostile, and is read once, in the transaction that the table names.

use std::collections::BTreeMap;

use xen_bus::handshake::{BackendSeen, XenbusState};
use xen_bus::keys::{BackendOffer, FrontendKeys, ring_ref_key};
use xen_bus::layout::MAX_RING_PAGE_ORDER;
use xen_types::{Session, parse_decimal};
use xenstore::{Client, StoreError, Transaction, Tree};

use crate::instance::Paths;

/// What became of a transaction.
#[derive(Debug)]
pub(crate) enum Done<T> {
    /// It was committed.
    Yes(T),
    /// A condition did not hold, the store refused, or others were in the way: nothing was written.
    No,
}

/// What stands in the frontend's directory, as text of the guest's.
pub(crate) type Keys = BTreeMap<String, Vec<u8>>;

/// What both directories say, as far as the next step depends on it: read once, and again when a
/// watch has told of a change. A change that comes after a reading is told after it, so what is
/// known here is never older than the watches that were taken. Every step checks in its transaction
/// what it must not be wrong about.
#[derive(Debug, Default)]
pub(crate) struct View {
    own: Option<Own>,
    peer: Option<Peer>,
    /// A step was refused by its transaction since the frontend has written its state.
    refused: bool,
}

/// The backend's directory, which is there.
#[derive(Clone, Copy, Debug)]
struct Own {
    state: XenbusState,
    session: Option<Session>,
    online: bool,
}

/// The frontend's directory.
#[derive(Clone, Copy, Debug)]
struct Peer {
    state: XenbusState,
    /// Taken for the session that was offered, as the transaction looks; read if that was refused.
    echo: Option<Option<Session>>,
}

impl View {
    /// Something may have changed that no watch tells of, or the toolstack has written.
    pub(crate) fn forget(&mut self) {
        self.own = None;
        self.peer = None;
    }

    /// The frontend has written its state.
    pub(crate) fn forget_peer(&mut self) {
        self.peer = None;
        self.refused = false;
    }

    /// A step found something else in the store than is known here.
    pub(crate) fn step_refused(&mut self) {
        self.forget();
        self.refused = true;
    }

    /// A transaction of this backend has written its state, and, in state 2, a session.
    pub(crate) fn wrote(&mut self, state: XenbusState, offered: Option<Session>) {
        if let Some(own) = &mut self.own {
            own.state = state;
            own.session = offered.or(own.session);
        }
    }

    /// Reads what is not known.
    ///
    /// # Errors
    /// The connection to XenStore failed.
    pub(crate) fn look(
        &mut self,
        store: &mut Client,
        paths: &Paths,
        frontend_alive: bool,
        random: u32,
    ) -> Result<BackendSeen, StoreError> {
        let own = match self.own {
            None => self.read_own(store, paths)?,
            known => known,
        };
        let mut seen = BackendSeen {
            own: own.map(|own| own.state),
            session: own.and_then(|own| own.session),
            online: own.is_some_and(|own| own.online),
            frontend: XenbusState::Unknown,
            echo: None,
            state_file_valid: false,
            random,
        };
        if frontend_alive {
            let peer = match &mut self.peer {
                Some(peer) => peer,
                unknown => unknown.insert(Peer {
                    state: read_state(store, &paths.peer("state"))?,
                    echo: None,
                }),
            };
            seen.frontend = peer.state;
            // Elsewhere it matters to a new session alone, whose transaction looks at it.
            if seen.own == Some(XenbusState::InitWait) && peer.state == XenbusState::Initialised {
                let echo = match peer.echo {
                    Some(known) => known,
                    None if !self.refused => seen.session,
                    None => *peer
                        .echo
                        .insert(read_session(store, &paths.peer("session"))?),
                };
                seen.echo = echo;
            }
        }
        Ok(seen)
    }

    fn read_own(&mut self, store: &mut Client, paths: &Paths) -> Result<Option<Own>, StoreError> {
        let Some(state) = read(store, &paths.own("state"))? else {
            return Ok(None);
        };
        let state = XenbusState::parse(&state);
        let session = match state {
            // The toolstack has just made the directory.
            XenbusState::Initialising => None,
            _ => read_session(store, &paths.own("session"))?,
        };
        let online = is_online(store, paths)?;
        self.own = Some(Own {
            state,
            session,
            online,
        });
        Ok(self.own)
    }
}

/// Publishes state 2 with a new session and the offer.
///
/// # Errors
/// The connection to XenStore failed.
pub(crate) fn enter_init_wait(
    store: &mut Client,
    paths: &Paths,
    offer: &BackendOffer,
) -> Result<Done<()>, StoreError> {
    transact(store, |tx| {
        if !is_online(tx, paths)?
            || read_session(tx, &paths.peer("session"))? == Some(offer.session)
        {
            return Ok(Done::No);
        }
        for (key, value) in offer.emit() {
            tx.write(&paths.own(&key), value)?;
        }
        tx.write(
            &paths.own("state"),
            XenbusState::InitWait.number().to_string(),
        )?;
        Ok(Done::Yes(()))
    })
}

/// Reads the frontend's keys and publishes state 3. The keys are text of the guest's, not yet parsed.
///
/// # Errors
/// The connection to XenStore failed.
pub(crate) fn read_keys(
    store: &mut Client,
    paths: &Paths,
    session: Session,
) -> Result<Done<Keys>, StoreError> {
    transact(store, |tx| {
        if read_state(tx, &paths.own("state"))? != XenbusState::InitWait
            || !is_online(tx, paths)?
            || read_state(tx, &paths.peer("state"))? != XenbusState::Initialised
        {
            return Ok(Done::No);
        }
        let mut keys = Keys::new();
        take(tx, paths, "session", &mut keys)?;
        // Own state 2 is this process's, with this session.
        if number(&keys, "session").map(Session) != Some(session) {
            return Ok(Done::No);
        }
        for key in FrontendKeys::KEYS
            .into_iter()
            .filter(|key| *key != "session")
        {
            take(tx, paths, key, &mut keys)?;
        }
        // The parser reports an order that is out of bounds.
        let order = number(&keys, "ring-page-order").filter(|order| *order <= MAX_RING_PAGE_ORDER);
        for page in 0..order.map_or(0, |order| 1 << order) {
            take(tx, paths, &ring_ref_key(page), &mut keys)?;
        }
        tx.write(
            &paths.own("state"),
            XenbusState::Initialised.number().to_string(),
        )?;
        Ok(Done::Yes(keys))
    })
}

/// Reads one of the frontend's keys, if it is there.
fn take(
    tx: &mut Transaction<'_>,
    paths: &Paths,
    key: &str,
    keys: &mut Keys,
) -> Result<(), StoreError> {
    if let Some(value) = read(tx, &paths.peer(key))? {
        keys.insert(key.to_owned(), value);
    }
    Ok(())
}

fn number(keys: &Keys, key: &str) -> Option<u32> {
    keys.get(key).and_then(|value| parse_decimal(value))
}

/// Publishes a state, and why the instance failed if it did.
///
/// # Errors
/// The connection to XenStore failed.
pub(crate) fn publish(
    store: &mut Client,
    paths: &Paths,
    from: XenbusState,
    state: XenbusState,
    error: Option<&str>,
) -> Result<Done<()>, StoreError> {
    transact(store, |tx| {
        if read_state(tx, &paths.own("state"))? != from {
            return Ok(Done::No);
        }
        if let Some(error) = error {
            tx.write(&paths.own("error"), error)?;
        }
        tx.write(&paths.own("state"), state.number().to_string())?;
        Ok(Done::Yes(()))
    })
}

/// Runs a transaction; a refusal of the store counts as "not done", a broken connection does not.
pub(crate) fn transact<T>(
    store: &mut Client,
    work: impl FnMut(&mut Transaction<'_>) -> Result<Done<T>, StoreError>,
) -> Result<Done<T>, StoreError> {
    match store.transact(work) {
        Err(error) if !is_fatal(&error) => {
            tracing::debug!(%error, "transaction not done");
            Ok(Done::No)
        }
        other => other,
    }
}

/// Whether the connection to XenStore is of no more use.
pub(crate) fn is_fatal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Timeout { .. }
            | StoreError::Closed
            | StoreError::Protocol { .. }
            | StoreError::Wire(_)
            | StoreError::Connect { .. }
            | StoreError::Io(_)
    )
}

/// A node's value; `None` if it is not there for us, for whatever reason of the store's.
pub(crate) fn read(tree: &mut impl Tree, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match tree.read(path) {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_fatal(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn read_state(tree: &mut impl Tree, path: &str) -> Result<XenbusState, StoreError> {
    Ok(read(tree, path)?.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
}

fn read_session(tree: &mut impl Tree, path: &str) -> Result<Option<Session>, StoreError> {
    Ok(read(tree, path)?
        .and_then(|text| parse_decimal(&text))
        .map(Session))
}

fn is_online(tree: &mut impl Tree, paths: &Paths) -> Result<bool, StoreError> {
    Ok(read(tree, &paths.own("online"))?.as_deref() == Some(b"1"))
}
