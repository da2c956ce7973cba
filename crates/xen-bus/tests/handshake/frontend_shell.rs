//! The frontend's shell: reads the store and writes its keys one by one, without a transaction.

use xen_bus::handshake::{FrontendCommand, FrontendHandshake, FrontendSeen, Outcome, XenbusState};
use xen_types::Session;

use super::world::World;
use super::{Broken, Labelled};

pub(crate) const REVOKED_HELD: &str = "frontend revokes what the backend holds";
const REVOKED_DYING: &str = "frontend revokes what a dead backend's I/O touches";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FrontendShell {
    pub(crate) handshake: FrontendHandshake,
    /// It was told to leave.
    pub(crate) leaves: bool,
    doing: Doing,
}

/// What is left of a look or of a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// The backend's session is read, its state not yet.
    Look(Option<Session>),
    All(FrontendCommand),
    /// The session is read and the ring granted; these keys are to be written.
    WritePort(Session),
    WriteSession(Session),
    WriteState(Session),
    /// Only with [`Broken::NeverAgain`]: it does nothing more.
    Resting,
}

impl FrontendShell {
    pub(crate) const fn started() -> Self {
        Self {
            handshake: FrontendHandshake::started(),
            leaves: false,
            doing: Doing::Nothing,
        }
    }

    /// The sessions it knows of.
    pub(crate) fn sessions(&self) -> [Option<Session>; 2] {
        let doing = match self.doing {
            Doing::Look(session) => session,
            Doing::All(FrontendCommand::Share { session })
            | Doing::WritePort(session)
            | Doing::WriteSession(session)
            | Doing::WriteState(session) => Some(session),
            _ => None,
        };
        [doing, self.handshake.session()]
    }
}

/// The one next step of the living frontend, if it has one.
pub(crate) fn step(world: &World, broken: Option<Broken>, forgives: bool) -> Option<Labelled> {
    let mut next = world.clone();
    let mut shell = next.frontend.take()?;
    if shell.handshake.is_over() {
        return Some(("frontend exits", next, None));
    }
    let (label, forbidden) = match std::mem::replace(&mut shell.doing, Doing::Nothing) {
        Doing::Nothing => {
            // Of a session that is not its own, it only matters that it is another.
            let own = shell.handshake.session();
            let read = world
                .store
                .session
                .filter(|read| own.is_none_or(|own| own == *read));
            shell.doing = Doing::Look(read);
            ("frontend reads the session", None)
        }
        Doing::Look(session) => (look(&mut shell, session, world, broken), None),
        Doing::All(FrontendCommand::Revoke) => {
            let forbidden = revoke(&mut next);
            let _ = shell.handshake.done(Outcome::Done);
            if broken == Some(Broken::NeverAgain) {
                shell.doing = Doing::Resting;
            }
            ("frontend revokes", forbidden)
        }
        Doing::Resting => return None,
        doing => (execute(&mut shell, doing, &mut next), None),
    };
    let second = next.granted.is_some() && world.granted.is_some() && next.granted != world.granted;
    let forbidden = forbidden.or(second.then_some("frontend grants a second ring"));
    if forgives {
        shell.handshake.online_written();
    }
    next.frontend = Some(shell);
    Some((label, next, forbidden))
}

/// Reads the rest and asks the handshake.
fn look(
    shell: &mut FrontendShell,
    session: Option<Session>,
    world: &World,
    broken: Option<Broken>,
) -> &'static str {
    let store = &world.store;
    let mut seen = FrontendSeen {
        own: store.exists.then_some(store.frontend),
        session,
        backend: store.exists.then_some(store.backend),
        online: store.online,
    };
    match broken {
        Some(Broken::AnySession) => seen.session = shell.handshake.session().or(seen.session),
        Some(Broken::RevokesAtOnce) if store.frontend == XenbusState::Closed => {
            seen.backend = Some(XenbusState::Closed);
        }
        _ => {}
    }
    match shell.handshake.next(&seen) {
        None => "frontend looks and waits",
        Some(FrontendCommand::Stop) => {
            let _ = shell.handshake.done(Outcome::Done);
            "frontend resets its devices"
        }
        Some(command) => {
            shell.doing = Doing::All(command);
            "frontend looks"
        }
    }
}

fn execute(shell: &mut FrontendShell, doing: Doing, world: &mut World) -> &'static str {
    let ring = match doing {
        Doing::All(FrontendCommand::Share { .. }) => world.unused_ring(),
        _ => world.granted_ring().unwrap_or(0),
    };
    let store = &mut world.store;
    if !store.exists {
        let _ = shell.handshake.done(match doing {
            Doing::All(_) => Outcome::NotDone,
            _ => Outcome::Failed("directory gone".into()),
        });
        return "frontend cannot write";
    }
    let label = match doing {
        Doing::All(FrontendCommand::Publish(state)) => {
            store.frontend = state;
            match state {
                XenbusState::Initialising => "frontend writes 1",
                XenbusState::Connected => "frontend writes 4",
                XenbusState::Closing => "frontend writes 5",
                _ => "frontend writes 6",
            }
        }
        Doing::All(FrontendCommand::Share { session }) => {
            if store.session != Some(session) {
                let _ = shell.handshake.done(Outcome::NotDone);
                return "frontend reads another session";
            }
            store.ring = ring;
            world.granted = Some((ring, session));
            shell.doing = Doing::WritePort(session);
            return "frontend grants a ring and writes ring-ref";
        }
        Doing::WritePort(session) => {
            store.port = ring;
            shell.doing = Doing::WriteSession(session);
            return "frontend writes event-channel";
        }
        Doing::WriteSession(session) => {
            store.echo = Some(session);
            shell.doing = Doing::WriteState(session);
            return "frontend writes session";
        }
        Doing::WriteState(_) => {
            store.frontend = XenbusState::Initialised;
            "frontend writes 3"
        }
        Doing::All(FrontendCommand::Stop | FrontendCommand::Revoke)
        | Doing::Nothing
        | Doing::Look(_)
        | Doing::Resting => unreachable!("done by the caller"),
    };
    let _ = shell.handshake.done(Outcome::Done);
    label
}

fn revoke(world: &mut World) -> Option<&'static str> {
    let ring = world.granted_ring()?;
    world.granted = None;
    if world.held.ring == ring || world.held.port == ring {
        Some(REVOKED_HELD)
    } else if world.dying == Some(ring) {
        Some(REVOKED_DYING)
    } else {
        None
    }
}
