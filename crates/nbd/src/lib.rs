//! The server's side of the network block device protocol (the NBD project's `doc/proto.md`): the
//! fixed newstyle handshake, and transmission with simple replies.
//!
//! No I/O: the bytes of one client go into a [`Connection`], [`Request`]s come out of it, and what
//! it has to send is taken from it. It offers one export, the default one (whose name is empty).
//! TLS, structured replies, metadata contexts and extended headers are refused, as the protocol
//! allows; clients go on without them.
//!
//! The client is hostile: it can end its own connection and nothing else, and what it makes this
//! side hold is bounded ([`Connection::wants_input`]).

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod connection;
mod options;
mod request;
mod wire;

pub use connection::{Connection, ProtocolError, Ticket};
pub use request::{Command, Errno, Request};

/// The longest payload of a request and of a reply: the portable limit of the protocol, and what
/// is advertised.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The block size that is advertised: a sector. Requests that do not keep to it are passed on all
/// the same, as clients that did not ask for block sizes send them.
pub const MIN_BLOCK: u32 = 512;

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Bytes of it.
    pub bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// [`Command::Flush`] and forced unit access are offered.
    pub flush: bool,
    /// [`Command::Trim`] is offered.
    pub trim: bool,
    /// [`Command::WriteZeroes`] is offered.
    pub zero: bool,
}
