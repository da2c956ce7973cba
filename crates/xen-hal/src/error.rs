//! The errors of this crate, split by whose fault they are, in words that say what to do.
//!
//! Xen answers with bare numbers; what each means for a call stands in the
//! measurements cited here (bad reference: EINVAL at the mmap; dead domain: ESRCH at
//! a bind; a port that is still connected: EINVAL).

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use xen_types::{DomId, EvtchnPort, GrantRef};

use crate::GrantedPages;

/// A platform or one of its devices cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No `/dev/xen` at all.
    #[error(
        "there is no /dev/xen: this is not a Xen domain (name a hosted platform, hosted:DIR, on a machine without Xen)"
    )]
    NotXen,
    /// `/dev/xen` is there, the device is not.
    #[error("{device} is missing: load its module with `modprobe {module}`")]
    NoModule {
        /// The device node.
        device: &'static str,
        /// The kernel module that makes it.
        module: &'static str,
    },
    /// EACCES or EPERM.
    #[error("no permission to open {device}: run as root")]
    Denied {
        /// The device node.
        device: &'static str,
    },
    /// Anything else that the kernel answered.
    #[error("{device} cannot be opened")]
    Device {
        /// The device node.
        device: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The hosted platform does not answer.
    #[error(
        "the hosted platform does not answer for domain {domid} at {}: is its broker running (`vmsg hosted DIR`), and does the domain exist?",
        socket.display()
    )]
    NoBroker {
        /// The domain that this process wanted to play.
        domid: DomId,
        /// Where the broker was looked for.
        socket: PathBuf,
        /// What the kernel or the broker answered.
        source: io::Error,
    },
}

/// Pages of a peer cannot be mapped or copied.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The peer's fault, as far as Xen tells: it does not say which of the references it refused.
    #[error(
        "domain {peer}: {count} grant references from {first} on cannot be mapped: one is not granted to this domain, is revoked or read-only, the domain is gone, or this domain's mapping limit is reached (Xen: gnttab_max_maptrack_frames)"
    )]
    Refused {
        /// Who was to have granted them.
        peer: DomId,
        /// The first reference of the call.
        first: GrantRef,
        /// References in the call.
        count: usize,
        /// What the kernel answered.
        source: io::Error,
    },
    /// This host's limit: gntdev has not looked at the references yet.
    #[error(
        "domain {peer}: gntdev does not take {count} grant references in one call: raise its limit (module parameter `limit` of xen-gntdev, 65,536 by default)"
    )]
    Limit {
        /// Whose pages.
        peer: DomId,
        /// References in the call.
        count: usize,
    },
    /// The caller's fault: more pages than the mapping was begun for, or none.
    #[error("mapping of domain {peer}: {asked} pages asked for, room for {room}")]
    Room {
        /// Whose pages.
        peer: DomId,
        /// Pages asked for.
        asked: usize,
        /// Pages there is room for.
        room: usize,
    },
    /// The caller's fault: finished before every page was mapped.
    #[error("mapping of domain {peer} ended after {mapped} of {pages} pages")]
    Unfinished {
        /// Whose pages.
        peer: DomId,
        /// Pages mapped.
        mapped: usize,
        /// Pages the mapping was begun for.
        pages: usize,
    },
    /// A device could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// This host's fault.
    #[error("domain {peer}: {what} failed on this host")]
    Host {
        /// Whose pages.
        peer: DomId,
        /// The step that failed.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl MapError {
    /// Sorts what a mapping call answered: EINVAL is how Xen refuses what the peer named.
    pub(crate) fn from_call(
        peer: DomId,
        first: GrantRef,
        count: usize,
        what: &'static str,
        source: io::Error,
    ) -> Self {
        if source.raw_os_error() == Some(Errno::INVAL.raw_os_error()) {
            Self::Refused {
                peer,
                first,
                count,
                source,
            }
        } else {
            Self::Host { peer, what, source }
        }
    }
}

/// Pages of our own cannot be granted.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// ENOSPC.
    #[error(
        "no room to grant {pages} pages to domain {peer}: raise gntalloc's limit (module parameter `limit` of xen-gntalloc, 1024 pages by default), or the domain has no grant reference left (Xen: gnttab_max_frames)"
    )]
    NoRoom {
        /// Who was to be granted them.
        peer: DomId,
        /// How many were asked for.
        pages: usize,
    },
    /// A device could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Anything else.
    #[error("granting {pages} pages to domain {peer}: {what} failed")]
    Host {
        /// Who was to be granted them.
        peer: DomId,
        /// How many were asked for.
        pages: usize,
        /// The step that failed.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl GrantError {
    pub(crate) fn from_call(
        peer: DomId,
        pages: usize,
        what: &'static str,
        source: io::Error,
    ) -> Self {
        if source.raw_os_error() == Some(Errno::NOSPC.raw_os_error()) {
            Self::NoRoom { peer, pages }
        } else {
            Self::Host {
                peer,
                pages,
                what,
                source,
            }
        }
    }
}

/// Granted pages cannot be taken back.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// Somebody in this process still holds them; they are given back.
    #[error("{leases} leases still hold the {} granted pages", pages.refs.len())]
    Leased {
        /// The pages, as they were.
        pages: GrantedPages,
        /// Who holds them.
        leases: usize,
    },
    /// The kernel refused; the pages are lost until this process ends.
    #[error("revoking granted pages failed")]
    Host(#[source] io::Error),
}

/// An event channel cannot be opened, bound or sent to.
#[derive(Debug, thiserror::Error)]
pub enum EvtchnError {
    /// EINVAL at a bind.
    #[error(
        "port {port} of domain {peer} cannot be bound: it is not an unbound port meant for this domain, or is connected still (a process that is being killed may hold it for a moment: try again)"
    )]
    Refused {
        /// The remote domain.
        peer: DomId,
        /// Its port.
        port: EvtchnPort,
    },
    /// ESRCH.
    #[error("there is no domain {peer} (any more)")]
    NoDomain {
        /// The remote domain.
        peer: DomId,
    },
    /// ENOSPC.
    #[error("no event-channel port is free in this domain (for domain {peer})")]
    NoPort {
        /// The remote domain.
        peer: DomId,
    },
    /// A device could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Anything else.
    #[error("event channel to domain {peer}: {what} failed")]
    Host {
        /// The remote domain.
        peer: DomId,
        /// The step that failed.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl EvtchnError {
    /// Sorts what a bind answered; `port` only where the peer named one.
    pub(crate) fn from_call(
        peer: DomId,
        port: Option<EvtchnPort>,
        what: &'static str,
        source: io::Error,
    ) -> Self {
        match (source.raw_os_error().map(Errno::from_raw_os_error), port) {
            (Some(Errno::INVAL), Some(port)) => Self::Refused { peer, port },
            (Some(Errno::SRCH), _) => Self::NoDomain { peer },
            (Some(Errno::NOSPC), _) => Self::NoPort { peer },
            _ => Self::Host { peer, what, source },
        }
    }
}
