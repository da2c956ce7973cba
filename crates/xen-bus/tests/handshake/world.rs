//! The world that both handshakes live in: what XenStore says, what the hypervisor knows, and the
//! two processes. Rings and ports are numbered, and a number is used again when nothing names it.

use xen_bus::handshake::{BackendSeen, XenbusState};
use xen_types::Session;

use super::backend_shell::BackendShell;
use super::frontend_shell::FrontendShell;

/// A ring of one life of the frontend; its event channel bears the same number. 0 is none.
pub(crate) type Ring = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) store: Store,
    /// What the living frontend grants, and the session in that ring's header.
    pub(crate) granted: Option<(Ring, Session)>,
    /// What the living backend has mapped and bound.
    pub(crate) held: Held,
    /// What the backend's state file names.
    pub(crate) file: Option<Held>,
    /// The ring that the I/O of a dead backend still touches.
    pub(crate) dying: Option<Ring>,
    /// The guest has died.
    pub(crate) gone: bool,
    pub(crate) backend: Option<BackendShell>,
    pub(crate) frontend: Option<FrontendShell>,
}

/// Both directories of the instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    /// The directories are there.
    pub(crate) exists: bool,
    pub(crate) online: bool,
    pub(crate) backend: XenbusState,
    pub(crate) session: Option<Session>,
    pub(crate) frontend: XenbusState,
    pub(crate) echo: Option<Session>,
    pub(crate) ring: Ring,
    pub(crate) port: Ring,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(crate) ring: Ring,
    pub(crate) port: Ring,
    pub(crate) session: Session,
}

impl Held {
    pub(crate) const NOTHING: Self = Self {
        ring: 0,
        port: 0,
        session: Session(0),
    };
}

impl Store {
    /// As the toolstack makes the two directories.
    pub(crate) const FRESH: Self = Self {
        exists: true,
        online: true,
        backend: XenbusState::Initialising,
        session: None,
        frontend: XenbusState::Initialising,
        echo: None,
        ring: 0,
        port: 0,
    };

    /// As nobody sees them any more.
    pub(crate) const ABSENT: Self = Self {
        exists: false,
        online: false,
        backend: XenbusState::Unknown,
        frontend: XenbusState::Unknown,
        ..Self::FRESH
    };
}

impl World {
    /// Fresh directories and two processes that have just started.
    pub(crate) fn fresh() -> Self {
        Self {
            store: Store::FRESH,
            granted: None,
            held: Held::NOTHING,
            file: None,
            dying: None,
            gone: false,
            backend: Some(BackendShell::started()),
            frontend: Some(FrontendShell::started()),
        }
    }

    /// Forgets what makes no difference, so that worlds that behave alike are one: a state file
    /// that can be valid no more, and the numbers of the rings, which are given anew in the order
    /// of the fields.
    pub(crate) fn reduce(&mut self) {
        let valid = |file: &Held| {
            self.store.backend == XenbusState::Connected && self.store.session == Some(file.session)
        };
        self.file = self.file.filter(valid);
        let mut names = vec![0];
        let mut rename = |ring: &mut Ring| {
            let known = names.iter().position(|name| name == ring);
            let place = known.unwrap_or_else(|| {
                names.push(*ring);
                names.len() - 1
            });
            *ring = Ring::try_from(place).unwrap();
        };
        rename(&mut self.store.ring);
        rename(&mut self.store.port);
        self.granted.iter_mut().for_each(|(ring, _)| rename(ring));
        self.dying.iter_mut().for_each(&mut rename);
        let keys = self.backend.as_mut().and_then(BackendShell::keys_mut);
        for held in self.file.iter_mut().chain(keys).chain([&mut self.held]) {
            rename(&mut held.ring);
            rename(&mut held.port);
        }
    }

    pub(crate) fn backend_seen(&self) -> BackendSeen {
        let store = &self.store;
        BackendSeen {
            own: store.exists.then_some(store.backend),
            session: store.session,
            online: store.online,
            frontend: store.frontend,
            echo: store.echo,
            state_file_valid: self
                .file
                .is_some_and(|file| Some(file.session) == store.session),
            random: self.unused_session().0,
        }
    }

    /// A session that nothing names.
    fn unused_session(&self) -> Session {
        let [read, shared] = self
            .frontend
            .as_ref()
            .map_or([None; 2], FrontendShell::sessions);
        let named = [
            self.store.session,
            self.store.echo,
            self.granted.map(|(_, session)| session),
            Some(self.held.session),
            self.file.map(|file| file.session),
            self.backend.as_ref().and_then(BackendShell::session),
            read,
            shared,
        ];
        (1..)
            .map(Session)
            .find(|session| !named.contains(&Some(*session)))
            .unwrap()
    }

    /// A ring that nothing names.
    pub(crate) fn unused_ring(&self) -> Ring {
        let keys = self
            .backend
            .as_ref()
            .and_then(BackendShell::keys)
            .unwrap_or_default();
        let named = [
            self.store.ring,
            self.store.port,
            self.held.ring,
            self.held.port,
            self.granted.map_or(0, |(ring, _)| ring),
            self.file.map_or(0, |file| file.ring),
            self.dying.unwrap_or(0),
            keys.ring,
            keys.port,
        ];
        (1..).find(|ring| !named.contains(ring)).unwrap()
    }

    pub(crate) fn granted_ring(&self) -> Option<Ring> {
        self.granted.map(|(ring, _)| ring)
    }

    /// Both sides serve one another.
    pub(crate) fn connected(&self) -> bool {
        self.store.backend == XenbusState::Connected
            && self.store.frontend == XenbusState::Connected
            && self.store.online
            && self.backend.as_ref().is_some_and(|b| b.handshake.serves())
            && self
                .frontend
                .as_ref()
                .is_some_and(|f| f.handshake.is_connected())
            && self.same_connection()
    }

    /// Session, ring and port of both sides are the same.
    pub(crate) fn same_connection(&self) -> bool {
        let session = self.frontend.as_ref().and_then(|f| f.handshake.session());
        session == Some(self.held.session)
            && self.granted_ring() == Some(self.held.ring)
            && self.granted_ring() == Some(self.held.port)
    }
}
