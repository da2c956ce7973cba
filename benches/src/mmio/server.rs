//! The ioreq server: a device model's process in dom0, as QEMU's is. It sleeps until an event
//! channel, the device or the end wakes it; guest memory is all mapped, as by a foreign mapping.

use std::os::unix::net::UnixStream;

use anyhow::bail;
use guest_memory::FlatSpace;
use rustix::event::{PollFd, PollFlags, poll};
use virtio_devices::{DeviceEvent, DeviceModel, Progress};
use virtqueue::{DeviceQueue, RingFeatures};
use xen_hal::EventChannels;

use super::Ports;
use super::ioreq::{Request, Slot};
use super::registers::{Effect, Registers};

/// Buffers that the device serves before ports are looked at again.
const BUDGET: usize = 64;
const INDIRECT_DESC: u128 = 1 << 28;
const EVENT_IDX: u128 = 1 << 29;

/// A device and the registers before it.
#[derive(Debug)]
pub(super) struct Server {
    registers: Registers,
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
        space: FlatSpace,
        slot: Slot,
        channels: EventChannels,
        ports: Ports,
    ) -> Self {
        Self {
            registers: Registers::new(model.describe()),
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
                if port == self.ports.notify {
                    self.model.kick(0);
                } else if port == self.ports.ioreq
                    && let Some(request) = self.slot.take()?
                {
                    let data = self.access(request)?;
                    self.slot.respond(data)?;
                    self.channels.notify(self.ports.ioreq)?;
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

    /// What a read finds; 0 for a write.
    fn access(&mut self, request: Request) -> anyhow::Result<u32> {
        let Some(value) = request.write else {
            return Ok(self.registers.read(request.addr, request.size));
        };
        match self.registers.write(request.addr, value) {
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
        Ok(0)
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
        if rises {
            self.channels.notify(self.ports.interrupt)?;
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
