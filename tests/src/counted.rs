//! What `tests/instructions` and the program that it counts agree on.

/// Chains, or messages, that are published at once.
pub const BATCH: u32 = 32;
