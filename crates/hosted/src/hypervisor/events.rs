//! Event channels as hypercalls: ports, control pages, the ways that events take.
//!
//! Sending itself does not pass here: see `xen_hal::hosted::ControlPage`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use xen_hal::hosted::wire::Reply;
use xen_hal::hosted::{ControlPage, Signal};
use xen_types::{DomId, EvtchnPort};

use super::{Answer, ConnectionId, Hypervisor};
use crate::evtchn::Place;
use crate::grants::sealed_memory;

/// The event channels of a connection: its control page (and the memory to share it), its eventfd.
#[derive(Debug)]
pub(super) struct Events {
    pub(super) control: ControlPage,
    memory: Arc<OwnedFd>,
    wake: Arc<OwnedFd>,
}

impl Hypervisor {
    pub(super) fn bind_interdomain(
        &mut self,
        domid: DomId,
        id: ConnectionId,
        remote: Place,
    ) -> Result<EvtchnPort, Errno> {
        if !self.is_alive(remote.0) {
            return Err(Errno::SRCH);
        }
        self.events(id)?;
        let port = self.ports.bind_interdomain(domid, id, remote)?;
        self.domain(domid)?.counters.evtchn_bind_interdomain += 1;
        self.begin_port(id, port);
        self.end_routes(remote);
        // What was sent into the dead end is not lost: the new end looks once.
        self.raise(id, port);
        Ok(port)
    }

    pub(super) fn alloc_unbound(
        &mut self,
        domid: DomId,
        id: ConnectionId,
        peer: DomId,
    ) -> Result<EvtchnPort, Errno> {
        self.events(id)?;
        let port = self.ports.alloc_unbound(domid, id, peer)?;
        self.domain(domid)?.counters.evtchn_alloc_unbound += 1;
        self.begin_port(id, port);
        Ok(port)
    }

    pub(super) fn open_events(&mut self, id: ConnectionId) -> Result<Answer, Errno> {
        let connection = self.connections.get_mut(&id).ok_or(Errno::BADF)?;
        if connection.events.is_some() {
            return Err(Errno::BUSY);
        }
        let memory = Arc::new(sealed_memory(ControlPage::LEN)?);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(rustix::event::eventfd(0, flags)?);
        let control = ControlPage::map(&*memory).map_err(|_| Errno::NOMEM)?;
        let fds = vec![Arc::clone(&memory), Arc::clone(&wake)];
        connection.events = Some(Events {
            control,
            memory,
            wake,
        });
        Ok(Answer {
            reply: Reply::Events,
            fds,
        })
    }

    pub(super) fn route(
        &self,
        domid: DomId,
        id: ConnectionId,
        port: EvtchnPort,
    ) -> Result<Answer, Errno> {
        let peer = self.ports.peer(domid, id, port)?;
        let epoch = self.events(id)?.control.epoch(port).ok_or(Errno::NOTCONN)?;
        let peer = peer.and_then(|place| {
            let events = self.events(self.ports.owner(place)?).ok()?;
            Some((place.1, events))
        });
        let fds =
            peer.map(|(_, events)| vec![Arc::clone(&events.memory), Arc::clone(&events.wake)]);
        Ok(Answer {
            reply: Reply::Route {
                epoch,
                peer: peer.map(|(port, _)| port),
            },
            fds: fds.unwrap_or_default(),
        })
    }

    /// Closes a port, and wakes the other side if it has an event that nobody signalled: a sender that
    /// is killed between setting the bit and the signal must not silence the port for ever.
    pub(super) fn close_port(
        &mut self,
        domid: DomId,
        owner: ConnectionId,
        port: EvtchnPort,
    ) -> Result<(), Errno> {
        let other = self.ports.close(domid, owner, port)?;
        self.begin_port(owner, port);
        if let Some(place) = other {
            self.end_routes(place);
            let owner = self
                .ports
                .owner(place)
                .and_then(|owner| self.events(owner).ok());
            if let Some(events) = owner.filter(|events| events.control.is_deliverable(place.1)) {
                wake(events);
            }
        }
        Ok(())
    }

    /// A port begins or ends: no event, no mask, no route of before.
    fn begin_port(&self, owner: ConnectionId, port: EvtchnPort) {
        if let Ok(events) = self.events(owner) {
            events.control.clear(port);
            events.control.bump_epoch(port);
        }
    }

    /// Whoever sends through this port must ask for the way again.
    fn end_routes(&self, place: Place) {
        let owner = self.ports.owner(place);
        if let Some(events) = owner.and_then(|owner| self.events(owner).ok()) {
            events.control.bump_epoch(place.1);
        }
    }

    fn raise(&self, owner: ConnectionId, port: EvtchnPort) {
        if let Ok(events) = self.events(owner)
            && events.control.send(port) == Signal::Needed
        {
            wake(events);
        }
    }

    fn events(&self, id: ConnectionId) -> Result<&Events, Errno> {
        let connection = self.connections.get(&id).ok_or(Errno::BADF)?;
        connection.events.as_ref().ok_or(Errno::BADF)
    }
}

/// A full eventfd is readable already.
fn wake(events: &Events) {
    if let Err(error) = rustix::io::write(&events.wake, &1_u64.to_ne_bytes())
        && error != Errno::AGAIN
    {
        tracing::error!(%error, "an eventfd cannot be written");
    }
}
