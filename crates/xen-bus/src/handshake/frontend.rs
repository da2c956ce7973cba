//! The frontend's side of the connection states (binding section 3).
//!
//! Not here: a frontend that takes over a living connection. Every process starts with state 1.

use xen_types::Session;

use super::{Look, Outcome, Wait, XenbusState};
use XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

/// After so many faults in a row the frontend starts again only when `online` is written.
pub const MAX_FAULTS: u8 = 3;

/// What the frontend reads before each step. `session` is read before `backend`: a state then is
/// never older than the session that it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrontendSeen {
    /// Its own state; `None` while its directory is not there.
    pub own: Option<XenbusState>,
    /// The backend's `session`.
    pub session: Option<Session>,
    /// The backend's state; `None` while the node is not there (a guest is told ENOENT or EACCES).
    pub backend: Option<XenbusState>,
    /// `online` in the backend's directory is 1.
    pub online: bool,
}

/// One step of the frontend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FrontendCommand {
    /// Write the own state. Not done if the node cannot be written.
    Publish(XenbusState),
    /// Read the backend's session again: not done unless it still is `session`. Then read the offer,
    /// allocate ring and port, write the ring's header, write the keys and `session`, write state 3
    /// last. No transaction is needed.
    Share {
        /// The session to echo.
        session: Session,
    },
    /// Fail what is outstanding and reset the devices locally.
    Stop,
    /// Revoke every grant and close the port. Done also if a reference could not be revoked: it is
    /// put into quarantine and tried again.
    Revoke,
}

/// The frontend of one bus instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrontendHandshake {
    phase: Phase,
    faults: u8,
    leaves: bool,
    in_flight: Option<FrontendCommand>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Nothing is granted; writes 1 and looks for 2.
    Starting,
    /// Keys are written, for this session.
    Connecting(Session),
    /// Messages flow, in this session.
    Connected(Session),
    /// The session is over; the devices do not know yet.
    Ending,
    /// The devices are reset; writes 5 and 6, and revokes when the backend holds nothing.
    Leaving,
    /// Nothing is granted; starts again while it may.
    Over,
}

impl Default for FrontendHandshake {
    fn default() -> Self {
        Self::started()
    }
}

impl FrontendHandshake {
    /// A process starts. Whatever the own directory says is another's work.
    #[must_use]
    pub const fn started() -> Self {
        Self {
            phase: Phase::Starting,
            faults: 0,
            leaves: false,
            in_flight: None,
        }
    }

    /// The next step, given what the store says now; `None`: wait for an event.
    pub fn next(&mut self, seen: &FrontendSeen) -> Option<FrontendCommand> {
        if self.in_flight.is_some() {
            return None;
        }
        let command = self.decide(seen)?;
        if command == FrontendCommand::Stop {
            // A session that ends because `online` is 0, or absent, is nobody's fault.
            self.end(seen.online);
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
            (FrontendCommand::Share { .. }, Outcome::Failed(_)) => {
                self.end(true);
                Look::Again
            }
            (_, Outcome::NotDone | Outcome::Failed(_)) => Look::Later,
            (command, Outcome::Done) => {
                self.succeeded(&command);
                Look::Again
            }
        }
    }

    /// A fault of the peer or of the frontend itself ends the session (sections 4 to 6). Of no
    /// effect while there is none.
    pub fn fault(&mut self) {
        if self.session().is_some() {
            self.end(true);
        }
    }

    /// `online` was written, with any value: faults are forgotten.
    pub fn online_written(&mut self) {
        self.faults = 0;
    }

    /// Ends the session in order, and never starts again; [`Self::is_over`] when that is done.
    pub fn leave(&mut self) {
        self.leaves = true;
        match self.phase {
            Phase::Connecting(_) | Phase::Connected(_) => self.end(false),
            Phase::Starting => self.phase = Phase::Leaving,
            // A step of starting again is under way, and will have to be undone.
            Phase::Over if self.in_flight.is_some() => self.phase = Phase::Leaving,
            Phase::Over | Phase::Ending | Phase::Leaving => {}
        }
    }

    /// `wait` has lasted for its limit. Without an answer after [`Wait::Connect`] the session ends.
    /// After [`Wait::Offer`] nothing changes: nothing is granted and state 1 may stand, so that a
    /// backend that starts late is found; a caller without so much patience leaves.
    pub fn timed_out(&mut self, wait: Wait) {
        match (wait, &self.phase) {
            (Wait::Connect, Phase::Connecting(_)) => self.end(true),
            (Wait::Settle, Phase::Connected(_)) => self.faults = 0,
            _ => {}
        }
    }

    /// The wait that the shell has to bound, if any.
    #[must_use]
    pub const fn wait(&self) -> Option<Wait> {
        match self.phase {
            Phase::Starting => Some(Wait::Offer),
            Phase::Connecting(_) => Some(Wait::Connect),
            Phase::Connected(_) if self.faults > 0 => Some(Wait::Settle),
            _ => None,
        }
    }

    /// The session that connects or is connected.
    #[must_use]
    pub const fn session(&self) -> Option<Session> {
        match self.phase {
            Phase::Connecting(session) | Phase::Connected(session) => Some(session),
            _ => None,
        }
    }

    /// Messages flow.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Connected(_))
    }

    /// So many faults in a row that it starts again only when `online` is written.
    #[must_use]
    pub const fn is_stuck(&self) -> bool {
        self.faults >= MAX_FAULTS
    }

    /// It has left, and nothing is granted: the shell may forget the instance.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.leaves && matches!(self.phase, Phase::Over)
    }

    /// The rows of section 3.
    fn decide(&self, seen: &FrontendSeen) -> Option<FrontendCommand> {
        match self.phase {
            Phase::Starting => Self::decide_starting(seen),
            Phase::Connecting(session) => match seen.backend {
                Some(InitWait | Initialised) if seen.session == Some(session) => None,
                Some(Connected) if seen.session == Some(session) => {
                    Some(FrontendCommand::Publish(Connected))
                }
                _ => Some(FrontendCommand::Stop),
            },
            Phase::Connected(session) => match seen.backend {
                Some(Connected) if seen.session == Some(session) => None,
                _ => Some(FrontendCommand::Stop),
            },
            Phase::Ending => Some(FrontendCommand::Stop),
            Phase::Leaving => match (seen.own, seen.backend) {
                (None | Some(Closed), None | Some(Initialising | InitWait | Closed)) => {
                    Some(FrontendCommand::Revoke)
                }
                (None | Some(Closed), _) => None,
                (Some(Closing), _) => Some(FrontendCommand::Publish(Closed)),
                (Some(_), _) => Some(FrontendCommand::Publish(Closing)),
            },
            Phase::Over if seen.online && !self.leaves && !self.is_stuck() => {
                Self::decide_starting(seen)
            }
            Phase::Over => None,
        }
    }

    /// The rows "starting".
    fn decide_starting(seen: &FrontendSeen) -> Option<FrontendCommand> {
        match (seen.own?, seen.backend, seen.session) {
            (Initialising, Some(InitWait), Some(session)) => {
                Some(FrontendCommand::Share { session })
            }
            (Initialising, _, _) => None,
            _ => Some(FrontendCommand::Publish(Initialising)),
        }
    }

    /// The session ends.
    fn end(&mut self, fault: bool) {
        if self.phase != Phase::Ending {
            self.phase = Phase::Ending;
            if fault {
                self.faults = self.faults.saturating_add(1);
            }
        }
    }

    /// `command` was done.
    fn succeeded(&mut self, command: &FrontendCommand) {
        self.phase = match (command, &self.phase) {
            (FrontendCommand::Publish(Initialising), Phase::Over) if !self.leaves => {
                Phase::Starting
            }
            (FrontendCommand::Publish(Connected), Phase::Connecting(session)) => {
                Phase::Connected(*session)
            }
            // It was told to leave while it was granting: no device has been set up.
            (FrontendCommand::Share { .. }, Phase::Leaving) => Phase::Leaving,
            (FrontendCommand::Share { session }, _) => Phase::Connecting(*session),
            (FrontendCommand::Stop, _) => Phase::Leaving,
            (FrontendCommand::Revoke, _) => Phase::Over,
            // An end came while the state was being written.
            (FrontendCommand::Publish(_), phase) => phase.clone(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(own: XenbusState, backend: XenbusState) -> FrontendSeen {
        FrontendSeen {
            own: Some(own),
            session: Some(Session(1)),
            backend: Some(backend),
            online: true,
        }
    }

    fn step(frontend: &mut FrontendHandshake, seen: &FrontendSeen) -> FrontendCommand {
        let command = frontend.next(seen).unwrap();
        assert_eq!(frontend.done(Outcome::Done), Look::Again);
        command
    }

    /// From nothing granted to messages flow.
    fn connect(frontend: &mut FrontendHandshake) {
        step(frontend, &seen(Closed, Closed));
        step(frontend, &seen(Initialising, InitWait));
        step(frontend, &seen(Initialised, Connected));
        assert!(frontend.is_connected());
    }

    /// From a session that is over to nothing granted.
    fn close(frontend: &mut FrontendHandshake) {
        step(frontend, &seen(Connected, Closed));
        step(frontend, &seen(Connected, Closed));
        step(frontend, &seen(Closing, Closed));
        let last = step(frontend, &seen(Closed, Closed));
        assert_eq!(last, FrontendCommand::Revoke);
    }

    #[test]
    fn three_faults_in_a_row_need_a_hand() {
        let mut frontend = FrontendHandshake::started();
        for fault in 1..=MAX_FAULTS {
            connect(&mut frontend);
            frontend.fault();
            close(&mut frontend);
            assert_eq!(frontend.is_stuck(), fault == MAX_FAULTS);
        }
        assert_eq!(frontend.next(&seen(Closed, InitWait)), None);
        frontend.online_written();
        connect(&mut frontend);
    }

    #[test]
    fn a_session_that_stands_forgives_the_faults_before_it() {
        let mut frontend = FrontendHandshake::started();
        for _ in 0..2 * MAX_FAULTS {
            connect(&mut frontend);
            if let Some(wait) = frontend.wait() {
                assert_eq!(wait, Wait::Settle);
                frontend.timed_out(wait);
            }
            frontend.fault();
            close(&mut frontend);
        }
        connect(&mut frontend);
    }

    #[test]
    fn an_end_by_the_toolstack_is_no_fault() {
        let mut frontend = FrontendHandshake::started();
        for _ in 0..=MAX_FAULTS {
            connect(&mut frontend);
            let offline = FrontendSeen {
                online: false,
                ..seen(Connected, Closing)
            };
            assert_eq!(frontend.next(&offline), Some(FrontendCommand::Stop));
            assert_eq!(frontend.done(Outcome::Done), Look::Again);
            step(&mut frontend, &seen(Connected, Closed));
            step(&mut frontend, &seen(Closing, Closed));
            step(&mut frontend, &seen(Closed, Closed));
            assert_eq!(
                frontend.next(&FrontendSeen {
                    own: None,
                    ..offline
                }),
                None
            );
        }
        connect(&mut frontend);
    }

    #[test]
    fn a_late_backend_is_waited_for() {
        let mut frontend = FrontendHandshake::started();
        let early = seen(Initialising, Initialising);
        assert_eq!(frontend.next(&early), None);
        frontend.timed_out(frontend.wait().unwrap());
        connect(&mut frontend);
    }

    #[test]
    fn keys_half_written_are_taken_back() {
        let mut frontend = FrontendHandshake::started();
        let offered = seen(Initialising, InitWait);
        let session = Session(1);
        let shares = Some(FrontendCommand::Share { session });
        assert_eq!(frontend.next(&offered), shares);
        assert_eq!(
            frontend.done(Outcome::Failed("no grants left".into())),
            Look::Again
        );
        close(&mut frontend);
    }

    #[test]
    fn leaving_in_the_middle_of_a_step_leaves_nothing_granted() {
        let mut frontend = FrontendHandshake::started();
        connect(&mut frontend);
        frontend.fault();
        close(&mut frontend);
        // The directories were made anew: own state 1 already.
        frontend.next(&seen(Initialising, InitWait)).unwrap();
        frontend.leave();
        assert!(!frontend.is_over());
        assert_eq!(frontend.done(Outcome::Done), Look::Again);
        step(&mut frontend, &seen(Initialised, InitWait));
        step(&mut frontend, &seen(Closing, InitWait));
        let last = step(&mut frontend, &seen(Closed, InitWait));
        assert_eq!(last, FrontendCommand::Revoke);
        assert!(frontend.is_over());
        assert_eq!(frontend.next(&seen(Closed, InitWait)), None);
    }
}
