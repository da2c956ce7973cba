//! The same on a real Xen: the server in dom0, and in a PVH guest the driver, which reaches registers
//! and memory through `/dev/mem`. There are no interrupts.
//!
//! The guest's kernel must leave [`MEMORY`] alone: its command line says `memmap=4M$180M`.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use guest_memory::{Access, AddressSpace, Area, FlatSpace};
use virtio_devices::DeviceModel;
use xen_hal::{IoreqServer, Platform, PlatformSpec};
use xen_types::{DomId, PAGE_SIZE};

use super::ioreq::Slot;
use super::linux;
use super::registers::{CONFIG, QUEUE_NOTIFY, STATUS};
use super::server::{Ports, Server};
use super::vcpu::Cpu;
use crate::blk_queue::{BlkQueue, Disk};

/// Where the registers are: a PVH guest has nothing there.
const REGISTERS: u64 = 0xf000_0000;
/// Where queues and buffers are, and how many bytes: near the end of a small guest, behind its ramdisk.
const MEMORY: u64 = 180 << 20;
const MEMORY_BYTES: usize = 4 << 20;

/// Serves `guest` until a signal ends the process.
pub(crate) fn serve(guest: DomId, model: Box<dyn DeviceModel>) -> anyhow::Result<()> {
    let ioreq = IoreqServer::create(guest)?;
    let page = ioreq.map_page()?;
    let memory = ioreq.map_memory(MEMORY / PAGE_SIZE as u64, MEMORY_BYTES / PAGE_SIZE)?;
    ioreq.serve(REGISTERS..=REGISTERS + PAGE_SIZE as u64 - 1)?;
    let slot = Slot::new(&page)?;
    let channels = Platform::open(&PlatformSpec::Xen)?.event_channels()?;
    let ports = Ports {
        ioreq: channels.bind_interdomain(guest, slot.port()?)?,
        interrupt: None,
        notify: None,
    };
    let space = FlatSpace::new(MEMORY, &memory);
    let (_never, stop) = UnixStream::pair()?;
    Server::new(model, REGISTERS, space, slot, channels, ports).run(&stop)
}

/// The processor of this guest, and its registers.
#[derive(Debug)]
struct Registers {
    area: Area,
    /// Accesses; each one leaves the guest.
    traps: u64,
}

impl Cpu for Registers {
    fn read(&mut self, offset: u64, size: u32) -> anyhow::Result<u32> {
        self.traps += 1;
        let registers = self.area.whole();
        Ok(match size {
            1 => u8::from_le_bytes(registers.read_array(offset)?).into(),
            2 => registers.load_u16(offset, Ordering::Acquire)?.into(),
            _ => registers.load_u32(offset, Ordering::Acquire)?,
        })
    }

    fn write(&mut self, offset: u64, value: u32) -> anyhow::Result<()> {
        self.traps += 1;
        let registers = self.area.whole();
        Ok(registers.store_u32(offset, value, Ordering::Release)?)
    }
}

/// The driver, on the device that dom0 serves this guest.
#[derive(Debug)]
pub(crate) struct Driver {
    registers: Registers,
    space: FlatSpace,
}

impl Driver {
    pub(crate) fn open() -> anyhow::Result<Self> {
        // O_SYNC: not through a cache.
        let map = |flags, at, bytes| -> anyhow::Result<Area> {
            let mut options = File::options();
            options.read(true).write(true).custom_flags(flags);
            let file = options.open("/dev/mem").context("/dev/mem")?;
            Area::shared_file(file.as_fd(), at, bytes, Access::Write)
                .with_context(|| format!("{bytes} bytes at {at:#x} of /dev/mem (is memmap= set?)"))
        };
        let area = map(libc::O_SYNC, REGISTERS, PAGE_SIZE)?;
        let memory = map(0, MEMORY, MEMORY_BYTES)?;
        Ok(Self {
            registers: Registers { area, traps: 0 },
            space: FlatSpace::new(MEMORY, &memory),
        })
    }

    /// Register accesses so far.
    pub(crate) fn traps(&self) -> u64 {
        self.registers.traps
    }

    /// Brings the device up as Linux does, with one queue.
    pub(crate) fn probe(&mut self, depth: u16, request_bytes: u32) -> anyhow::Result<BlkQueue> {
        let cpu = &mut self.registers;
        let queues = linux::probe(cpu, &self.space, MEMORY, 1, depth, request_bytes)?;
        queues.into_iter().next().context("no queue")
    }

    /// Takes the device out of service.
    pub(crate) fn reset(&mut self) -> anyhow::Result<()> {
        self.registers.write(STATUS, 0)
    }

    /// Sectors of the disk, below 2^32.
    pub(crate) fn sectors(&mut self) -> anyhow::Result<u64> {
        Ok(self.registers.read(CONFIG, 4)?.into())
    }
}

/// A disk that was brought up.
#[derive(Debug)]
pub(crate) struct XenMmioDisk<'a> {
    pub(crate) driver: &'a mut Driver,
    pub(crate) queue: BlkQueue,
}

impl Disk for XenMmioDisk<'_> {
    fn parts(&mut self) -> anyhow::Result<(&mut BlkQueue, &dyn AddressSpace)> {
        Ok((&mut self.queue, &self.driver.space))
    }

    fn kick(&mut self) -> anyhow::Result<()> {
        self.driver.registers.write(QUEUE_NOTIFY, 0)
    }

    /// The read of InterruptStatus in it is answered when there is something to say.
    fn wait(&mut self) -> anyhow::Result<()> {
        linux::interrupt(&mut self.driver.registers)
    }
}
