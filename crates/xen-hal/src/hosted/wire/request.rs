//! What a domain asks: the request and its bytes.

use xen_types::{DomId, EvtchnPort, GrantRef};

use super::{Access, Malformed};
use crate::hosted::codec::{Decoder, Encoder};

/// What a domain asks the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Pages of our own for a peer. Reply: [`super::Reply::Granted`] with their memory.
    Grant {
        /// Who may map them.
        peer: DomId,
        /// How many.
        pages: u32,
        /// What it may do.
        access: Access,
    },
    /// Takes a grant back. Reply: [`super::Reply::Done`].
    Revoke {
        /// The number that [`super::Reply::Granted`] gave.
        grant: u64,
    },
    /// Maps pages of a peer. Reply: [`super::Reply::Mapped`] with their memory.
    Map {
        /// Whose pages.
        peer: DomId,
        /// What for.
        access: Access,
        /// Which, in the order of the mapping.
        refs: Vec<GrantRef>,
    },
    /// Reply: [`super::Reply::Done`].
    Unmap {
        /// The number that [`super::Reply::Mapped`] gave.
        mapping: u64,
    },
    /// Copies from and to pages of a peer. Reply: [`super::Reply::Copied`].
    Copy {
        /// Whose pages.
        peer: DomId,
        /// The rest of a call that was too long for one packet: it is counted already.
        goes_on: bool,
        /// The pieces.
        copies: Vec<PageCopy>,
    },
    /// Makes this connection a set of event channels. Reply: [`super::Reply::Events`] with control page and eventfd.
    OpenEvents,
    /// Reply: [`super::Reply::Port`].
    BindInterdomain {
        /// The remote domain.
        peer: DomId,
        /// Its unbound port.
        remote: EvtchnPort,
    },
    /// Reply: [`super::Reply::Port`].
    AllocUnbound {
        /// Who may bind to it.
        peer: DomId,
    },
    /// Reply: [`super::Reply::Done`].
    Unbind {
        /// A port of this connection.
        port: EvtchnPort,
    },
    /// Where events sent through a port go. Reply: [`super::Reply::Route`].
    Route {
        /// A port of this connection.
        port: EvtchnPort,
    },
    /// A new domain (dom0 only). Reply: [`super::Reply::Domain`].
    CreateDomain {
        /// Its name.
        name: String,
    },
    /// Reply: [`super::Reply::Done`] (dom0 only).
    DestroyDomain {
        /// Which.
        domid: DomId,
    },
    /// The domain ends with the process whose pidfd goes with the request (dom0 only). Reply: [`super::Reply::Done`].
    BindProcess {
        /// Which.
        domid: DomId,
    },
    /// Reply: [`super::Reply::Domains`]: all for dom0, else the asking one.
    Domains,
}

/// One piece of [`Request::Copy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// The granted page.
    pub gref: GrantRef,
    /// Where in it.
    pub offset: u16,
    /// Which way, and how much.
    pub data: CopyData,
}

/// The other side of a [`PageCopy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyData {
    /// So many bytes from the page.
    Read(u16),
    /// These bytes into the page.
    Write(Vec<u8>),
}

impl CopyData {
    /// Bytes to copy.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a copy of no bytes is like any other"
    )]
    pub fn len(&self) -> usize {
        match self {
            Self::Read(len) => usize::from(*len),
            Self::Write(bytes) => bytes.len(),
        }
    }
}

impl Request {
    /// The packet.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        match self {
            Self::Grant {
                peer,
                pages,
                access,
            } => to.u8(1).u16(peer.0).u32(*pages).u8(access_code(*access)),
            Self::Revoke { grant } => to.u8(2).u64(*grant),
            Self::Map { peer, access, refs } => {
                let head = to.u8(3).u16(peer.0).u8(access_code(*access));
                head.list(refs, |to, gref| {
                    to.u32(gref.0);
                })
            }
            Self::Unmap { mapping } => to.u8(4).u64(*mapping),
            Self::Copy {
                peer,
                goes_on,
                copies,
            } => {
                let head = to.u8(5).u16(peer.0).u8(u8::from(*goes_on));
                head.list(copies, emit_copy)
            }
            Self::OpenEvents => to.u8(6),
            Self::BindInterdomain { peer, remote } => to.u8(7).u16(peer.0).u32(remote.0),
            Self::AllocUnbound { peer } => to.u8(8).u16(peer.0),
            Self::Unbind { port } => to.u8(9).u32(port.0),
            Self::Route { port } => to.u8(10).u32(port.0),
            Self::CreateDomain { name } => to.u8(11).bytes(name.as_bytes()),
            Self::DestroyDomain { domid } => to.u8(12).u16(domid.0),
            Self::BindProcess { domid } => to.u8(13).u16(domid.0),
            Self::Domains => to.u8(14),
        };
        to.finish()
    }

    /// The message in a packet.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let mut from = Decoder::new(packet);
        parse_request(&mut from)
            .filter(|_| from.end().is_some())
            .ok_or(Malformed(packet.len()))
    }
}

fn parse_request(from: &mut Decoder<'_>) -> Option<Request> {
    Some(match from.u8()? {
        1 => Request::Grant {
            peer: DomId(from.u16()?),
            pages: from.u32()?,
            access: access(from.u8()?)?,
        },
        2 => Request::Revoke { grant: from.u64()? },
        3 => Request::Map {
            peer: DomId(from.u16()?),
            access: access(from.u8()?)?,
            refs: from.list(|from| from.u32().map(GrantRef))?,
        },
        4 => Request::Unmap {
            mapping: from.u64()?,
        },
        5 => Request::Copy {
            peer: DomId(from.u16()?),
            goes_on: flag(from.u8()?)?,
            copies: from.list(parse_copy)?,
        },
        6 => Request::OpenEvents,
        7 => Request::BindInterdomain {
            peer: DomId(from.u16()?),
            remote: EvtchnPort(from.u32()?),
        },
        8 => Request::AllocUnbound {
            peer: DomId(from.u16()?),
        },
        9 => Request::Unbind {
            port: EvtchnPort(from.u32()?),
        },
        10 => Request::Route {
            port: EvtchnPort(from.u32()?),
        },
        11 => Request::CreateDomain {
            name: from.string()?,
        },
        12 => Request::DestroyDomain {
            domid: DomId(from.u16()?),
        },
        13 => Request::BindProcess {
            domid: DomId(from.u16()?),
        },
        14 => Request::Domains,
        _ => return None,
    })
}

fn emit_copy(to: &mut Encoder, copy: &PageCopy) {
    to.u32(copy.gref.0).u16(copy.offset);
    match &copy.data {
        CopyData::Read(len) => to.u8(0).u16(*len),
        CopyData::Write(bytes) => to.u8(1).bytes(bytes),
    };
}

fn parse_copy(from: &mut Decoder<'_>) -> Option<PageCopy> {
    Some(PageCopy {
        gref: GrantRef(from.u32()?),
        offset: from.u16()?,
        data: match from.u8()? {
            0 => CopyData::Read(from.u16()?),
            1 => CopyData::Write(from.bytes()?.to_vec()),
            _ => return None,
        },
    })
}

fn flag(code: u8) -> Option<bool> {
    match code {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn access_code(access: Access) -> u8 {
    match access {
        Access::Read => 0,
        Access::Write => 1,
    }
}

fn access(code: u8) -> Option<Access> {
    match code {
        0 => Some(Access::Read),
        1 => Some(Access::Write),
        _ => None,
    }
}
