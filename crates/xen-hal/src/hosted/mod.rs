//! The hosted platform, seen from a domain: its client, and what client and broker
//! (crate `hosted`) share: the wire ([`wire`], [`channel`]), the control page
//! ([`ControlPage`]) and the places of the sockets ([`layout`]).
//!
//! A connection to the broker is what an open file of `/dev/xen/*` is on Xen: everything
//! that was made through it goes when it is closed, so also when its process dies.
//!
//! What the hosted platform does not do: keep processes of one user from each other. A
//! process with a port could, by writing its peer's control page itself, raise any event of that
//! peer; and a process of the same user can open the memory of another. It finds mistakes, it is no fence.

pub mod channel;
mod codec;
mod connection;
mod control_page;
mod counters;
mod events;
mod hypervisor;
pub mod layout;
mod memory;
pub mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xen_types::DomId;

pub use control_page::{ControlPage, PORTS, PendingPage, Signal};
pub use counters::Counters;
pub use hypervisor::Hypervisor;

pub(crate) use events::Events;
pub(crate) use memory::Memory;

use crate::OpenError;
use connection::Connection;

/// One domain of a hosted platform, open in this process.
#[derive(Clone, Debug)]
pub struct Domain(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    domid: DomId,
    memory: Arc<Memory>,
}

impl Domain {
    pub(crate) fn open(dir: &Path, domid: DomId) -> Result<Self, OpenError> {
        let memory = Arc::new(Memory::new(Connection::open(dir, domid)?));
        Ok(Self(Arc::new(Shared {
            dir: dir.to_owned(),
            domid,
            memory,
        })))
    }

    /// The domain that this process plays.
    #[must_use]
    pub fn domid(&self) -> DomId {
        self.0.domid
    }

    /// The emulated hypercalls so far: of every domain if this is dom0, else of this one.
    pub fn domains(&self) -> io::Result<Vec<wire::DomainReport>> {
        self.0.memory.domains()
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.0.memory
    }

    pub(crate) fn events(&self) -> Result<Events, OpenError> {
        let connection = Connection::open(&self.0.dir, self.0.domid)?;
        Events::open(connection).map_err(|source| OpenError::NoBroker {
            domid: self.0.domid,
            socket: layout::hypervisor_socket(&self.0.dir, self.0.domid),
            source,
        })
    }

    pub(crate) fn store_socket(&self) -> PathBuf {
        layout::store_socket(&self.0.dir, self.0.domid)
    }
}
