//! Event-channel ports of all domains: who is connected to whom.
//!
//! As in Xen: a port is unbound and waits for one domain, or connected. When one end is closed,
//! by a call or by a death, the other is unbound again and can be bound once more; it is not told.

use std::collections::BTreeMap;

use rustix::io::Errno;
use xen_hal::hosted::PORTS;
use xen_types::{DomId, EvtchnPort};

/// A port as all domains together know it.
pub(crate) type Place = (DomId, EvtchnPort);

/// Every port that is taken.
#[derive(Debug, Default)]
pub(crate) struct Ports(BTreeMap<Place, Port>);

#[derive(Debug)]
struct Port {
    /// The connection that it belongs to.
    owner: u64,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Waits for this domain.
    Unbound(DomId),
    Connected(Place),
}

impl Ports {
    /// A port of `domid` that `peer` may bind to. ENOSPC when all are taken.
    pub(crate) fn alloc_unbound(
        &mut self,
        domid: DomId,
        owner: u64,
        peer: DomId,
    ) -> Result<EvtchnPort, Errno> {
        self.insert(domid, owner, End::Unbound(peer))
    }

    /// Connects a new port of `domid` to `remote`. EINVAL unless that waits for this domain.
    pub(crate) fn bind_interdomain(
        &mut self,
        domid: DomId,
        owner: u64,
        remote: Place,
    ) -> Result<EvtchnPort, Errno> {
        let waits = self.0.get(&remote).map(|port| port.end);
        if waits != Some(End::Unbound(domid)) {
            return Err(Errno::INVAL);
        }
        let port = self.insert(domid, owner, End::Connected(remote))?;
        if let Some(remote) = self.0.get_mut(&remote) {
            remote.end = End::Connected((domid, port));
        }
        Ok(port)
    }

    /// Closes a port of connection `owner`; returns the other end, which is unbound now. ENOTCONN, as
    /// Linux's device, if it is not one of its ports.
    pub(crate) fn close(
        &mut self,
        domid: DomId,
        owner: u64,
        port: EvtchnPort,
    ) -> Result<Option<Place>, Errno> {
        self.owned(domid, owner, port)?;
        let closed = self.0.remove(&(domid, port)).map(|port| port.end);
        let Some(End::Connected(other)) = closed else {
            return Ok(None);
        };
        if let Some(port) = self.0.get_mut(&other) {
            port.end = End::Unbound(domid);
        }
        Ok(Some(other))
    }

    /// The other end of a port of connection `owner`; `None` for a dead end.
    pub(crate) fn peer(
        &self,
        domid: DomId,
        owner: u64,
        port: EvtchnPort,
    ) -> Result<Option<Place>, Errno> {
        Ok(match self.owned(domid, owner, port)?.end {
            End::Connected(other) => Some(other),
            End::Unbound(_) => None,
        })
    }

    /// The connection that a port belongs to.
    pub(crate) fn owner(&self, place: Place) -> Option<u64> {
        self.0.get(&place).map(|port| port.owner)
    }

    /// The ports of a domain.
    pub(crate) fn of(&self, domid: DomId) -> impl Iterator<Item = (EvtchnPort, u64)> {
        let all = (domid, EvtchnPort(0))..=(domid, EvtchnPort(u32::MAX));
        self.0
            .range(all)
            .map(|((_, port), entry)| (*port, entry.owner))
    }

    fn owned(&self, domid: DomId, owner: u64, port: EvtchnPort) -> Result<&Port, Errno> {
        let port = self.0.get(&(domid, port));
        port.filter(|port| port.owner == owner)
            .ok_or(Errno::NOTCONN)
    }

    /// Takes the lowest free number, as Xen does; 0 is never one.
    fn insert(&mut self, domid: DomId, owner: u64, end: End) -> Result<EvtchnPort, Errno> {
        let mut free = 1;
        for (port, _) in self.of(domid) {
            if port.0 != free {
                break;
            }
            free += 1;
        }
        if free as usize >= PORTS {
            return Err(Errno::NOSPC);
        }
        let port = EvtchnPort(free);
        self.0.insert((domid, port), Port { owner, end });
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(1);
    const OWNER: u64 = 10;
    const BACKEND: u64 = 20;

    fn waiting() -> (Ports, EvtchnPort) {
        let mut ports = Ports::default();
        let port = ports.alloc_unbound(GUEST, OWNER, DomId::DOM0).unwrap();
        (ports, port)
    }

    #[test]
    fn only_the_named_domain_binds_and_only_once() {
        let (mut ports, port) = waiting();
        let bind =
            |ports: &mut Ports, domid, port| ports.bind_interdomain(domid, BACKEND, (GUEST, port));
        assert_eq!(bind(&mut ports, DomId(2), port), Err(Errno::INVAL));
        assert_eq!(
            bind(&mut ports, DomId::DOM0, EvtchnPort(9)),
            Err(Errno::INVAL)
        );
        let ours = bind(&mut ports, DomId::DOM0, port).unwrap();
        assert_eq!(bind(&mut ports, DomId::DOM0, port), Err(Errno::INVAL));
        let peer = ports.peer(GUEST, OWNER, port);
        assert_eq!(peer, Ok(Some((DomId::DOM0, ours))));
    }

    #[test]
    fn the_other_end_of_a_closed_port_can_be_bound_again() {
        let (mut ports, port) = waiting();
        for _ in 0..3 {
            let ours = ports
                .bind_interdomain(DomId::DOM0, BACKEND, (GUEST, port))
                .unwrap();
            assert_eq!(ours, EvtchnPort(1), "the same number again");
            let closed = ports.close(DomId::DOM0, BACKEND, ours);
            assert_eq!(closed, Ok(Some((GUEST, port))));
            assert_eq!(ports.peer(GUEST, OWNER, port), Ok(None));
        }
    }

    #[test]
    fn the_binding_end_waits_for_the_other_domain_too() {
        let (mut ports, port) = waiting();
        let ours = ports
            .bind_interdomain(DomId::DOM0, BACKEND, (GUEST, port))
            .unwrap();
        ports.close(GUEST, OWNER, port).unwrap();
        let again = ports.bind_interdomain(GUEST, OWNER, (DomId::DOM0, ours));
        assert_eq!(again, Ok(port));
    }

    #[test]
    fn ports_of_another_connection_are_not_ours() {
        let (mut ports, port) = waiting();
        assert_eq!(ports.close(GUEST, BACKEND, port), Err(Errno::NOTCONN));
        assert_eq!(ports.peer(GUEST, BACKEND, port), Err(Errno::NOTCONN));
        assert_eq!(ports.close(DomId(2), OWNER, port), Err(Errno::NOTCONN));
    }

    #[test]
    fn ports_of_a_domain_are_bounded() {
        let (mut ports, first) = waiting();
        assert_eq!(first, EvtchnPort(1));
        for _ in 2..PORTS {
            ports.alloc_unbound(GUEST, OWNER, DomId::DOM0).unwrap();
        }
        let more = ports.alloc_unbound(GUEST, OWNER, DomId::DOM0);
        assert_eq!(more, Err(Errno::NOSPC));
        ports.close(GUEST, OWNER, EvtchnPort(77)).unwrap();
        let again = ports.alloc_unbound(GUEST, OWNER, DomId::DOM0);
        assert_eq!(again, Ok(EvtchnPort(77)));
    }
}
