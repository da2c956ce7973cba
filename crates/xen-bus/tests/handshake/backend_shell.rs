//! The backend's shell: executes what the handshake asks for, in the steps that a kill can divide.

use xen_bus::handshake::{BackendCommand, BackendHandshake, Outcome, XenbusState};
use xen_types::Session;

use super::world::{Held, World};
use super::{Broken, Labelled};

pub(crate) const REMADE: &str = "backend writes where the toolstack has deleted the directory";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BackendShell {
    pub(crate) handshake: BackendHandshake,
    doing: Option<Doing>,
}

/// What is left of a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Doing {
    All(BackendCommand),
    /// State 3 is written; the keys that were read are to be mapped.
    Map(Held),
    /// The ring is mapped; its header is to be checked, the port to be bound.
    Bind(Held),
    /// Only with [`Broken::SessionApart`]: the session is written, the state not yet.
    OfferState,
}

impl BackendShell {
    pub(crate) const fn started() -> Self {
        Self {
            handshake: BackendHandshake::started(),
            doing: None,
        }
    }

    /// The session that a step under way is about.
    pub(crate) fn session(&self) -> Option<Session> {
        match self.doing.as_ref()? {
            Doing::All(
                BackendCommand::Attach { session } | BackendCommand::EnterInitWait { session },
            ) => Some(*session),
            Doing::Map(keys) | Doing::Bind(keys) => Some(keys.session),
            Doing::All(_) | Doing::OfferState => None,
        }
    }

    /// What a step under way is to map and bind.
    pub(crate) fn keys(&self) -> Option<Held> {
        match self.doing {
            Some(Doing::Map(keys) | Doing::Bind(keys)) => Some(keys),
            _ => None,
        }
    }

    pub(crate) fn keys_mut(&mut self) -> Option<&mut Held> {
        match &mut self.doing {
            Some(Doing::Map(keys) | Doing::Bind(keys)) => Some(keys),
            _ => None,
        }
    }
}

/// The one next step of the living backend, if it has one.
pub(crate) fn step(world: &World, broken: Option<Broken>) -> Option<Labelled> {
    let mut next = world.clone();
    let mut shell = next.backend.take()?;
    let maps = matches!(shell.doing, Some(Doing::Map(_)));
    let label = match shell.doing.take() {
        None => look(&mut shell, world, broken)?,
        Some(doing) => execute(&mut shell, doing, &mut next, broken),
    };
    next.backend = Some(shell);
    let forbidden = if next.store != world.store && !world.store.exists {
        Some(REMADE)
    } else {
        (maps && world.held != Held::NOTHING).then_some("backend maps a second ring")
    };
    Some((label, next, forbidden))
}

/// Reads the store and asks the handshake. What touches nobody else is done at once.
fn look(shell: &mut BackendShell, world: &World, broken: Option<Broken>) -> Option<&'static str> {
    let mut seen = world.backend_seen();
    if broken == Some(Broken::ThreeIsLeft)
        && seen.own == Some(XenbusState::Connected)
        && seen.frontend == XenbusState::Initialised
    {
        seen.frontend = XenbusState::Initialising;
    }
    if broken == Some(Broken::OneStays)
        && shell.handshake != BackendHandshake::started()
        && seen.own == Some(XenbusState::Initialising)
    {
        return None;
    }
    match shell.handshake.next(&seen)? {
        BackendCommand::TakeLock => {
            if world.dying.is_some() && broken != Some(Broken::NoLock) {
                return None;
            }
            let _ = shell.handshake.done(Outcome::Done);
            Some("backend takes the lock")
        }
        BackendCommand::AskRemoval => {
            let _ = shell.handshake.done(Outcome::Done);
            Some("backend asks the driver to let go")
        }
        command => {
            shell.doing = Some(Doing::All(command));
            Some("backend looks")
        }
    }
}

fn execute(
    shell: &mut BackendShell,
    doing: Doing,
    world: &mut World,
    broken: Option<Broken>,
) -> &'static str {
    let mut outcome = Outcome::Done;
    let store = &mut world.store;
    let label = match doing {
        Doing::All(BackendCommand::EnterInitWait { session }) => {
            let online = store.online || broken == Some(Broken::OfferOffline);
            let allowed = online && store.echo != Some(session);
            if !allowed {
                outcome = Outcome::NotDone;
                "backend does not enter 2"
            } else if broken == Some(Broken::SessionApart) {
                store.session = Some(session);
                shell.doing = Some(Doing::OfferState);
                return "backend writes a new session";
            } else {
                store.session = Some(session);
                store.backend = XenbusState::InitWait;
                "backend enters 2 with a new session"
            }
        }
        Doing::OfferState => {
            store.backend = XenbusState::InitWait;
            "backend writes 2"
        }
        Doing::All(BackendCommand::Attach { session }) => {
            let allowed = store.exists
                && store.online
                && store.backend == XenbusState::InitWait
                && store.session == Some(session)
                && store.frontend == XenbusState::Initialised
                && store.echo == Some(session);
            if allowed {
                store.backend = XenbusState::Initialised;
                shell.doing = Some(Doing::Map(Held {
                    ring: store.ring,
                    port: store.port,
                    session,
                }));
                return "backend reads the keys and writes 3";
            }
            outcome = Outcome::NotDone;
            "backend does not read the keys"
        }
        Doing::Map(keys) => {
            if world.granted_ring() == Some(keys.ring) {
                world.held = Held { port: 0, ..keys };
                shell.doing = Some(Doing::Bind(keys));
                return "backend maps the ring";
            }
            outcome = Outcome::Failed("ring not granted".into());
            "backend cannot map the ring"
        }
        Doing::Bind(keys) => {
            if world.granted == Some((keys.port, keys.session)) {
                world.held.port = keys.port;
                "backend checks the header and binds the port"
            } else {
                outcome = Outcome::Failed("port or header wrong".into());
                "backend refuses header or port"
            }
        }
        Doing::All(BackendCommand::Reattach) => {
            let file = world.file.unwrap_or_default();
            if world.granted_ring() == Some(file.ring) {
                world.held = file;
                "backend attaches again"
            } else {
                outcome = Outcome::Failed("ring not granted".into());
                "backend cannot attach again"
            }
        }
        Doing::All(BackendCommand::Publish { from, state, .. }) => {
            let allowed = store.exists && store.backend == from;
            if !allowed && broken != Some(Broken::PublishesBlindly) {
                outcome = Outcome::NotDone;
                "backend does not write its state"
            } else {
                store.backend = state;
                match state {
                    XenbusState::Connected => {
                        world.file = Some(world.held);
                        "backend writes 4"
                    }
                    XenbusState::Closing => "backend writes 5",
                    _ => "backend writes 6",
                }
            }
        }
        Doing::All(BackendCommand::Teardown) => {
            if broken != Some(Broken::KeepsMapping) {
                world.held = Held::NOTHING;
            }
            world.file = None;
            "backend unmaps and unbinds"
        }
        Doing::All(BackendCommand::TakeLock | BackendCommand::AskRemoval) => {
            unreachable!("done while looking")
        }
    };
    let _ = shell.handshake.done(outcome);
    label
}
