//! What the tests of several crates share: a hosted machine, the processes on it, the toolstack's
//! part in XenStore, a backend in this process, and a guest and a backend that speak the bus by hand.
//!
//! Every wait is for an event and has a limit ([`LIMIT`]): what is waited for comes, or the test
//! fails and says what did not come.

#![forbid(unsafe_code)]

mod disk;
mod grant_disk;
mod machine;
mod process;
mod random;
mod raw_backend;
mod raw_disk;
mod raw_guest;
mod rig;
mod toolstack;

pub use disk::{make_disk, pattern, write_pattern};
pub use frontend_shim::Pool;
pub use grant_disk::{GrantDisk, GrantRequest, address};
pub use machine::{Holdings, Machine};
pub use process::{Ended, Process, keep_to_one_processor, line, vmsg};
pub use random::Random;
pub use raw_backend::{Honest, Lies, RAW_SECTORS, RawBackend, RawQueue};
pub use raw_disk::RawDisk;
pub use raw_guest::RawGuest;
pub use rig::Rig;
pub use toolstack::{Bus, Toolstack};

use std::time::Duration;

/// Longer than anything that a test waits for takes on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(30);
