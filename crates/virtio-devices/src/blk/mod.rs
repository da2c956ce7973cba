//! virtio-blk (device id 2), backed by a file or a block device (fact sheet section 4).
//!
//! Read, write, flush, discard, write zeroes and get-id, a cache mode that the driver can switch,
//! several queues, many requests in flight. What the page cache serves is done inline; whatever
//! would wait goes to the [`Engine`](crate::Engine). Not offered: secure erase (Linux sends its
//! segments device-writable), lifetime, zones.
//!
//! From the outside in: `config` (what it is made from), `offer` (what it shows), `device` (queues,
//! budget, completions), `serve` (one request), `request` and `erase` (what it may do), `waits` (what
//! cannot be done at once), `job` (one such), `flush` (which sync covers what), `transfers` (what
//! needs no thread), `storage` (doing it), `image` (the file or disk), `direct` (past the page
//! cache), `lock` (against whom else it is kept).

mod config;
mod device;
mod direct;
mod erase;
mod error;
mod flush;
mod image;
mod job;
mod lock;
mod offer;
mod request;
mod serve;
mod storage;
#[cfg(test)]
mod tests;
mod transfers;
mod waits;

pub use config::BlkConfig;
pub use device::Blk;
pub use error::BlkError;
