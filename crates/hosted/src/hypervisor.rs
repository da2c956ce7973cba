//! What Xen knows: domains, their grants, their ports, and what each connection holds of them.
//!
//! It answers the requests of domains; it owns no socket and knows no XenStore. A connection stands for an
//! open device file: when it goes, everything that was made through it goes.

mod events;
mod memory;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use xen_hal::hosted::Counters;
use xen_hal::hosted::wire::{DomainReport, DomainState, Reply, Request};
use xen_types::{DomId, EvtchnPort, GrantRef};

use crate::evtchn::Ports;
use crate::grants::GrantTable;
use events::Events;

/// Domains at a time. Each has sockets and a grant table here.
const MAX_DOMAINS: usize = 512;
/// Guests at a time: all domains but dom0.
pub const MAX_GUESTS: usize = MAX_DOMAINS - 1;
/// Domains that are gone, whose counters can still be read.
const MAX_REMEMBERED: usize = 128;

/// Names a connection; never used twice.
pub(crate) type ConnectionId = u64;

/// An answer with what goes along.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) fds: Vec<Arc<OwnedFd>>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            fds: Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Hypervisor {
    domains: BTreeMap<DomId, Domain>,
    connections: HashMap<ConnectionId, Connection>,
    ports: Ports,
    remembered: VecDeque<DomainReport>,
    last_domid: u16,
    last_id: u64,
}

#[derive(Debug)]
struct Domain {
    grants: GrantTable,
    mapped_pages: u32,
    counters: Counters,
    alive: bool,
}

#[derive(Debug)]
struct Connection {
    domid: DomId,
    mappings: HashMap<u64, Mapping>,
    events: Option<Events>,
}

/// What one map request mapped.
#[derive(Debug)]
struct Mapping {
    granter: DomId,
    refs: Vec<GrantRef>,
}

impl Hypervisor {
    /// With dom0 alone.
    pub(crate) fn new() -> io::Result<Self> {
        let mut new = Self::default();
        new.add_domain(DomId::DOM0)?;
        Ok(new)
    }

    /// A new domain; its id was not used lately.
    pub(crate) fn create_domain(&mut self) -> Result<DomId, Errno> {
        if self.domains.len() >= MAX_DOMAINS {
            return Err(Errno::NOSPC);
        }
        let domid = loop {
            self.last_domid = match self.last_domid + 1 {
                id if DomId(id) < DomId::FIRST_RESERVED => id,
                _ => 1,
            };
            let domid = DomId(self.last_domid);
            if !self.domains.contains_key(&domid) {
                break domid;
            }
        };
        self.add_domain(domid).map_err(|_| Errno::NOMEM)?;
        Ok(domid)
    }

    fn add_domain(&mut self, domid: DomId) -> io::Result<()> {
        let domain = Domain {
            grants: GrantTable::new()?,
            mapped_pages: 0,
            counters: Counters::default(),
            alive: true,
        };
        self.domains.insert(domid, domain);
        Ok(())
    }

    pub(crate) fn is_alive(&self, domid: DomId) -> bool {
        self.domains.get(&domid).is_some_and(|domain| domain.alive)
    }

    /// Ends a domain and its connections. It stays as a zombie while others have pages of it mapped.
    pub(crate) fn destroy_domain(&mut self, domid: DomId) {
        let connections: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.domid == domid)
            .map(|(id, _)| *id)
            .collect();
        for id in connections {
            self.disconnect(id);
        }
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.alive = false;
        }
        self.reap(domid);
    }

    /// A new connection of a process that plays `domid`.
    pub(crate) fn connect(&mut self, domid: DomId) -> ConnectionId {
        let id = self.next_id();
        let connection = Connection {
            domid,
            mappings: HashMap::new(),
            events: None,
        };
        self.connections.insert(id, connection);
        id
    }

    /// The process closed it or died: its mappings, ports and grants go.
    pub(crate) fn disconnect(&mut self, id: ConnectionId) {
        let Some(domid) = self.connections.get(&id).map(|connection| connection.domid) else {
            return;
        };
        let ports: Vec<EvtchnPort> = self
            .ports
            .of(domid)
            .filter(|(_, owner)| *owner == id)
            .map(|(port, _)| port)
            .collect();
        for port in ports {
            self.close_port(domid, id, port).ok();
        }
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        for mapping in connection.mappings.into_values() {
            self.forget_mapping(domid, &mapping);
        }
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.grants.revoke_all(Some(id));
            let sends = connection.events.map_or(0, |events| events.control.sends());
            domain.counters.evtchn_send = domain.counters.evtchn_send.wrapping_add(sends);
        }
    }

    /// Answers a request of a domain; what only dom0 may ask is refused here.
    pub(crate) fn handle(&mut self, id: ConnectionId, request: Request) -> Answer {
        self.try_handle(id, request)
            .unwrap_or_else(|errno| Reply::Refused(errno.raw_os_error()).into())
    }

    fn try_handle(&mut self, id: ConnectionId, request: Request) -> Result<Answer, Errno> {
        let domid = self.connections.get(&id).ok_or(Errno::BADF)?.domid;
        Ok(match request {
            Request::Grant {
                peer,
                pages,
                access,
            } => self.grant(domid, id, peer, pages, access)?,
            Request::Revoke { grant } => {
                let domain = self.domain(domid)?;
                domain.grants.revoke(grant, id)?;
                Reply::Done.into()
            }
            Request::Map { peer, access, refs } => self.map(domid, id, peer, access, &refs)?,
            Request::Unmap { mapping } => {
                self.unmap(domid, id, mapping)?;
                Reply::Done.into()
            }
            Request::Copy {
                peer,
                goes_on,
                copies,
            } => self.copy(domid, peer, goes_on, &copies)?,
            Request::OpenEvents => self.open_events(id)?,
            Request::BindInterdomain { peer, remote } => {
                Reply::Port(self.bind_interdomain(domid, id, (peer, remote))?).into()
            }
            Request::AllocUnbound { peer } => {
                Reply::Port(self.alloc_unbound(domid, id, peer)?).into()
            }
            Request::Unbind { port } => {
                self.close_port(domid, id, port)?;
                self.domain(domid)?.counters.evtchn_close += 1;
                Reply::Done.into()
            }
            Request::Route { port } => self.route(domid, id, port)?,
            Request::CreateDomain { .. }
            | Request::DestroyDomain { .. }
            | Request::BindProcess { .. }
            | Request::Domains => return Err(Errno::PERM),
        })
    }

    /// Holdings and hypercalls, of every domain or of one, those that are gone last.
    pub(crate) fn report(&self, only: Option<DomId>) -> Vec<DomainReport> {
        let wanted = |domid| only.is_none_or(|only| only == domid);
        let living = self
            .domains
            .keys()
            .filter_map(|domid| self.report_of(*domid));
        let gone = self.remembered.iter().cloned();
        living
            .chain(gone)
            .filter(|report| wanted(report.domid))
            .collect()
    }

    fn report_of(&self, domid: DomId) -> Option<DomainReport> {
        let domain = self.domains.get(&domid)?;
        let mut counters = domain.counters;
        let connections = self.connections.values();
        for connection in connections.filter(|connection| connection.domid == domid) {
            let sends = connection
                .events
                .as_ref()
                .map(|events| events.control.sends());
            counters.evtchn_send = counters.evtchn_send.wrapping_add(sends.unwrap_or(0));
        }
        Some(DomainReport {
            domid,
            state: if domain.alive {
                DomainState::Alive
            } else {
                DomainState::Zombie
            },
            granted_pages: u32::try_from(domain.grants.pages()).unwrap_or(u32::MAX),
            mapped_pages: domain.mapped_pages,
            ports: u32::try_from(self.ports.of(domid).count()).unwrap_or(u32::MAX),
            nodes: 0,
            counters,
        })
    }

    fn domain(&mut self, domid: DomId) -> Result<&mut Domain, Errno> {
        self.domains.get_mut(&domid).ok_or(Errno::SRCH)
    }

    /// A dead domain goes with the last mapping of its pages.
    fn reap(&mut self, domid: DomId) {
        let gone = |domain: &Domain| !domain.alive && domain.grants.pages() == 0;
        if !self.domains.get(&domid).is_some_and(gone) {
            return;
        }
        if let Some(report) = self.report_of(domid) {
            if self.remembered.len() == MAX_REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back(DomainReport {
                state: DomainState::Gone,
                ..report
            });
        }
        self.domains.remove(&domid);
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
