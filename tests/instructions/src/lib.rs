//! Instructions of the data path, counted: what the program of this package and the test that runs
//! it agree on. `cargo xtask counts` runs both as a release is built.

#![forbid(unsafe_code)]

/// Chains, or messages, that are published at once.
pub const BATCH: u32 = 32;
