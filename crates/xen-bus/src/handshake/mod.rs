//! The connection states of a bus instance, both sides, as pure functions (binding section 3,
//! with `online` = 0 of section 8 and the "started" rows of section 9).
//!
//! What was read from XenStore goes in, at most one command comes out. Neither side knows a
//! store, a clock or a hypervisor, and both are `Clone + Eq + Hash`, so that a test can walk
//! every interleaving of this very code with kills at any step.
//!
//! The shell around either side is one loop, run at the start, at each watch event of the peer's
//! state, of `online`, of the own directory and of `@releaseDomain`, and at each time-out:
//!
//! ```text
//! for _ in 0..STEPS_PER_TURN {
//!     let Some(command) = handshake.next(&read_store()) else { break };
//!     match handshake.done(execute(command)) {
//!         Look::Again => continue,
//!         Look::Later => { come_back_after(RETRY_DELAY); break }
//!     }
//! }
//! match handshake.wait() { Some(wait) => arm_timer(wait.limit()), None => disarm_timer() }
//! ```
//!
//! A loop that has used up its steps comes back after the other instances had their turn.
//! A command may take as long as it needs: until `done` is called, `next` answers `None`.
//! Watches coalesce, so nothing here depends on having seen a sequence of states.
//!
//! Not here: what the keys say (they are read and checked by whoever executes the command), and
//! the order of one device's removal.

mod backend;
mod frontend;
mod state;

pub use backend::{BackendCommand, BackendHandshake, BackendSeen};
pub use frontend::{FrontendCommand, FrontendHandshake, FrontendSeen, MAX_FAULTS};
pub use state::XenbusState;

use core::time::Duration;

/// After this long a command that came to nothing is tried again, if no watch event came before.
pub const RETRY_DELAY: Duration = Duration::from_secs(1);

/// So many steps in a row are enough for any honest sequence (lock, 5, 6, 2, keys, 4), and keep a
/// guest that changes its state without end from starving the others.
pub const STEPS_PER_TURN: usize = 8;

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All of it was done.
    Done,
    /// Nothing was done: a condition that the command names did not hold, the transaction met
    /// with conflicts to the end of a bounded number of attempts, or the store refused.
    NotDone,
    /// Some of it may have been done before it failed, for this reason: one sentence without any
    /// path of the host, for the node `error`.
    Failed(String),
}

/// When to look at the store again after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub enum Look {
    /// At once.
    Again,
    /// At the next event, or after [`RETRY_DELAY`].
    Later,
}

/// A wait that ends by itself: when it has lasted for its limit, the shell calls `timed_out`.
///
/// It begins when `wait` first answers it, and is given up when `wait` answers something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// The backend asked the driver to let its devices go (section 8).
    Drain,
    /// The frontend looks for a backend in state 2.
    Offer,
    /// The frontend wrote its keys and looks for a backend in state 4.
    Connect,
    /// The frontend is connected after faults; having stood for so long, it forgets them.
    Settle,
}

impl Wait {
    /// How long this wait may last.
    #[must_use]
    pub const fn limit(self) -> Duration {
        match self {
            // Section 8.
            Self::Drain => Duration::from_secs(30),
            // Section 4: a user-space frontend's waits.
            Self::Offer | Self::Connect => Duration::from_secs(10),
            // Longer than both, so that a session that dies of the same fault each time is not
            // taken for a healthy one.
            Self::Settle => Duration::from_secs(60),
        }
    }
}
