//! XenStore: the tree of small values through which the domains of a host find each other.
//!
//! * [`wire`]: the bytes, in both directions. Pure.
//! * [`Client`]: blocking requests with a time limit, watches and transactions, over the socket of
//!   a daemon or over `/dev/xen/xenbus`.
//! * [`server`]: the daemon's side without input or output, with permissions, quotas and
//!   transactions as xenstored has them.
//!
//! What the keys mean is not known here; that is the binding's matter (its section 2).

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod client;
pub mod server;
pub mod wire;

pub use client::{
    Client, DEFAULT_TIMEOUT, StoreError, TRANSACT_ATTEMPTS, Transaction, Tree, WatchEvent,
};
pub use wire::{Access, ErrorCode, MessageType, Permissions, RequestCounts};
