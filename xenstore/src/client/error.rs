//! What can go wrong for a client: the daemon refuses, or the connection fails.

use std::io;
use std::time::Duration;

use crate::wire::{ErrorCode, MessageType, PathError, PermissionError, WireError};

/// Why a request failed. `path` is the node, or the domain, that the request was about.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such node (ENOENT).
    #[error("XenStore {path}: does not exist")]
    NotFound {
        /// What was asked for.
        path: String,
    },
    /// This domain may not do that (EACCES, EPERM, EROFS). A guest cannot tell a node that it may
    /// not see from one that does not exist.
    #[error("XenStore {path}: no permission ({code})")]
    Denied {
        /// What was asked for.
        path: String,
        /// The daemon's words.
        code: ErrorCode,
    },
    /// The transaction met a change made by another (EAGAIN): do all of it again.
    #[error("the XenStore transaction met a change made by somebody else")]
    Conflict,
    /// A quota of this domain is used up: nodes, size of a node, watches or transactions
    /// (ENOSPC, E2BIG, ENOMEM).
    #[error("XenStore {path}: {kind} goes beyond a quota of this domain ({code})")]
    Quota {
        /// What was asked for.
        path: String,
        /// The request.
        kind: MessageType,
        /// The daemon's words.
        code: ErrorCode,
    },
    /// The daemon refuses for another reason.
    #[error("XenStore {path}: {kind} refused ({code})")]
    Refused {
        /// What was asked for.
        path: String,
        /// The request.
        kind: MessageType,
        /// The daemon's words.
        code: ErrorCode,
    },
    /// Path and value together do not fit into one message. Nothing was sent.
    #[error("XenStore {path}: path and value have {len} bytes, at most {max} fit into a message")]
    TooLong {
        /// The node.
        path: String,
        /// Bytes of the payload.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// Not a path. Nothing was sent.
    #[error("XenStore {path:?}: {reason}")]
    BadPath {
        /// What was given.
        path: String,
        /// The rule that it breaks.
        reason: PathError,
    },
    /// The token of a watch holds a nul or is too long. Nothing was sent.
    #[error(
        "XenStore {path}: a token must not hold a nul, and must fit into a message with the path"
    )]
    Token {
        /// The watched path.
        path: String,
    },
    /// The daemon did not answer in time. The connection is of no more use.
    #[error("XenStore did not answer {kind} {subject} within {limit:?}: is the daemon alive?")]
    Timeout {
        /// The request.
        kind: MessageType,
        /// What it was about.
        subject: String,
        /// The limit that was set.
        limit: Duration,
    },
    /// The connection ended, now or earlier.
    #[error("the connection to XenStore has ended")]
    Closed,
    /// The daemon sent what the protocol does not allow. The connection is of no more use.
    #[error("XenStore sent {problem}")]
    Protocol {
        /// What it sent.
        problem: &'static str,
    },
    /// The daemon sent a message that is too long. The connection is of no more use.
    #[error("XenStore sent {0}")]
    Wire(WireError),
    /// The daemon sent permissions that cannot be read.
    #[error("XenStore {path}: {reason}")]
    Permissions {
        /// The node.
        path: String,
        /// What is wrong with them.
        reason: PermissionError,
    },
    /// The socket or device cannot be reached.
    #[error("cannot connect to XenStore at {place}")]
    Connect {
        /// Path of the socket or device.
        place: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Reading or writing failed. The connection is of no more use.
    #[error("the connection to XenStore failed")]
    Io(#[from] io::Error),
}

impl StoreError {
    pub(super) fn from_code(code: ErrorCode, kind: MessageType, subject: &str) -> Self {
        let path = subject.to_owned();
        match code {
            ErrorCode::NotFound => Self::NotFound { path },
            ErrorCode::Access | ErrorCode::NotPermitted | ErrorCode::ReadOnly => {
                Self::Denied { path, code }
            }
            ErrorCode::Again => Self::Conflict,
            ErrorCode::NoSpace | ErrorCode::TooBig | ErrorCode::NoMemory => {
                Self::Quota { path, kind, code }
            }
            code => Self::Refused { path, kind, code },
        }
    }

    /// Whether the node does not exist, as far as this domain may know: a guest is told
    /// "no permission" about a missing node whose parents it may not read.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Denied { .. })
    }
}
