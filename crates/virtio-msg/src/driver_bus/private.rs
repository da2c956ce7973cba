//! Private requests of a driver end: queued, sent, answered or given up (binding section 6).

use crate::instant::Instant;
use crate::wire::MsgId;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// Names a private request of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrivateId(u64);

#[derive(Debug, Default)]
pub(super) struct PrivateRequests {
    next: u64,
    unsent: VecDeque<(PrivateId, MsgId, Vec<u8>)>,
    deadlines: BTreeMap<PrivateId, Instant>,
}

impl PrivateRequests {
    pub(super) fn ask(&mut self, msg_id: MsgId, payload: &[u8], deadline: Instant) -> PrivateId {
        let id = PrivateId(self.next);
        self.next += 1;
        self.unsent.push_back((id, msg_id, payload.to_vec()));
        self.deadlines.insert(id, deadline);
        id
    }

    pub(super) fn poll(&mut self) -> Option<(PrivateId, MsgId, Vec<u8>)> {
        self.unsent.pop_front()
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether somebody waits for the answer; nobody does afterwards.
    pub(super) fn answered(&mut self, id: PrivateId) -> bool {
        self.deadlines.remove(&id).is_some()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.values().min().copied()
    }

    /// The requests whose time is over. Those that were not sent never will be.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<PrivateId> {
        let late: Vec<PrivateId> = self
            .deadlines
            .extract_if(.., |_, deadline| *deadline <= now)
            .map(|(id, _)| id)
            .collect();
        self.unsent.retain(|(id, ..)| !late.contains(id));
        late
    }
}
