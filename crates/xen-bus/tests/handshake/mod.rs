//! Both handshakes, their shells, and everything that can happen to them.

pub(crate) mod backend_shell;
pub(crate) mod checker;
pub(crate) mod environment;
pub(crate) mod frontend_shell;
pub(crate) mod world;

pub(crate) use environment::Environment;

/// A step: what happens, the world after it, and why it is forbidden.
pub(crate) type Labelled = (&'static str, world::World, Option<&'static str>);

/// A rule that a run leaves out, to show that the rule is needed and that the walk finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The backend in 1 does not go on to 2.
    OneStays,
    /// The backend in 4 takes a frontend in 3 for one that has left.
    ThreeIsLeft,
    /// The frontend does not notice that a state belongs to another session.
    AnySession,
    /// The frontend does not start again.
    NeverAgain,
    /// The transaction that enters 2 does not read `online`.
    OfferOffline,
    /// Session and state 2 are written one after the other.
    SessionApart,
    /// The transaction that writes another state does not read the present one.
    PublishesBlindly,
    /// The backend does not wait for the lock.
    NoLock,
    /// The backend's teardown leaves the mapping.
    KeepsMapping,
    /// The frontend revokes without having seen 1, 2, 6 or nothing.
    RevokesAtOnce,
}
