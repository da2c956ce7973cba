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
    events: Vec<DeviceEvent>,
}

impl Slot {
    pub(crate) fn new(queues: usize) -> Self {
        Self {
            queues: (0..queues).map(|_| QueueSlot::Off).collect(),
            resetting: false,
            leaving: false,
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
                    ConfigWrite::Later => return,
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

    /// Whether nothing of the driver's memory is held for this device.
    pub(crate) fn is_idle(&self) -> bool {
        self.queues
            .iter()
            .all(|queue| matches!(queue, QueueSlot::Off))
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
