//! The queues of a device while they run: what is ready, what is in flight, what the driver has
//! yet to be told. The same for every device; what a buffer means is the device's business.

use guest_memory::AddressSpace;
use virtqueue::{Chain, DeviceQueue, QueueFault};

use crate::model::{DeviceEvent, ResetReason};

/// All queues of a device.
#[derive(Debug)]
pub(crate) struct Queues {
    /// `None`: does not run.
    slots: Vec<Option<RunningQueue>>,
}

impl Queues {
    /// So many queues, none of which runs.
    pub(crate) fn new(count: u16) -> Self {
        Self {
            slots: (0..count).map(|_| None).collect(),
        }
    }

    /// How many there are, running or not.
    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// See [`DeviceModel::start_queue`](crate::DeviceModel::start_queue).
    pub(crate) fn start(&mut self, index: u16, ring: DeviceQueue, features: u128) {
        match self.slots.get_mut(usize::from(index)) {
            Some(slot @ None) => *slot = Some(RunningQueue::new(index, ring, features)),
            _ => tracing::error!(index, "a queue was started that cannot be"),
        }
    }

    /// See [`DeviceModel::stop_queue`](crate::DeviceModel::stop_queue).
    pub(crate) fn stop(&mut self, index: u16) {
        if let Some(queue) = self.get_mut(index) {
            queue.stopping = true;
            queue.ready = false;
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
            if let Some(queue) = slot.take_if(|queue| queue.stopping && queue.in_flight == 0) {
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
}

impl RunningQueue {
    fn new(index: u16, ring: DeviceQueue, features: u128) -> Self {
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
        self.ready
    }

    /// Its turn begins: it will be looked at without being asked to.
    pub(crate) fn begin_turn(&mut self) {
        self.ring.disarm();
    }

    /// Takes a buffer into `chain`; false: there is none now. Each one taken is given back.
    pub(crate) fn pop(
        &mut self,
        space: &dyn AddressSpace,
        chain: &mut Chain,
        out: &mut Vec<DeviceEvent>,
    ) -> bool {
        match self.ring.pop(space, chain) {
            Ok(true) => {
                self.in_flight += 1;
                return true;
            }
            Ok(false) => self.ready = self.ring.rearm(),
            Err(fault) => self.fault(fault, out),
        }
        false
    }

    /// Gives a buffer back, to be published later with others.
    pub(crate) fn give_back(&mut self, head: u16, written: u32, out: &mut Vec<DeviceEvent>) {
        self.in_flight -= 1;
        match self.ring.push_used(head, written) {
            Ok(()) => self.unpublished = true,
            Err(fault) => self.fault(fault, out),
        }
    }

    /// Shows the driver what was given back.
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
        if !self.failed {
            self.failed = true;
            out.push(DeviceEvent::NeedsReset(reason));
        }
    }

    fn fault(&mut self, fault: QueueFault, out: &mut Vec<DeviceEvent>) {
        let queue = self.index;
        self.fail(ResetReason::Queue { queue, fault }, out);
    }
}
