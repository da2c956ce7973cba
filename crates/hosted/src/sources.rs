//! What the broker's loop listens to, and the tokens that name it.
//!
//! A token holds a generation: a slab uses its keys again, and an event of the same batch must not reach
//! what took the place of something that was just closed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use slab::Slab;
use xen_types::DomId;
use xenstore::server::ConnId;

use crate::hypervisor::ConnectionId;

/// Bits of a token that hold the slab's key.
const KEY_BITS: u32 = 32;

/// Something with a descriptor. Clones share it.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Processes of the domain come here for the hypervisor ...
    HypervisorListener(Arc<OwnedFd>),
    /// ... and here for XenStore.
    StoreListener(Arc<UnixListener>),
    /// One process's connection to the hypervisor.
    Hypervisor(Arc<OwnedFd>, ConnectionId),
    /// One connection to XenStore.
    Store(Arc<UnixStream>, ConnId),
    /// The process whose end is the domain's end.
    Process(Arc<OwnedFd>),
}

impl Source {
    fn raw_fd(&self) -> RawFd {
        match self {
            Self::HypervisorListener(fd) | Self::Hypervisor(fd, _) | Self::Process(fd) => {
                fd.as_raw_fd()
            }
            Self::StoreListener(listener) => listener.as_raw_fd(),
            Self::Store(stream, _) => stream.as_raw_fd(),
        }
    }

    fn interest(&self) -> Interest {
        match self {
            Self::Store(..) => Interest::READABLE | Interest::WRITABLE,
            _ => Interest::READABLE,
        }
    }
}

#[derive(Debug)]
struct Entry {
    generation: usize,
    domid: DomId,
    source: Source,
}

/// Everything registered, each for one domain.
#[derive(Debug)]
pub(crate) struct Sources {
    registry: Registry,
    entries: Slab<Entry>,
    last_generation: usize,
}

impl Sources {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            registry,
            entries: Slab::new(),
            last_generation: 0,
        }
    }

    pub(crate) fn add(&mut self, domid: DomId, source: Source) -> io::Result<Token> {
        // Kept below 2^31, so that no token is the waker's.
        self.last_generation = (self.last_generation + 1) % (1 << (KEY_BITS - 1));
        let generation = self.last_generation;
        let vacant = self.entries.vacant_entry();
        let token = Token(generation << KEY_BITS | vacant.key());
        let fd = source.raw_fd();
        self.registry
            .register(&mut SourceFd(&fd), token, source.interest())?;
        vacant.insert(Entry {
            generation,
            domid,
            source,
        });
        Ok(token)
    }

    pub(crate) fn get(&self, token: Token) -> Option<(DomId, Source)> {
        let entry = self.entries.get(key(token))?;
        (entry.generation == token.0 >> KEY_BITS).then(|| (entry.domid, entry.source.clone()))
    }

    /// Asks the kernel for another event if there is still something to read.
    pub(crate) fn rearm(&self, token: Token) {
        if let Some((_, source)) = self.get(token)
            && let Err(error) =
                self.registry
                    .reregister(&mut SourceFd(&source.raw_fd()), token, source.interest())
        {
            tracing::error!(%error, "a descriptor cannot be polled again");
        }
    }

    /// Takes it out; the descriptor is closed with the last clone.
    pub(crate) fn remove(&mut self, token: Token) -> Option<Source> {
        self.get(token)?;
        let source = self.entries.try_remove(key(token))?.source;
        // A pidfd is shared with the process that sent it: closing ours would leave it registered.
        if let Err(error) = self.registry.deregister(&mut SourceFd(&source.raw_fd())) {
            tracing::error!(%error, "a descriptor cannot be deregistered");
        }
        Some(source)
    }

    /// Everything of one domain.
    pub(crate) fn of(&self, domid: DomId) -> impl Iterator<Item = (Token, &Source)> {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.domid == domid)
            .map(|(key, entry)| (Token(entry.generation << KEY_BITS | key), &entry.source))
    }

    /// The socket of a XenStore connection.
    pub(crate) fn store(&self, id: ConnId) -> Option<Token> {
        self.entries
            .iter()
            .find_map(|(key, entry)| match entry.source {
                Source::Store(_, its) if its == id => {
                    Some(Token(entry.generation << KEY_BITS | key))
                }
                _ => None,
            })
    }
}

fn key(token: Token) -> usize {
    token.0 & ((1 << KEY_BITS) - 1)
}
