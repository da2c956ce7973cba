//! Event channels: ports of this domain, all behind one file descriptor, with the
//! semantics of `/dev/xen/evtchn` on both platforms.
//!
//! An event is a bit, not a count. A port that [`EventChannels::pending`] has
//! reported is masked until [`EventChannels::unmask`]; an event that came in between is
//! reported after it. Sending into a dead end succeeds and does nothing. Binding makes
//! the new end pending at once, and does not wake the other side.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use xen_types::{DomId, EvtchnPort};

use crate::{EvtchnError, hosted, xen};

/// Every port that was bound through it; dropping it closes them all.
#[derive(Debug)]
pub struct EventChannels(Inner);

#[derive(Debug)]
enum Inner {
    Xen(xen::Evtchn),
    Hosted(hosted::Events),
}

impl EventChannels {
    pub(crate) fn xen(evtchn: xen::Evtchn) -> Self {
        Self(Inner::Xen(evtchn))
    }

    pub(crate) fn hosted(events: hosted::Events) -> Self {
        Self(Inner::Hosted(events))
    }

    /// Connects to an unbound port of `peer` that waits for this domain. Returns our end, pending.
    pub fn bind_interdomain(
        &self,
        peer: DomId,
        remote: EvtchnPort,
    ) -> Result<EvtchnPort, EvtchnError> {
        match &self.0 {
            Inner::Xen(evtchn) => evtchn.bind_interdomain(peer, remote),
            Inner::Hosted(events) => events.bind_interdomain(peer, remote),
        }
        .map_err(|source| EvtchnError::from_call(peer, Some(remote), "binding", source))
    }

    /// A new port that `peer` may bind to, now and again after its end died.
    pub fn alloc_unbound(&self, peer: DomId) -> Result<EvtchnPort, EvtchnError> {
        match &self.0 {
            Inner::Xen(evtchn) => evtchn.alloc_unbound(peer),
            Inner::Hosted(events) => events.alloc_unbound(peer),
        }
        .map_err(|source| EvtchnError::from_call(peer, None, "allocating a port", source))
    }

    /// Sends an event. `ENOTCONN`: the port is not one of these.
    pub fn notify(&self, port: EvtchnPort) -> io::Result<()> {
        match &self.0 {
            Inner::Xen(evtchn) => evtchn.notify(port),
            Inner::Hosted(events) => events.notify(port),
        }
    }

    /// Closes a port. The other end becomes unbound again. `ENOTCONN`: the port is not one of these.
    pub fn unbind(&self, port: EvtchnPort) -> io::Result<()> {
        match &self.0 {
            Inner::Xen(evtchn) => evtchn.unbind(port),
            Inner::Hosted(events) => events.unbind(port),
        }
    }

    /// Appends the ports that have an event, and masks them. Never waits; empties the
    /// descriptor, so that an edge-triggered poller hears of the next event.
    pub fn pending(&mut self, out: &mut Vec<EvtchnPort>) -> io::Result<()> {
        match &mut self.0 {
            Inner::Xen(evtchn) => evtchn.pending(out),
            Inner::Hosted(events) => events.pending(out),
        }
    }

    /// Lets the ports report events again; ports that are not ours are ignored.
    pub fn unmask(&self, ports: &[EvtchnPort]) -> io::Result<()> {
        match &self.0 {
            Inner::Xen(evtchn) => evtchn.unmask(ports),
            Inner::Hosted(events) => events.unmask(ports),
        }
    }
}

impl AsFd for EventChannels {
    /// Readable while a port has an unreported event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Inner::Xen(evtchn) => evtchn.as_fd(),
            Inner::Hosted(events) => events.as_fd(),
        }
    }
}
