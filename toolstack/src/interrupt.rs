//! Ctrl-C during work on a device: noticed between requests, so that the connection ends in order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What ends the work.
pub(crate) const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];
/// Exit status of a second Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Ctrl-C.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Whether SIGINT or SIGTERM came.
#[derive(Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches them from now on. A second one ends the process at once: the first may wait for a
    /// backend that does not let go.
    pub(crate) fn catch() -> io::Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in SIGNALS {
            flag::register_conditional_shutdown(signal, INTERRUPTED, came.clone())?;
            flag::register(signal, came.clone())?;
        }
        Ok(Self(came))
    }

    /// An error once one came.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Interrupted),
            false => Ok(()),
        }
    }
}
