//! A guest of the machine: the product's frontend, and a disk on it with as many queues and
//! requests in flight as a benchmark wants.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use frontend_shim::Frontend;
use guest_memory::AddressSpace;
use virtio_msg::wire::DevNum;
use virtio_msg::{DriverAction, DriverConfig, DriverSide, Features};
use virtqueue::RingFeatures;
use xen_hal::PlatformSpec;
use xen_types::{DomId, PAGE_SIZE};

use crate::blk_queue::{BlkQueue, Disk};
use crate::machine::Machine;

/// Longer than anything takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);
/// The one device of a guest.
const DEVICE: DevNum = DevNum(0);
/// Configuration space as far as Linux reads it.
const CONFIG_BYTES: u32 = 60;
/// FLUSH and MQ.
const BLK_FEATURES: Features = Features(1 << 9 | 1 << 12);

/// A guest whose memory is shared, and whose device was not touched.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
}

impl Guest {
    /// Connects the domain `domid` of the machine.
    pub(crate) fn connect(machine: &Machine, domid: DomId) -> anyhow::Result<Self> {
        Self::open(&machine.spec(domid), 0)
    }

    /// Connects bus `handle`, wherever that is.
    pub(crate) fn open(spec: &PlatformSpec, handle: u32) -> anyhow::Result<Self> {
        let mut frontend = Frontend::open(spec, handle)?;
        frontend.connect(LIMIT)?;
        frontend.share_pool()?;
        let deadline = Instant::now() + LIMIT;
        while !frontend.devices()?.contains(&DEVICE.0) {
            if Instant::now() > deadline {
                bail!("the backend shows no device");
            }
        }
        Ok(Self { frontend })
    }

    /// Events sent so far in this connection.
    pub(crate) fn sends(&mut self) -> anyhow::Result<u64> {
        Ok(self.frontend.link()?.counters().notifications)
    }

    /// Brings the device up with its queues laid out from `base` on; the queues, in service.
    pub(crate) fn bring_up(
        &mut self,
        base: u64,
        queues: u16,
        depth: u16,
        request_bytes: u32,
    ) -> anyhow::Result<Vec<BlkQueue>> {
        let wants = DriverConfig {
            features: BLK_FEATURES | Features::INDIRECT_DESC | Features::EVENT_IDX,
            queues,
            config_len: CONFIG_BYTES,
            request_timeout: LIMIT,
            reset_timeout: LIMIT,
        };
        let link = self.frontend.link()?;
        let (max, now) = (link.max_message_size(), link.now());
        link.bus().add_device(DEVICE, DriverSide::new(wants, max));
        link.bus().update(DEVICE, |device| device.start(now));
        let stride = BlkQueue::bytes(depth, request_bytes).next_multiple_of(PAGE_SIZE) as u64;
        let mut ready = Vec::new();
        loop {
            match self.frontend.wait_device(DEVICE.0, LIMIT)? {
                DriverAction::NeedQueue { index, .. } => {
                    let link = self.frontend.link()?;
                    let space = link.pool().context("no memory is shared")?;
                    let ring = RingFeatures {
                        indirect: true,
                        event_idx: true,
                    };
                    let base = base + u64::from(index) * stride;
                    let queue = BlkQueue::new(space, base, depth, request_bytes, ring)?;
                    let setup = queue.setup();
                    ready.push(queue);
                    let now = link.now();
                    link.bus()
                        .update(DEVICE, |device| device.provide_queue(now, index, setup))
                        .context("the device is gone")??;
                }
                DriverAction::Ready { .. } => return Ok(ready),
                DriverAction::Failed(fault) => bail!("bring-up: {fault}"),
                _ => {}
            }
        }
    }

    /// Takes the device out of service: nothing of its queues is touched any more.
    pub(crate) fn reset(&mut self) -> anyhow::Result<()> {
        Ok(self.frontend.reset_device(DEVICE.0)?)
    }

    /// Sleeps until the device says that it used requests.
    fn wait_used(&mut self) -> anyhow::Result<()> {
        loop {
            match self.frontend.wait_device(DEVICE.0, LIMIT)? {
                DriverAction::Used(_) => return Ok(()),
                DriverAction::NeedsReset => bail!("the device needs a reset"),
                DriverAction::Failed(fault) => bail!("the device failed: {fault}"),
                _ => {}
            }
        }
    }

    /// The first address of the guest's pool, which is the beginning of a page.
    pub(crate) fn base(&mut self) -> anyhow::Result<u64> {
        let pool = self.frontend.link()?.pool_mut().context("no pool")?;
        let block = pool.take(PAGE_SIZE)?;
        let base = pool.address(block, 0);
        pool.give_back(block);
        Ok(base)
    }
}

/// A guest's disk with one queue.
#[derive(Debug)]
pub(crate) struct MsgDisk {
    pub(crate) guest: Guest,
    queue: BlkQueue,
}

impl MsgDisk {
    /// A new guest with one device, brought up.
    pub(crate) fn start(
        machine: &mut Machine,
        line: &str,
        depth: u16,
        request_bytes: u32,
    ) -> anyhow::Result<(DomId, Self)> {
        let domid = machine.guest(&[line.to_owned()])?;
        let mut guest = Guest::connect(machine, domid)?;
        let base = guest.base()?;
        let queue = guest.bring_up(base, 1, depth, request_bytes)?;
        let queue = queue.into_iter().next().context("no queue")?;
        Ok((domid, Self { guest, queue }))
    }
}

impl Disk for MsgDisk {
    fn parts(&mut self) -> anyhow::Result<(&mut BlkQueue, &dyn AddressSpace)> {
        let pool = self.guest.frontend.link()?.pool().context("no pool")?;
        Ok((&mut self.queue, pool))
    }

    fn kick(&mut self) -> anyhow::Result<()> {
        let next = self.queue.in_flight();
        let link = self.guest.frontend.link()?;
        link.bus().update(DEVICE, |device| device.kick(0, next));
        Ok(())
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        self.guest.wait_used()
    }
}
