//! What the rows share.

pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod neighbours;
pub(crate) mod stage;
mod table;
