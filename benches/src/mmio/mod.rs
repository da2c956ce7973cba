//! The peer that matters: the same device models behind virtio-mmio, as a Xen ioreq server offers
//! them, and a driver that does what Linux's does.
//!
//! The guest's processor is the caller's thread, the server a thread of its own; between them are
//! an ioreq slot and event channels of the hosted platform, the same ones that the bus uses. The
//! same server and the same driver on a real Xen are [`xen`]'s.

mod ioreq;
mod linux;
mod registers;
mod server;
#[cfg(test)]
mod tests;
mod vcpu;
pub(crate) mod xen;

use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use guest_memory::{AddressSpace, Area, FlatSpace};
use virtio_devices::DeviceModel;
use xen_hal::Platform;
use xen_types::{DomId, EvtchnPort, PAGE_SIZE};

use crate::blk_queue::{BlkQueue, Disk};
use crate::machine::Machine;
use server::Server;
use vcpu::{Cpu, Vcpu};

/// Where the guest's memory begins.
const BASE: u64 = 0x4000_0000;
/// Bytes of it: eight queues of 128 requests of 4 KiB fit.
const RAM: usize = 8 << 20;

/// How a queue notification reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notify {
    /// As every register: the processor waits for the server.
    Trap,
    /// The hypervisor answers, and signals the server. Faster than PRIVCMD_IOEVENTFD on a real Xen,
    /// where dom0's kernel answers.
    Ioeventfd,
}

/// A guest with one virtio-mmio device.
#[derive(Debug)]
pub(crate) struct Mmio {
    pub(crate) vcpu: Vcpu,
    space: FlatSpace,
    stop: Option<UnixStream>,
    server: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Mmio {
    /// A guest of `machine` with `model` behind registers.
    pub(crate) fn start(
        machine: &Machine,
        model: Box<dyn DeviceModel>,
        notify: Notify,
    ) -> anyhow::Result<Self> {
        let guest = machine.create_domain()?;
        let dom0 = Platform::open(&machine.spec(DomId::DOM0))?.event_channels()?;
        let mut channels = Platform::open(&machine.spec(guest))?.event_channels()?;
        let port = || -> anyhow::Result<[EvtchnPort; 2]> {
            let server = dom0.alloc_unbound(guest)?;
            Ok([server, channels.bind_interdomain(DomId::DOM0, server)?])
        };
        let [ioreq, interrupt, posted] = [port()?, port()?, port()?];
        let ports = server::Ports {
            ioreq: ioreq[0],
            interrupt: Some(interrupt[0]),
            notify: Some(posted[0]),
        };
        let guests = vcpu::Ports {
            ioreq: ioreq[1],
            interrupt: interrupt[1],
            notify: (notify == Notify::Ioeventfd).then_some(posted[1]),
        };

        // Binding makes an end pending; that is no interrupt.
        let mut bound = Vec::new();
        channels.pending(&mut bound)?;
        channels.unmask(&bound)?;

        let page = Area::anonymous(PAGE_SIZE)?;
        let slot = ioreq::Slot::new(&page)?;
        let ram = Area::anonymous(RAM)?;
        let space = FlatSpace::new(BASE, &ram);
        let server = Server::new(model, 0, space.clone(), slot.clone(), dom0, ports);
        let (stop, stopped) = UnixStream::pair()?;
        let thread = thread::Builder::new().name("ioreq server".into());
        let server = thread.spawn(move || {
            // The leases keep both mapped; the guest's end of them outlives this thread.
            let _memory = (page, ram);
            server.run(&stopped)
        })?;
        Ok(Self {
            vcpu: Vcpu::new(slot, channels, guests),
            space,
            stop: Some(stop),
            server: Some(server),
        })
    }

    /// Brings the device up as Linux does.
    pub(crate) fn probe(
        &mut self,
        queues: u16,
        depth: u16,
        request_bytes: u32,
    ) -> anyhow::Result<Vec<BlkQueue>> {
        let vcpu = &mut self.vcpu;
        linux::probe(vcpu, &self.space, BASE, queues, depth, request_bytes)
    }

    /// Takes the device out of service.
    pub(crate) fn reset(&mut self) -> anyhow::Result<()> {
        self.vcpu.write(registers::STATUS, 0)
    }

    /// The price of a trap: a register is read that nothing hangs on.
    pub(crate) fn trap(&mut self) -> anyhow::Result<()> {
        self.vcpu.read(registers::MAGIC, 4).map(drop)
    }
}

impl Drop for Mmio {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Ok(Err(error))) = self.server.take().map(JoinHandle::join) {
            eprintln!("the ioreq server ended: {error:#}");
        }
    }
}

/// A virtio-mmio disk with one queue.
#[derive(Debug)]
pub(crate) struct MmioDisk {
    pub(crate) mmio: Mmio,
    queue: BlkQueue,
}

impl MmioDisk {
    /// A guest whose device was brought up.
    pub(crate) fn start(
        machine: &Machine,
        model: Box<dyn DeviceModel>,
        notify: Notify,
        depth: u16,
        request_bytes: u32,
    ) -> anyhow::Result<Self> {
        let mut mmio = Mmio::start(machine, model, notify)?;
        let queues = mmio.probe(1, depth, request_bytes)?;
        let queue = queues.into_iter().next().context("no queue")?;
        Ok(Self { mmio, queue })
    }
}

impl Disk for MmioDisk {
    fn parts(&mut self) -> anyhow::Result<(&mut BlkQueue, &dyn AddressSpace)> {
        Ok((&mut self.queue, &self.mmio.space))
    }

    fn kick(&mut self) -> anyhow::Result<()> {
        self.mmio.vcpu.notify(0)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        self.mmio.vcpu.halt()?;
        linux::interrupt(&mut self.mmio.vcpu)
    }
}
