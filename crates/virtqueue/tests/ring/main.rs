//! The split ring against the rules of the specification, against hostile peers, and against
//! another implementation.

mod device;
mod double_fetch;
mod driver;
mod indirect;
mod oracle;
mod rig;
mod soak;
mod state;
mod vectors;
mod wakeups;
