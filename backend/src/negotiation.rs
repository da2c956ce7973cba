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

/// Reads what the next step depends on.
///
/// # Errors
/// The connection to XenStore failed.
pub(crate) fn look(
    store: &mut Client,
    paths: &Paths,
    frontend_alive: bool,
    random: u32,
) -> Result<BackendSeen, StoreError> {
    let own = read(store, &paths.own("state"))?.map(|text| XenbusState::parse(&text));
    let mut seen = BackendSeen {
        own,
        session: None,
        online: false,
        frontend: XenbusState::Unknown,
        echo: None,
        state_file_valid: false,
        random,
    };
    if own.is_some() {
        seen.session = read_session(store, &paths.own("session"))?;
        seen.online = is_online(store, paths)?;
    }
    if frontend_alive {
        seen.frontend = read_state(store, &paths.peer("state"))?;
        seen.echo = read_session(store, &paths.peer("session"))?;
    }
    Ok(seen)
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
            || read_session(tx, &paths.own("session"))? != Some(session)
            || !is_online(tx, paths)?
            || read_state(tx, &paths.peer("state"))? != XenbusState::Initialised
            || read_session(tx, &paths.peer("session"))? != Some(session)
        {
            return Ok(Done::No);
        }
        let mut keys = Keys::new();
        let mut take = |tx: &mut Transaction<'_>, key: &str| -> Result<Option<u32>, StoreError> {
            let Some(value) = read(tx, &paths.peer(key))? else {
                return Ok(None);
            };
            let number = parse_decimal(&value);
            keys.insert(key.to_owned(), value);
            Ok(number)
        };
        for key in FrontendKeys::KEYS {
            take(tx, key)?;
        }
        // The parser reports an order that is out of bounds.
        let order = take(tx, "ring-page-order")?.filter(|order| *order <= MAX_RING_PAGE_ORDER);
        for page in 0..order.map_or(0, |order| 1 << order) {
            take(tx, &ring_ref_key(page))?;
        }
        tx.write(
            &paths.own("state"),
            XenbusState::Initialised.number().to_string(),
        )?;
        Ok(Done::Yes(keys))
    })
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
