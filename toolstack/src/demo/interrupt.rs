//! Ctrl-C: ends the demo's processes, so that whoever waits for them goes on and cleans up.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; everything was cleaned up")]
pub(crate) struct Interrupted;

/// The processes to end, and whether they were told to.
static STATE: Mutex<State> = Mutex::new(State {
    interrupted: false,
    processes: Vec::new(),
});

struct State {
    interrupted: bool,
    processes: Vec<OwnedFd>,
}

/// Handles SIGINT and SIGTERM from now on.
pub(super) fn start() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            state.interrupted = true;
            for process in &state.processes {
                // One that has ended needs no signal.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
    });
    Ok(())
}

/// Ends `process` with the others.
pub(super) fn watch(process: Pid) -> anyhow::Result<()> {
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if state.interrupted {
        // It was started after the others were told.
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
    state.processes.push(process);
    Ok(())
}

/// An error once Ctrl-C was pressed.
pub(super) fn check() -> Result<(), Interrupted> {
    let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    match state.interrupted {
        true => Err(Interrupted),
        false => Ok(()),
    }
}
