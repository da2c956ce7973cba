//! The guest's processor: it traps at each register access and stands still until the server has
//! answered; an interrupt that comes meanwhile waits.

use rustix::event::{PollFd, PollFlags, poll};
use xen_hal::EventChannels;
use xen_types::EvtchnPort;

use super::ioreq::{Request, Slot};
use super::registers::QUEUE_NOTIFY;

/// How a driver reaches registers, by their offsets.
pub(crate) trait Cpu {
    /// Reads `size` bytes: 1, 2 or 4.
    fn read(&mut self, offset: u64, size: u32) -> anyhow::Result<u32>;
    /// Writes 4 bytes.
    fn write(&mut self, offset: u64, value: u32) -> anyhow::Result<()>;
}

/// What the processor did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Register accesses; each one leaves the guest.
    pub(crate) traps: u64,
    /// Interrupts taken.
    pub(crate) interrupts: u64,
}

/// The processor's ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    /// Requests one way, answers the other.
    pub(super) ioreq: EvtchnPort,
    pub(super) interrupt: EvtchnPort,
    /// QUEUE_NOTIFY goes there, without the server's answer (ioeventfd), if there is one.
    pub(super) notify: Option<EvtchnPort>,
}

/// A register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// Offset.
    Read(u64),
    /// Offset and value.
    Write(u64, u32),
}

/// A processor of the hosted platform.
#[derive(Debug)]
pub(crate) struct Vcpu {
    slot: Slot,
    channels: EventChannels,
    ports: Ports,
    pending: Vec<EvtchnPort>,
    interrupted: bool,
    pub(crate) counts: Counts,
    /// Every access, if anybody wants to know.
    pub(crate) log: Option<Vec<Trap>>,
}

impl Vcpu {
    pub(super) fn new(slot: Slot, channels: EventChannels, ports: Ports) -> Self {
        Self {
            slot,
            channels,
            ports,
            pending: Vec::new(),
            interrupted: false,
            counts: Counts::default(),
            log: None,
        }
    }

    /// Writes QUEUE_NOTIFY: as any register, or with ioeventfd without waiting for the server.
    pub(crate) fn notify(&mut self, queue: u32) -> anyhow::Result<()> {
        let Some(port) = self.ports.notify else {
            return self.write(QUEUE_NOTIFY, queue);
        };
        self.note(Trap::Write(QUEUE_NOTIFY, queue));
        Ok(self.channels.notify(port)?)
    }

    /// Halts until there is an interrupt, and takes it.
    pub(crate) fn halt(&mut self) -> anyhow::Result<()> {
        while !std::mem::take(&mut self.interrupted) {
            self.sleep()?;
        }
        self.counts.interrupts += 1;
        Ok(())
    }

    fn note(&mut self, trap: Trap) {
        self.counts.traps += 1;
        if let Some(log) = &mut self.log {
            log.push(trap);
        }
    }

    fn trap(&mut self, request: Request) -> anyhow::Result<u32> {
        self.slot.begin(request)?;
        self.channels.notify(self.ports.ioreq)?;
        loop {
            if let Some(data) = self.slot.end()? {
                return Ok(data);
            }
            self.sleep()?;
        }
    }

    fn sleep(&mut self) -> anyhow::Result<()> {
        let mut fds = [PollFd::new(&self.channels, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        self.channels.pending(&mut self.pending)?;
        self.channels.unmask(&self.pending)?;
        self.interrupted |= self.pending.contains(&self.ports.interrupt);
        self.pending.clear();
        Ok(())
    }
}

impl Cpu for Vcpu {
    fn read(&mut self, offset: u64, size: u32) -> anyhow::Result<u32> {
        self.note(Trap::Read(offset));
        self.trap(Request {
            addr: offset,
            size,
            write: None,
        })
    }

    fn write(&mut self, offset: u64, value: u32) -> anyhow::Result<()> {
        self.note(Trap::Write(offset, value));
        self.trap(Request {
            addr: offset,
            size: 4,
            write: Some(value),
        })?;
        Ok(())
    }
}
