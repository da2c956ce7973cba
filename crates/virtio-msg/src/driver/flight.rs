//! Requests of one driver side: not sent yet, or sent and not answered; each with its deadline.

use crate::instant::Instant;
use crate::wire::{MsgId, Request};
use alloc::collections::{BTreeMap, VecDeque};

/// Names a request between [`DriverSide`](super::DriverSide) and its bus. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

#[derive(Debug, Default)]
pub(super) struct Flight {
    next: u64,
    unsent: VecDeque<(RequestId, Request<'static>)>,
    /// Every request whose answer matters, sent or not.
    awaited: BTreeMap<RequestId, (Request<'static>, Instant)>,
}

impl Flight {
    /// Queues a request whose answer must come before `deadline`.
    pub(super) fn ask(&mut self, request: Request<'static>, deadline: Instant) {
        let id = self.send(request.clone());
        self.awaited.insert(id, (request, deadline));
    }

    /// Queues a request whose answer does not matter.
    pub(super) fn send(&mut self, request: Request<'static>) -> RequestId {
        let id = RequestId(self.next);
        self.next = self.next.wrapping_add(1);
        self.unsent.push_back((id, request));
        id
    }

    pub(super) fn poll(&mut self) -> Option<(RequestId, Request<'static>)> {
        self.unsent.pop_front()
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The request that was answered, if anybody waits for it.
    pub(super) fn answered(&mut self, id: RequestId) -> Option<Request<'static>> {
        self.awaited.remove(&id).map(|(request, _)| request)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Nothing is sent or waited for any more; answers under way will find nobody.
    pub(super) fn forget_all(&mut self) {
        self.unsent.clear();
        self.awaited.clear();
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.awaited.values().map(|(_, deadline)| *deadline).min()
    }

    /// A request whose time is over.
    pub(super) fn expired(&self, now: Instant) -> Option<MsgId> {
        self.awaited
            .values()
            .find(|(_, deadline)| *deadline <= now)
            .map(|(request, _)| request.msg_id())
    }
}
