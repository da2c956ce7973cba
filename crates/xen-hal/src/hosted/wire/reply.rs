//! What the broker answers: the reply and its bytes.

use xen_types::{DomId, EvtchnPort, GrantRef};

use super::Malformed;
use crate::hosted::Counters;
use crate::hosted::codec::{Decoder, Encoder};

/// What the broker answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The errno that Xen's devices would have answered.
    Refused(i32),
    /// Done, nothing to tell.
    Done,
    /// One descriptor goes along: the memory, from its first byte on.
    Granted {
        /// Names the grant.
        grant: u64,
        /// In page order.
        refs: Vec<GrantRef>,
    },
    /// Descriptors of memory go along; `runs` tells what lies where.
    Mapped {
        /// Names the mapping.
        mapping: u64,
        /// Together the first pages asked for: at least one, not more than [`super::MAX_FDS`] descriptors reach.
        runs: Vec<Run>,
    },
    /// In the order of the request: what a read read (a write: nothing), or the `GNTST_*` status of a refusal.
    Copied(Vec<Result<Vec<u8>, i16>>),
    /// Two descriptors go along: control page, eventfd.
    Events,
    /// Our port.
    Port(EvtchnPort),
    /// With a peer two descriptors go along: its control page, its eventfd.
    Route {
        /// For how long this holds: while the port's epoch word is this.
        epoch: u32,
        /// The peer's port, if there is a peer.
        peer: Option<EvtchnPort>,
    },
    /// A domain.
    Domain(DomId),
    /// Domains.
    Domains(Vec<DomainReport>),
}

/// Consecutive pages of one memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which of the descriptors.
    pub fd: u32,
    /// First page in it.
    pub first: u32,
    /// How many.
    pub pages: u32,
}

/// A domain's holdings and hypercalls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainReport {
    /// The domain.
    pub domid: DomId,
    /// Alive, dying or gone.
    pub state: DomainState,
    /// Pages it grants, also those that wait for a peer to unmap them.
    pub granted_pages: u32,
    /// Pages of others that it has mapped, each as often as it is mapped.
    pub mapped_pages: u32,
    /// Event-channel ports.
    pub ports: u32,
    /// XenStore nodes that it owns.
    pub nodes: u32,
    /// Hypercalls since it was made.
    pub counters: Counters,
}

/// The life of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// It runs.
    Alive,
    /// It is dead, and others have pages of it mapped.
    Zombie,
    /// It is gone; only its counters are remembered.
    Gone,
}

impl Reply {
    /// The packet.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        match self {
            Self::Refused(errno) => to.u8(0).u32(errno.unsigned_abs()),
            Self::Done => to.u8(1),
            Self::Granted { grant, refs } => to.u8(2).u64(*grant).list(refs, |to, gref| {
                to.u32(gref.0);
            }),
            Self::Mapped { mapping, runs } => to.u8(3).u64(*mapping).list(runs, |to, run| {
                to.u32(run.fd).u32(run.first).u32(run.pages);
            }),
            Self::Copied(copies) => to.u8(4).list(copies, |to, copy| match copy {
                Err(status) => {
                    to.u8(0).u16(status.cast_unsigned());
                }
                Ok(bytes) => {
                    to.u8(1).bytes(bytes);
                }
            }),
            Self::Events => to.u8(5),
            Self::Port(port) => to.u8(6).u32(port.0),
            // Port 0 is never handed out.
            Self::Route { epoch, peer } => to.u8(7).u32(*epoch).u32(peer.map_or(0, |port| port.0)),
            Self::Domain(domid) => to.u8(8).u16(domid.0),
            Self::Domains(domains) => to.u8(9).list(domains, emit_domain),
        };
        to.finish()
    }

    /// The message in a packet.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let mut from = Decoder::new(packet);
        parse_reply(&mut from)
            .filter(|_| from.end().is_some())
            .ok_or(Malformed(packet.len()))
    }
}

fn parse_reply(from: &mut Decoder<'_>) -> Option<Reply> {
    Some(match from.u8()? {
        0 => Reply::Refused(i32::try_from(from.u32()?).ok()?),
        1 => Reply::Done,
        2 => Reply::Granted {
            grant: from.u64()?,
            refs: from.list(|from| from.u32().map(GrantRef))?,
        },
        3 => Reply::Mapped {
            mapping: from.u64()?,
            runs: from.list(|from| {
                Some(Run {
                    fd: from.u32()?,
                    first: from.u32()?,
                    pages: from.u32()?,
                })
            })?,
        },
        4 => Reply::Copied(from.list(|from| match from.u8()? {
            0 => from.u16().map(|status| Err(status.cast_signed())),
            1 => from.bytes().map(|bytes| Ok(bytes.to_vec())),
            _ => None,
        })?),
        5 => Reply::Events,
        6 => Reply::Port(EvtchnPort(from.u32()?)),
        7 => Reply::Route {
            epoch: from.u32()?,
            peer: Some(EvtchnPort(from.u32()?)).filter(|port| port.0 != 0),
        },
        8 => Reply::Domain(DomId(from.u16()?)),
        9 => Reply::Domains(from.list(parse_domain)?),
        _ => return None,
    })
}

fn emit_domain(to: &mut Encoder, domain: &DomainReport) {
    let state = match domain.state {
        DomainState::Alive => 0,
        DomainState::Zombie => 1,
        DomainState::Gone => 2,
    };
    to.u16(domain.domid.0).u8(state);
    to.u32(domain.granted_pages).u32(domain.mapped_pages);
    to.u32(domain.ports).u32(domain.nodes);
    for (_, value) in domain.counters.entries() {
        to.u64(value);
    }
}

fn parse_domain(from: &mut Decoder<'_>) -> Option<DomainReport> {
    Some(DomainReport {
        domid: DomId(from.u16()?),
        state: match from.u8()? {
            0 => DomainState::Alive,
            1 => DomainState::Zombie,
            2 => DomainState::Gone,
            _ => return None,
        },
        granted_pages: from.u32()?,
        mapped_pages: from.u32()?,
        ports: from.u32()?,
        nodes: from.u32()?,
        counters: {
            let mut values = [0; Counters::COUNT];
            for value in &mut values {
                *value = from.u64()?;
            }
            Counters::from_values(values)
        },
    })
}
