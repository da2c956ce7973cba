//! The ioreq server: a device model's process in dom0, as QEMU's is. It sleeps until an event
//! channel, the device or the end wakes it; guest memory is all mapped, as by a foreign mapping.
//!
//! Without an interrupt line, a read of InterruptStatus waits for what it would have announced.

use std::os::unix::net::UnixStream;

use anyhow::bail;
use guest_memory::FlatSpace;
use rustix::event::{PollFd, PollFlags, poll};
use virtio_devices::{DeviceEvent, DeviceModel, Progress};
use virtqueue::{DeviceQueue, RingFeatures};
use xen_hal::EventChannels;
use xen_types::EvtchnPort;

use super::ioreq::{Asked, Request, Slot};
use super::registers::{Effect, INTERRUPT_STATUS, Registers};

/// Buffers that the device serves before ports are looked at again.
const BUDGET: usize = 64;
const INDIRECT_DESC: u128 = 1 << 28;
const EVENT_IDX: u128 = 1 << 29;

/// The server's ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// Requests one way, answers the other.
    pub(super) ioreq: EvtchnPort,
    /// Stands for the interrupt line, if there is one.
    pub(super) interrupt: Option<EvtchnPort>,
    /// Queue notifications that nobody waits for.
    pub(super) notify: Option<EvtchnPort>,
}

/// A device and the registers before it.
#[derive(Debug)]
pub(super) struct Server {
    registers: Registers,
    /// The guest's address of the first one.
    base: u64,
    /// A read of InterruptStatus is not answered yet.
    is_awaited: bool,
    model: Box<dyn DeviceModel>,
    /// Queues that run or end.
    running: u16,
    events: Vec<DeviceEvent>,
    space: FlatSpace,
    slot: Slot,
    channels: EventChannels,
    ports: Ports,
}

impl Server {
    pub(super) fn new(
        model: Box<dyn DeviceModel>,
        base: u64,
        space: FlatSpace,
        slot: Slot,
        channels: EventChannels,
        ports: Ports,
    ) -> Self {
        Self {
            registers: Registers::new(model.describe()),
            base,
            is_awaited: false,
            model,
            running: 0,
            events: Vec::new(),
            space,
            slot,
            channels,
            ports,
        }
    }

    /// Serves until `stop` is readable.
    pub(super) fn run(mut self, stop: &UnixStream) -> anyhow::Result<()> {
        let mut ports = Vec::new();
        while !self.sleep(stop)? {
            self.channels.pending(&mut ports)?;
            self.channels.unmask(&ports)?;
            for port in ports.drain(..) {
                if Some(port) == self.ports.notify {
                    self.model.kick(0);
                } else if port == self.ports.ioreq
                    && let Some(asked) = self.slot.take()?
                {
                    match asked {
                        Asked::Access(request) => self.serve(request)?,
                        // The memory of a device's driver stays.
                        Asked::Invalidate => self.answer(0)?,
                    }
                }
            }
            while self.poll_model()? == Progress::More {}
        }
        Ok(())
    }

    /// True: it is the end.
    fn sleep(&self, stop: &UnixStream) -> anyhow::Result<bool> {
        let channels = PollFd::new(&self.channels, PollFlags::IN);
        let stop = PollFd::new(stop, PollFlags::IN);
        // A device without a descriptor of its own is woken by its driver alone.
        let mut all = match self.model.wake_fd() {
            Some(wake) => vec![
                stop,
                channels,
                PollFd::from_borrowed_fd(wake, PollFlags::IN),
            ],
            None => vec![stop, channels],
        };
        rustix::io::retry_on_intr(|| poll(&mut all, None))?;
        Ok(all.first().is_some_and(|stop| !stop.revents().is_empty()))
    }

    fn serve(&mut self, request: Request) -> anyhow::Result<()> {
        let offset = request.addr.wrapping_sub(self.base);
        let data = match request.write {
            None => self.registers.read(offset, request.size),
            Some(value) => {
                self.write(offset, value)?;
                0
            }
        };
        let is_status = request.write.is_none() && offset == INTERRUPT_STATUS;
        self.is_awaited = is_status && data == 0 && self.ports.interrupt.is_none();
        match self.is_awaited {
            true => Ok(()),
            false => self.answer(data),
        }
    }

    fn answer(&self, data: u32) -> anyhow::Result<()> {
        self.slot.respond(data)?;
        Ok(self.channels.notify(self.ports.ioreq)?)
    }

    fn write(&mut self, offset: u64, value: u32) -> anyhow::Result<()> {
        match self.registers.write(offset, value) {
            Effect::None => {}
            Effect::Reset => self.stop_queues()?,
            Effect::Notify(index) => self.model.kick(index),
            Effect::Start(queues, features) => {
                let ring = RingFeatures {
                    indirect: features & INDIRECT_DESC != 0,
                    event_idx: features & EVENT_IDX != 0,
                };
                for (index, layout) in queues {
                    let queue = DeviceQueue::new(&self.space, layout, ring)?;
                    self.model.start_queue(index, queue, features);
                    self.running += 1;
                }
            }
        }
        Ok(())
    }

    fn poll_model(&mut self) -> anyhow::Result<Progress> {
        let progress = self.model.poll(&self.space, BUDGET, &mut self.events);
        let mut rises = false;
        for event in self.events.drain(..) {
            match event {
                DeviceEvent::Used(_) => rises |= self.registers.used(),
                DeviceEvent::Stopped(..) => self.running -= 1,
                DeviceEvent::NeedsReset(reason) => bail!("the driver broke a queue: {reason}"),
                DeviceEvent::ConfigChanged { .. } | DeviceEvent::ConfigWritten { .. } => {}
            }
        }
        if rises && let Some(interrupt) = self.ports.interrupt {
            self.channels.notify(interrupt)?;
        }
        if rises && std::mem::take(&mut self.is_awaited) {
            self.answer(self.registers.read(INTERRUPT_STATUS, 4))?;
        }
        Ok(progress)
    }

    /// Returns when nothing of the queues is touched any more.
    fn stop_queues(&mut self) -> anyhow::Result<()> {
        for index in 0..self.running {
            self.model.stop_queue(index);
        }
        loop {
            self.poll_model()?;
            match (self.running, self.model.wake_fd()) {
                (0, _) => return Ok(()),
                (_, Some(wake)) => {
                    let mut wake = [PollFd::from_borrowed_fd(wake, PollFlags::IN)];
                    rustix::io::retry_on_intr(|| poll(&mut wake, None))?;
                }
                (_, None) => {}
            }
        }
    }
}
