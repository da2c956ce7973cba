//! One device on a connection: does what [`virtio_msg`]'s device side asks of its owner, with a
//! device model (virtio-msg sections 5 and 7).
//!
//! Leases on the rings are taken when SET_VQUEUE is accepted, and gone before the answer to
//! RESET_VQUEUE or status 0 (binding section 6, the memory contract).

use guest_memory::AddressSpace;
use virtio_devices::{ConfigWrite, DeviceEvent, DeviceModel, Progress, ResetReason};
use virtio_msg::{Action, Completion, Features, QueueSetup};
use virtqueue::{DeviceQueue, QueueLayout, RingFeatures, SetupError};

/// A queue of the device.
#[derive(Debug)]
enum QueueSlot {
    /// Not configured: nothing is held.
    Off,
    /// Accepted, leases are held, not running yet.
    Ready(Box<DeviceQueue>),
    /// The model has it.
    Running,
    /// The model was asked to stop, and may have I/O in flight.
    Stopping,
}

/// What the session passes on.
#[derive(Debug)]
pub(crate) enum SlotEvent {
    /// Hand this to the device side.
    Complete(Completion),
    /// The queue has used buffers and the driver wants to know.
    Used(u16),
    /// The device changed its configuration.
    ConfigChanged {
        /// First byte.
        offset: u32,
        /// The bytes now.
        data: Vec<u8>,
    },
    /// The driver broke a queue.
    NeedsReset(ResetReason),
    /// The driver asked for a queue that cannot be.
    Refused {
        /// The queue.
        index: u16,
        /// Why.
        error: SetupError,
    },
}

/// The device's queues on this connection.
#[derive(Debug)]
pub(crate) struct Slot {
    queues: Vec<QueueSlot>,
    /// Status 0, or the end of the connection, waits until no queue runs.
    resetting: bool,
    /// The device leaves the bus: no queue is taken any more.
    leaving: bool,
    /// The model has not yet reported the end of a write to configuration space.
    writing: bool,
    events: Vec<DeviceEvent>,
}

impl Slot {
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            queues: (0..queues).map(|_| QueueSlot::Off).collect(),
            resetting: false,
            leaving: false,
            writing: false,
            events: Vec::new(),
        }
    }

    /// Does what the device side asks for; answers at once if it can.
    pub(crate) fn act(
        &mut self,
        action: Action,
        features: Features,
        model: &mut dyn DeviceModel,
        space: &impl AddressSpace,
        out: &mut Vec<SlotEvent>,
    ) {
        match action {
            Action::CheckQueue { index, setup } => {
                model.negotiated(features.0, &mut self.events);
                self.pass_on(out);
                let accepted = self.check(index, &setup, features, space, out);
                out.push(SlotEvent::Complete(Completion::QueueChecked {
                    index,
                    accepted,
                }));
            }
            Action::Start { queues } => {
                for index in queues {
                    self.start(index, features, model);
                }
                out.push(SlotEvent::Complete(Completion::Started { running: true }));
            }
            Action::StopQueue { index } => match self.queue(index) {
                Some(queue @ QueueSlot::Running) => {
                    *queue = QueueSlot::Stopping;
                    model.stop_queue(index);
                }
                Some(QueueSlot::Stopping) => {}
                Some(queue) => {
                    *queue = QueueSlot::Off;
                    out.push(SlotEvent::Complete(Completion::QueueStopped { index }));
                }
                None => out.push(SlotEvent::Complete(Completion::QueueStopped { index })),
            },
            Action::Reset => {
                self.begin_reset(model);
                self.end_reset(model, out);
            }
            Action::WriteConfig { offset, data } => {
                let accepted = match model.write_config(offset, &data, features.0) {
                    ConfigWrite::Accepted => true,
                    ConfigWrite::Refused => false,
                    ConfigWrite::Later => {
                        self.writing = true;
                        return;
                    }
                };
                out.push(SlotEvent::Complete(Completion::ConfigChecked { accepted }));
            }
            Action::Kick { index } => model.kick(index),
        }
    }

    /// Lets the model work; at most `budget` buffers.
    pub(crate) fn poll(
        &mut self,
        model: &mut dyn DeviceModel,
        space: &dyn AddressSpace,
        budget: usize,
        out: &mut Vec<SlotEvent>,
    ) -> Progress {
        let progress = model.poll(space, budget, &mut self.events);
        self.pass_on(out);
        self.end_reset(model, out);
        progress
    }

    /// Says what the model's events mean for the device side.
    fn pass_on(&mut self, out: &mut Vec<SlotEvent>) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                DeviceEvent::Used(index) => out.push(SlotEvent::Used(index)),
                DeviceEvent::ConfigChanged { offset, data } => {
                    out.push(SlotEvent::ConfigChanged { offset, data });
                }
                DeviceEvent::ConfigWritten { accepted } => {
                    self.writing = false;
                    out.push(SlotEvent::Complete(Completion::ConfigChecked { accepted }));
                }
                DeviceEvent::NeedsReset(reason) => out.push(SlotEvent::NeedsReset(reason)),
                DeviceEvent::Stopped(index, _) => {
                    if let Some(queue) = self.queue(index) {
                        *queue = QueueSlot::Off;
                    }
                    if !self.resetting {
                        out.push(SlotEvent::Complete(Completion::QueueStopped { index }));
                    }
                }
            }
        }
        self.events = events;
    }

    /// Stops every queue; [`Slot::poll`] finds out when the last one has ended.
    pub(crate) fn begin_reset(&mut self, model: &mut dyn DeviceModel) {
        self.resetting = true;
        for (index, queue) in (0..).zip(&mut self.queues) {
            match queue {
                QueueSlot::Running => {
                    *queue = QueueSlot::Stopping;
                    model.stop_queue(index);
                }
                QueueSlot::Ready(_) => *queue = QueueSlot::Off,
                QueueSlot::Off | QueueSlot::Stopping => {}
            }
        }
    }

    /// Takes no queue from now on: the device is about to leave the bus.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
    }

    /// Whether nothing of the driver's memory is held for this device, and no I/O is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        let off = |queue| matches!(queue, &QueueSlot::Off);
        !self.writing && self.queues.iter().all(off)
    }

    fn end_reset(&mut self, model: &mut dyn DeviceModel, out: &mut Vec<SlotEvent>) {
        if self.resetting && self.is_idle() {
            self.resetting = false;
            model.reset(&mut self.events);
            self.pass_on(out);
            out.push(SlotEvent::Complete(Completion::ResetDone));
        }
    }

    fn check(
        &mut self,
        index: u16,
        setup: &QueueSetup,
        features: Features,
        space: &impl AddressSpace,
        out: &mut Vec<SlotEvent>,
    ) -> bool {
        if self.leaving {
            return false;
        }
        let layout = QueueLayout {
            size: setup.size,
            desc: setup.desc,
            avail: setup.driver,
            used: setup.device,
        };
        let ring = RingFeatures {
            indirect: features.contains(Features::INDIRECT_DESC),
            event_idx: features.contains(Features::EVENT_IDX),
        };
        match DeviceQueue::new(space, layout, ring) {
            Ok(ready) => match self.queue(index) {
                Some(queue @ QueueSlot::Off) => {
                    *queue = QueueSlot::Ready(Box::new(ready));
                    true
                }
                _ => false,
            },
            Err(error) => {
                out.push(SlotEvent::Refused { index, error });
                false
            }
        }
    }

    fn start(&mut self, index: u16, features: Features, model: &mut dyn DeviceModel) {
        if let Some(queue @ QueueSlot::Ready(_)) = self.queue(index)
            && let QueueSlot::Ready(ready) = std::mem::replace(queue, QueueSlot::Running)
        {
            model.start_queue(index, *ready, features.0);
        }
    }

    fn queue(&mut self, index: u16) -> Option<&mut QueueSlot> {
        self.queues.get_mut(usize::from(index))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use guest_memory::{Area, FlatSpace};
    use virtio_devices::DeviceDescription;

    use super::*;

    /// A device without queues, which ends a write to configuration space when it is let.
    #[derive(Debug, Default)]
    struct Slow {
        may_end: bool,
        resets: usize,
    }

    impl DeviceModel for Slow {
        fn describe(&self) -> DeviceDescription {
            unreachable!("a slot asks its device for nothing")
        }

        fn start_queue(&mut self, _: u16, _: DeviceQueue, _: u128) {}

        fn stop_queue(&mut self, _: u16) {}

        fn kick(&mut self, _: u16) {}

        fn poll(&mut self, _: &dyn AddressSpace, _: usize, out: &mut Vec<DeviceEvent>) -> Progress {
            if self.may_end {
                out.push(DeviceEvent::ConfigWritten { accepted: true });
            }
            Progress::Idle
        }

        fn reset(&mut self, _: &mut Vec<DeviceEvent>) {
            self.resets += 1;
        }

        fn write_config(&mut self, _: u32, _: &[u8], _: u128) -> ConfigWrite {
            ConfigWrite::Later
        }

        fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    #[test]
    fn the_end_of_a_connection_waits_for_a_write_to_configuration_space() {
        let space = FlatSpace::new(0, &Area::anonymous(4096).unwrap());
        let (mut slot, mut model, mut out) = (Slot::new(0), Slow::default(), Vec::new());
        let write = Action::WriteConfig {
            offset: 32,
            data: vec![0],
        };
        slot.act(write, Features(0), &mut model, &space, &mut out);
        slot.begin_reset(&mut model);
        slot.poll(&mut model, &space, 64, &mut out);
        assert!(!slot.is_idle() && out.is_empty() && model.resets == 0);
        model.may_end = true;
        slot.poll(&mut model, &space, 64, &mut out);
        assert!(slot.is_idle() && model.resets == 1);
    }
}
