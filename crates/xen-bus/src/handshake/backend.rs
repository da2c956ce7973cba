//! The backend's side of the connection states (binding section 3).
//!
//! Backend states 2 and 6 promise that nothing of the frontend's is held. So the machine knows by
//! itself only whether it holds something and what it has begun; which state it is in, it reads.

use xen_types::Session;

use super::{Look, Outcome, Wait, XenbusState};
use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising, Unknown};

/// What the backend reads before each step, in any order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendSeen {
    /// Its own state; `None` while its directory is not there.
    pub own: Option<XenbusState>,
    /// Its own `session`.
    pub session: Option<Session>,
    /// `online` is 1.
    pub online: bool,
    /// The frontend's state; `Unknown` also for a domain that is gone.
    pub frontend: XenbusState,
    /// The frontend's `session`, its echo.
    pub echo: Option<Session>,
    /// The state file is valid for what the store says: same session, same frontend-uuid.
    /// Looked at only after the lock was taken.
    pub state_file_valid: bool,
    /// A random number, another one at each look.
    pub random: u32,
}

/// One step of the backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendCommand {
    /// Take the lock of the state file (section 9): it is free when the last I/O of every former
    /// process has ended. Not done while another holds it.
    TakeLock,
    /// In one transaction: not done unless `online` is 1 and the frontend's echo is not `session`;
    /// else write `session`, the offer, and state 2.
    EnterInitWait {
        /// The new session.
        session: Session,
    },
    /// In one transaction: not done unless the own state is 2 with `session`, `online` is 1 and the
    /// frontend is in 3 with the same `session`; else read all its keys, and write state 3.
    /// After it: check the keys against the offer, map the ring, check its header, bind the port.
    Attach {
        /// The session both directories name.
        session: Session,
    },
    /// Map and bind what the state file names, and go on where it stopped (section 9).
    Reattach,
    /// In one transaction: not done unless the own state is `from`; else write `error`, if there is
    /// one, and `state`.
    Publish {
        /// The state that was read.
        from: XenbusState,
        /// The state to write: 4, 5 or 6.
        state: XenbusState,
        /// Why the instance failed.
        error: Option<String>,
    },
    /// Send REMOVE_REQUEST for each device (section 8); `drained` or the time-out follows.
    AskRemoval,
    /// Stop serving, end all I/O (as `force` for each device), withdraw every registration, unmap
    /// everything in the hypervisor, unbind, and make the state file invalid. Done when all of that
    /// has ended. Also asked for when only a part of an attachment stands.
    Teardown,
}

/// The backend of one bus instance. Made by a process that has just started to care for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendHandshake {
    phase: Phase,
    in_flight: Option<BackendCommand>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// This process has not the lock: another may hold something.
    Unlocked,
    /// Nothing is held, and nothing was done yet.
    Fresh,
    /// Nothing is held; the state in the store is of this process's making, or the toolstack's.
    Idle,
    /// Mapped and bound; 4 has yet to be written.
    Attached,
    /// Messages flow.
    Serving,
    /// Messages flow, and the driver was asked to let its devices go.
    Draining,
    /// The driver has let go, or its time is up; 5 has yet to be written.
    Drained,
    /// The instance ends, for this reason; 5 has yet to be written.
    Faulted(String),
    /// Everything held has to go.
    Stopping,
}

impl Default for BackendHandshake {
    fn default() -> Self {
        Self::started()
    }
}

impl BackendHandshake {
    /// A process starts, or a directory appears. Whatever the store says is another's work.
    #[must_use]
    pub const fn started() -> Self {
        Self {
            phase: Phase::Unlocked,
            in_flight: None,
        }
    }

    /// The next step, given what the store says now; `None`: wait for an event.
    pub fn next(&mut self, seen: &BackendSeen) -> Option<BackendCommand> {
        if self.in_flight.is_some() {
            return None;
        }
        let command = self.decide(seen)?;
        if command == BackendCommand::Teardown {
            self.phase = Phase::Stopping;
        }
        self.in_flight = Some(command.clone());
        Some(command)
    }

    /// What became of the step that `next` gave.
    pub fn done(&mut self, outcome: Outcome) -> Look {
        let Some(command) = self.in_flight.take() else {
            return Look::Later;
        };
        match (command, outcome) {
            (BackendCommand::Attach { .. } | BackendCommand::Reattach, Outcome::Failed(why)) => {
                self.phase = Phase::Faulted(why);
                Look::Again
            }
            (_, Outcome::NotDone | Outcome::Failed(_)) => Look::Later,
            (command, Outcome::Done) => {
                self.succeeded(&command);
                Look::Again
            }
        }
    }

    /// A fault of the peer or of the backend itself ends the instance (sections 4 to 6). Of no
    /// effect while nothing is served.
    pub fn fault(&mut self, why: impl Into<String>) {
        if self.serves() {
            self.phase = Phase::Faulted(why.into());
        }
    }

    /// Every device asked to go has gone.
    pub fn drained(&mut self) {
        if self.phase == Phase::Draining {
            self.phase = Phase::Drained;
        }
    }

    /// `wait` has lasted for its limit.
    pub fn timed_out(&mut self, wait: Wait) {
        if wait == Wait::Drain {
            self.drained();
        }
    }

    /// The wait that the shell has to bound, if any.
    #[must_use]
    pub fn wait(&self) -> Option<Wait> {
        (self.phase == Phase::Draining).then_some(Wait::Drain)
    }

    /// Frames of the ring are to be handled.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(
            self.phase,
            Phase::Serving | Phase::Draining | Phase::Drained
        )
    }

    /// Something of the frontend's may be mapped or bound, or about to be. While it is false the
    /// shell may forget the instance.
    #[must_use]
    pub fn holds(&self) -> bool {
        !matches!(self.phase, Phase::Unlocked | Phase::Fresh | Phase::Idle)
            || matches!(
                self.in_flight,
                Some(BackendCommand::Attach { .. } | BackendCommand::Reattach)
            )
    }

    /// The rows of section 3.
    fn decide(&self, seen: &BackendSeen) -> Option<BackendCommand> {
        let own = match (seen.own, &self.phase) {
            (_, Phase::Unlocked) => return Some(BackendCommand::TakeLock),
            (_, Phase::Stopping) => return Some(BackendCommand::Teardown),
            (None, Phase::Fresh | Phase::Idle) => return None,
            // The directory was taken away under us.
            (None, _) => return Some(BackendCommand::Teardown),
            (Some(own), _) => own,
        };
        match (&self.phase, own) {
            (Phase::Unlocked | Phase::Stopping, _) => None,
            (Phase::Fresh, _) => Self::decide_fresh(own, seen),
            (Phase::Idle, _) => Self::decide_idle(own, seen),
            (Phase::Attached, Initialised) => publish(own, Connected),
            (Phase::Serving, Connected) => match (seen.online, seen.frontend) {
                (true, Initialised | Connected) => None,
                (true, _) => Some(BackendCommand::Teardown),
                (false, Connected) => Some(BackendCommand::AskRemoval),
                (false, _) => publish(own, Closing),
            },
            (Phase::Draining, Connected) if seen.frontend == Connected => None,
            (Phase::Draining | Phase::Drained, Connected) => publish(own, Closing),
            (Phase::Faulted(why), InitWait | Initialised | Connected) => {
                publish_error(own, why.clone())
            }
            // The state is not the one this process wrote: the directory was made anew.
            _ => Some(BackendCommand::Teardown),
        }
    }

    /// The rows of a process that has just taken the lock.
    fn decide_fresh(own: XenbusState, seen: &BackendSeen) -> Option<BackendCommand> {
        match own {
            Connected if seen.state_file_valid && seen.online => Some(BackendCommand::Reattach),
            Initialised | Connected => publish_error(
                own,
                "the backend was restarted and could not resume the session".into(),
            ),
            InitWait if seen.online => Some(enter_init_wait(seen)),
            _ => Self::decide_idle(own, seen),
        }
    }

    /// The rows of a backend that holds nothing.
    fn decide_idle(own: XenbusState, seen: &BackendSeen) -> Option<BackendCommand> {
        match (own, seen.frontend) {
            (Closing, _) => publish(own, Closed),
            (Closed, Initialising) if seen.online => Some(enter_init_wait(seen)),
            (Closed, _) => None,
            _ if !seen.online => publish(own, Closing),
            (Initialising, _) => Some(enter_init_wait(seen)),
            (InitWait, Initialised) => match (seen.session, seen.echo) {
                (Some(session), Some(echo)) if session == echo => {
                    Some(BackendCommand::Attach { session })
                }
                _ => None,
            },
            (InitWait, _) => None,
            // Everything was just torn down.
            (Connected, Initialising) => Some(enter_init_wait(seen)),
            (Connected, _) => publish(own, Closed),
            // 3 belongs to a step of this process that has come to its end by now.
            (Initialised, _) => publish(own, Closing),
            // The toolstack makes directories with state 1.
            (Unknown, _) => None,
        }
    }

    /// `command` was done.
    fn succeeded(&mut self, command: &BackendCommand) {
        self.phase = match (command, &self.phase) {
            (BackendCommand::TakeLock, _) => Phase::Fresh,
            (BackendCommand::EnterInitWait { .. } | BackendCommand::Teardown, _) => Phase::Idle,
            (BackendCommand::Attach { .. }, _) => Phase::Attached,
            (BackendCommand::Reattach, _) => Phase::Serving,
            (BackendCommand::AskRemoval, Phase::Serving) => Phase::Draining,
            (BackendCommand::Publish { state, .. }, Phase::Attached) if *state == Connected => {
                Phase::Serving
            }
            (BackendCommand::Publish { .. }, Phase::Fresh | Phase::Idle) => Phase::Idle,
            (BackendCommand::Publish { .. }, _) => Phase::Stopping,
            // A fault came while the driver was being asked.
            (BackendCommand::AskRemoval, phase) => phase.clone(),
        };
    }
}

fn publish(from: XenbusState, state: XenbusState) -> Option<BackendCommand> {
    Some(BackendCommand::Publish {
        from,
        state,
        error: None,
    })
}

fn publish_error(from: XenbusState, why: String) -> Option<BackendCommand> {
    Some(BackendCommand::Publish {
        from,
        state: Closing,
        error: Some(why),
    })
}

/// A session unlike the frontend's present echo, which may be a leftover that stands in 3, and
/// unlike the own present one, which a frontend may have read without having written its echo yet.
fn enter_init_wait(seen: &BackendSeen) -> BackendCommand {
    let mut session = Session(seen.random);
    while Some(session) == seen.echo || Some(session) == seen.session {
        session.0 = session.0.wrapping_add(1);
    }
    BackendCommand::EnterInitWait { session }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(own: XenbusState, frontend: XenbusState) -> BackendSeen {
        BackendSeen {
            own: Some(own),
            session: Some(Session(1)),
            online: true,
            frontend,
            echo: Some(Session(1)),
            state_file_valid: false,
            random: 1,
        }
    }

    fn step(backend: &mut BackendHandshake, seen: &BackendSeen) -> BackendCommand {
        let command = backend.next(seen).unwrap();
        assert_eq!(backend.done(Outcome::Done), Look::Again);
        command
    }

    fn serving() -> BackendHandshake {
        let mut backend = BackendHandshake::started();
        step(&mut backend, &seen(Initialising, Unknown));
        step(&mut backend, &seen(Initialising, Unknown));
        step(&mut backend, &seen(InitWait, Initialised));
        step(&mut backend, &seen(Initialised, Initialised));
        assert!(backend.serves());
        backend
    }

    #[test]
    fn a_new_session_is_unlike_echo_and_predecessor() {
        let mut backend = BackendHandshake::started();
        let seen = BackendSeen {
            session: Some(Session(0)),
            echo: Some(Session(u32::MAX)),
            random: u32::MAX,
            ..seen(Initialising, Unknown)
        };
        step(&mut backend, &seen);
        let session = Session(1);
        let expected = BackendCommand::EnterInitWait { session };
        assert_eq!(backend.next(&seen), Some(expected));
    }

    #[test]
    fn what_came_to_nothing_is_tried_again_later() {
        let mut backend = BackendHandshake::started();
        for outcome in [
            Outcome::NotDone,
            Outcome::Failed("no such directory".into()),
        ] {
            let command = backend.next(&seen(Connected, Connected));
            assert_eq!(command, Some(BackendCommand::TakeLock));
            assert_eq!(backend.done(outcome), Look::Later);
        }
    }

    #[test]
    fn nothing_is_asked_for_while_a_step_is_under_way() {
        let mut backend = serving();
        assert_eq!(
            backend.next(&seen(Connected, Closed)),
            Some(BackendCommand::Teardown)
        );
        assert!(!backend.serves() && backend.holds());
        assert_eq!(backend.next(&seen(Connected, Connected)), None);
        assert_eq!(backend.done(Outcome::Done), Look::Again);
        assert!(!backend.holds());
    }

    #[test]
    fn a_teardown_that_fails_is_not_forgotten() {
        let mut backend = serving();
        backend.next(&seen(Connected, Closed)).unwrap();
        assert_eq!(backend.done(Outcome::Failed("EINVAL".into())), Look::Later);
        assert!(backend.holds());
        let next = backend.next(&seen(Connected, Connected));
        assert_eq!(next, Some(BackendCommand::Teardown));
    }

    #[test]
    fn a_fault_while_the_driver_is_being_asked_ends_the_instance() {
        let mut backend = serving();
        let offline = BackendSeen {
            online: false,
            ..seen(Connected, Connected)
        };
        let asks = backend.next(&offline);
        assert_eq!(asks, Some(BackendCommand::AskRemoval));
        backend.fault("index 9 of 4");
        assert_eq!(backend.done(Outcome::Done), Look::Again);
        let command = backend.next(&offline);
        assert_eq!(command, publish_error(Connected, "index 9 of 4".into()));
    }

    #[test]
    fn the_driver_is_asked_for_a_bounded_time() {
        let mut backend = serving();
        let offline = BackendSeen {
            online: false,
            ..seen(Connected, Connected)
        };
        assert_eq!(step(&mut backend, &offline), BackendCommand::AskRemoval);
        assert_eq!(backend.next(&offline), None);
        let wait = backend.wait().unwrap();
        assert_eq!(wait.limit().as_secs(), 30);
        backend.timed_out(wait);
        assert_eq!(backend.wait(), None);
        assert_eq!(backend.next(&offline), publish(Connected, Closing));
    }

    #[test]
    fn a_directory_made_anew_is_served_after_the_old_ring_is_gone() {
        let mut backend = serving();
        let anew = seen(Initialising, Initialising);
        assert_eq!(step(&mut backend, &anew), BackendCommand::Teardown);
        let next = backend.next(&anew);
        assert!(matches!(next, Some(BackendCommand::EnterInitWait { .. })));
    }
}
