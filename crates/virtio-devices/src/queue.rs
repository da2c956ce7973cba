//! The queues of a device while they run: what is ready, what is in flight, what the driver has
//! yet to be told. The same for every device; what a buffer means is the device's business.

use guest_memory::{Access, AddressSpace};
use virtqueue::{Chain, DeviceQueue, QueueFault, Segment};

use crate::borrowed::{Borrowed, Took};
use crate::model::{DeviceEvent, ResetReason};

/// All queues of a device.
#[derive(Debug)]
pub(crate) struct Queues {
    /// `None`: does not run.
    slots: Vec<Option<RunningQueue>>,
    /// What stands in the last byte of a buffer that failed, if the device has a status there.
    failure: Option<u8>,
}

impl Queues {
    /// So many queues, none of which runs. `failure` stands in the last byte of a buffer that
    /// failed, if the device has a status there.
    pub(crate) fn new(count: u16, failure: Option<u8>) -> Self {
        Self {
            slots: (0..count).map(|_| None).collect(),
            failure,
        }
    }

    /// How many there are, running or not.
    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// See [`DeviceModel::start_queue`](crate::DeviceModel::start_queue).
    pub(crate) fn start(&mut self, index: u16, ring: DeviceQueue, features: u128) {
        match self.slots.get_mut(usize::from(index)) {
            Some(slot @ None) => {
                *slot = Some(RunningQueue::new(index, ring, features, self.failure));
            }
            _ => tracing::error!(index, "a queue was started that cannot be"),
        }
    }

    /// See [`DeviceModel::stop_queue`](crate::DeviceModel::stop_queue).
    pub(crate) fn stop(&mut self, index: u16) {
        if let Some(queue) = self.get_mut(index) {
            queue.stopping = true;
            queue.ready = false;
            queue.stalled = false;
            if let Some(borrowed) = &mut queue.borrowed {
                borrowed.cancel();
            }
        }
    }

    /// Before a poll serves: buffers that found no room may find some now.
    pub(crate) fn resume(&mut self) {
        for queue in self.iter_mut() {
            queue.ready |= std::mem::take(&mut queue.stalled);
        }
    }

    /// At the end of a poll: stores and shows the drivers what lies in borrowed memory.
    pub(crate) fn settle(&mut self, space: &dyn AddressSpace, out: &mut Vec<DeviceEvent>) {
        for queue in self.iter_mut() {
            queue.settle(space, out);
        }
    }

    /// See [`DeviceModel::kick`](crate::DeviceModel::kick).
    pub(crate) fn kick(&mut self, index: u16) {
        if let Some(queue) = self.get_mut(index) {
            queue.ready = !queue.stopping && !queue.failed;
        }
    }

    /// The queue, if it runs.
    pub(crate) fn get_mut(&mut self, index: u16) -> Option<&mut RunningQueue> {
        self.slots.get_mut(usize::from(index))?.as_mut()
    }

    /// Those that run.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut RunningQueue> {
        self.slots.iter_mut().flatten()
    }

    /// Whether any may have buffers that nobody has looked for.
    pub(crate) fn any_ready(&self) -> bool {
        self.slots.iter().flatten().any(RunningQueue::is_ready)
    }

    /// Ends the queues that were told to stop and owe nothing any more.
    pub(crate) fn report_stopped(&mut self, out: &mut Vec<DeviceEvent>) {
        for slot in &mut self.slots {
            if let Some(queue) = slot.take_if(|queue| queue.has_ended()) {
                out.push(DeviceEvent::Stopped(queue.index, queue.ring.state()));
            }
        }
    }
}

/// A queue that runs.
#[derive(Debug)]
pub(crate) struct RunningQueue {
    index: u16,
    ring: DeviceQueue,
    features: u128,
    /// There may be buffers that nobody has looked for.
    ready: bool,
    stopping: bool,
    failed: bool,
    /// Used entries were written that are not published.
    unpublished: bool,
    /// Buffers taken and not given back.
    in_flight: usize,
    /// Buffers in transient memory, if the driver may name such.
    borrowed: Option<Borrowed>,
    /// The next one found no room.
    stalled: bool,
    /// See [`Queues::new`].
    failure: Option<u8>,
}

impl RunningQueue {
    fn new(index: u16, ring: DeviceQueue, features: u128, failure: Option<u8>) -> Self {
        Self {
            index,
            ring,
            features,
            // The driver may have filled it before DRIVER_OK, and not kick again.
            ready: true,
            stopping: false,
            failed: false,
            unpublished: false,
            in_flight: 0,
            borrowed: None,
            stalled: false,
            failure,
        }
    }

    /// Its number.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// What the driver accepted.
    pub(crate) fn features(&self) -> u128 {
        self.features
    }

    /// Whether it is worth a turn.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready || self.is_fetched()
    }

    /// Its turn begins: it will be looked at without being asked to.
    pub(crate) fn begin_turn(&mut self, space: &dyn AddressSpace) {
        self.ring.disarm();
        if self.borrowed.is_none() {
            self.borrowed = space.transient().map(Borrowed::new);
        }
    }

    /// Takes a buffer into `chain`; false: there is none now. Each one taken is given back.
    ///
    /// `each` is told of its segments as [`DeviceQueue::pop_each`] does, but not if its memory was
    /// lent: see [`RunningQueue::loan`].
    #[inline]
    pub(crate) fn pop(
        &mut self,
        space: &dyn AddressSpace,
        chain: &mut Chain,
        out: &mut Vec<DeviceEvent>,
        mut each: impl FnMut(Access, Segment),
    ) -> bool {
        if self.borrowed.is_some() {
            let taken = self.pop_borrowed(space, chain, out);
            if taken && self.loan(chain.head()).is_none() {
                for (access, segment) in chain.segments() {
                    each(access, segment);
                }
            }
            return taken;
        }
        match self.ring.pop_telling(space, chain, each) {
            Ok(true) => {
                self.in_flight += 1;
                return true;
            }
            Ok(false) => self.ready = self.ring.rearm(),
            Err(fault) => self.fault(fault, out),
        }
        false
    }

    /// What the addresses in the buffer of `head`, which was taken, mean, if its memory was lent;
    /// else they mean what they always do.
    pub(crate) fn loan(&self, head: u16) -> Option<&dyn AddressSpace> {
        let loan = self.borrowed.as_ref()?.loan(head)?;
        Some(loan)
    }

    /// Gives a buffer back, to be published later with others.
    pub(crate) fn give_back(&mut self, head: u16, written: u32, out: &mut Vec<DeviceEvent>) {
        self.in_flight -= 1;
        if let Some(borrowed) = &mut self.borrowed
            && borrowed.give_back(head, written)
        {
            return;
        }
        self.push_used(head, written, out);
    }

    fn push_used(&mut self, head: u16, written: u32, out: &mut Vec<DeviceEvent>) {
        match self.ring.push_used(head, written) {
            Ok(()) => self.unpublished = true,
            Err(fault) => self.fault(fault, out),
        }
    }

    /// Shows the driver what was given back, except what has yet to be stored: see
    /// [`Queues::settle`].
    pub(crate) fn publish(&mut self, out: &mut Vec<DeviceEvent>) {
        if self.unpublished {
            self.unpublished = false;
            if self.ring.publish() {
                out.push(DeviceEvent::Used(self.index));
            }
        }
        // Re-arming and publishing latch a fault without saying so.
        if let Some(fault) = self.ring.faulted().copied() {
            self.fault(fault, out);
        }
    }

    /// Takes nothing more; buffers in flight go on.
    pub(crate) fn fail(&mut self, reason: ResetReason, out: &mut Vec<DeviceEvent>) {
        self.ready = false;
        self.stalled = false;
        if !self.failed {
            self.failed = true;
            out.push(DeviceEvent::NeedsReset(reason));
        }
    }

    /// Takes as many buffers as one call fetches, if none is left of the last time, and gives one.
    fn pop_borrowed(
        &mut self,
        space: &dyn AddressSpace,
        chain: &mut Chain,
        out: &mut Vec<DeviceEvent>,
    ) -> bool {
        if self.ready && !self.is_fetched() {
            self.take_borrowed(space, out);
            if let Some(borrowed) = &mut self.borrowed {
                borrowed.exchange(self.failure);
                self.return_stored(out);
            }
        }
        let taken = self
            .borrowed
            .as_mut()
            .is_some_and(|borrowed| borrowed.next(chain));
        self.in_flight += usize::from(taken);
        taken
    }

    /// Stores what the device has given back and fetches what comes next, with one call.
    fn settle(&mut self, space: &dyn AddressSpace, out: &mut Vec<DeviceEvent>) {
        if !self.borrowed.as_ref().is_some_and(Borrowed::has_returned) {
            return;
        }
        if self.ready && !self.is_fetched() {
            self.take_borrowed(space, out);
        }
        if let Some(borrowed) = &mut self.borrowed {
            borrowed.exchange(self.failure);
        }
        self.return_stored(out);
        self.publish(out);
    }

    fn take_borrowed(&mut self, space: &dyn AddressSpace, out: &mut Vec<DeviceEvent>) {
        let Some(borrowed) = &mut self.borrowed else {
            return;
        };
        let took = borrowed.take(&mut self.ring, space);
        let none = !borrowed.has_next();
        match took {
            Ok(Took::All) if none => self.ready = self.ring.rearm(),
            Ok(Took::UpToRoom) if none => {
                self.ready = false;
                self.stalled = true;
            }
            Ok(_) => {}
            Err(fault) => self.fault(fault, out),
        }
    }

    /// Returns the heads of what was stored.
    fn return_stored(&mut self, out: &mut Vec<DeviceEvent>) {
        let Some(borrowed) = &mut self.borrowed else {
            return;
        };
        for back in borrowed.end_returned() {
            self.push_used(back.head, back.written, out);
            if back.unanswered {
                let (queue, head) = (self.index, back.head);
                self.fail(ResetReason::Status { queue, head }, out);
            }
        }
    }

    fn is_fetched(&self) -> bool {
        self.borrowed.as_ref().is_some_and(Borrowed::has_next)
    }

    fn has_ended(&self) -> bool {
        let stored = !self.borrowed.as_ref().is_some_and(Borrowed::has_returned);
        self.stopping && self.in_flight == 0 && stored
    }

    fn fault(&mut self, fault: QueueFault, out: &mut Vec<DeviceEvent>) {
        let queue = self.index;
        self.fail(ResetReason::Queue { queue, fault }, out);
    }
}
