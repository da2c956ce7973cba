//! A block device on the bus: what it is, its slots, and its end. [`bring_up`] makes it, [`io`] keeps
//! requests in flight (virtio 1.4 section 5.2; the device side is taken for hostile).

mod bring_up;
mod io;
mod request;

use std::time::{Duration, Instant};

use guest_memory::{Access, AddressSpace as _};
use virtio_msg::wire::DevNum;
use virtio_msg::{DriverAction, DriverBusAction, Features};
use virtqueue::DriverQueue;

use crate::error::FrontendError;
use crate::frontend::Frontend;
use crate::pool::{Block, Pool, PoolFull};
use request::{CONTROL, ID_BYTES};

pub use request::{Finished, MAX_REQUEST, Operation, SECTOR, Status};

/// Virtio device type of a block device.
pub const BLK_DEVICE_ID: u32 = 2;
/// How long a reset may take.
const RESET_LIMIT: Duration = Duration::from_secs(60);

/// Feature bits of a block device.
const F_RO: Features = Features::bit(5);
const F_BLK_SIZE: Features = Features::bit(6);
const F_FLUSH: Features = Features::bit(9);

/// How much of the shared area a disk takes for its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Requests that can be in flight; fewer if the shared area has no room for so many.
    pub requests: usize,
    /// Bytes that each can move.
    pub request_bytes: usize,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            requests: 8,
            request_bytes: MAX_REQUEST,
        }
    }
}

#[derive(Debug)]
struct Slot {
    /// Header, then status byte.
    control: Block,
    data: Block,
    busy: Option<(u16, Operation, Instant)>,
}

impl Slot {
    fn take(pool: &mut Pool, request_bytes: usize) -> Result<Self, PoolFull> {
        let control = pool.take(CONTROL)?;
        match pool.take(request_bytes) {
            Ok(data) => Ok(Self {
                control,
                data,
                busy: None,
            }),
            Err(full) => {
                pool.give_back(control);
                Err(full)
            }
        }
    }
}

/// A block device in use.
#[derive(Debug)]
pub struct Disk {
    dev_num: DevNum,
    queue: DriverQueue,
    slots: Vec<Slot>,
    request_bytes: usize,
    /// The queue's memory.
    queue_blocks: [Block; 2],
    capacity: u64,
    features: Features,
}

impl Disk {
    /// Bytes of the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.capacity.saturating_mul(SECTOR)
    }

    /// Whether it refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.features.contains(F_RO)
    }

    /// Whether it can make writes durable.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        self.features.contains(F_FLUSH)
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| slot.busy.is_some()).count()
    }

    /// Requests that can be in flight.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// A slot that is free.
    #[must_use]
    pub fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.busy.is_none())
    }

    /// Puts bytes into a free slot, for a write.
    ///
    /// # Errors
    /// The connection is over, or the bytes do not fit.
    pub fn fill(
        &mut self,
        frontend: &mut Frontend,
        slot: usize,
        bytes: &[u8],
    ) -> Result<(), FrontendError> {
        let address = self.data_address(frontend, slot)?;
        let len = self.length(bytes.len())?;
        pool(frontend, self.dev_num)?
            .translate(address, len, Access::Write)
            .map_err(|error| error.to_string())
            .and_then(|range| range.write(0, bytes).map_err(|error| error.to_string()))
            .map_err(|error| failed(self.dev_num.0, error))
    }

    /// Copies the data of a finished read out of its slot.
    ///
    /// # Errors
    /// The connection is over, or the slot has not so many bytes.
    pub fn take(
        &mut self,
        frontend: &mut Frontend,
        slot: usize,
        bytes: &mut [u8],
    ) -> Result<(), FrontendError> {
        let address = self.data_address(frontend, slot)?;
        let len = self.length(bytes.len())?;
        pool(frontend, self.dev_num)?
            .translate(address, len, Access::Read)
            .map_err(|error| error.to_string())
            .and_then(|range| range.read(0, bytes).map_err(|error| error.to_string()))
            .map_err(|error| failed(self.dev_num.0, error))
    }

    /// The serial of the device; empty if it has none.
    ///
    /// # Errors
    /// As [`Disk::run`].
    pub fn serial(&mut self, frontend: &mut Frontend) -> Result<String, FrontendError> {
        let finished = self.run(frontend, Operation::GetId)?;
        let mut id = [0; ID_BYTES];
        self.take(frontend, finished.slot, &mut id)?;
        let text = id.split(|byte| *byte == 0).next().unwrap_or_default();
        // The backend's text may end on a terminal.
        let text = String::from_utf8_lossy(text);
        Ok(text.replace(char::is_control, "?"))
    }

    /// Resets the device and gives its memory back; after it the device touches nothing of ours.
    /// A device that was removed, before or meanwhile, is as good as reset.
    ///
    /// # Errors
    /// The connection ended, or the device does not reset.
    pub fn close(self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        let link = frontend.link()?;
        let now = link.now();
        let is_there = link
            .bus()
            .update(self.dev_num, |device| device.start_reset(now));
        if is_there.is_some() {
            self.wait_for_reset(frontend)?;
        }
        frontend.link()?.bus().remove_device(self.dev_num);
        let pool = pool(frontend, self.dev_num)?;
        let slots = self.slots.iter().flat_map(|slot| [slot.control, slot.data]);
        for block in slots.chain(self.queue_blocks) {
            pool.give_back(block);
        }
        Ok(())
    }

    fn wait_for_reset(&self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        let what = format!("the reset of device {}", self.dev_num);
        frontend.until(RESET_LIMIT, &what, |action| match action {
            DriverBusAction::Removed(number) if number == self.dev_num => Some(Ok(())),
            DriverBusAction::Device { dev_num, action } if dev_num == self.dev_num => {
                match action {
                    DriverAction::ResetDone => Some(Ok(())),
                    DriverAction::Failed(fault) => Some(Err(failed(dev_num.0, fault))),
                    _ => None,
                }
            }
            _ => None,
        })?
    }

    fn data_address(&self, frontend: &mut Frontend, slot: usize) -> Result<u64, FrontendError> {
        let block = self.slots.get(slot).map(|slot| slot.data);
        let block = block.ok_or_else(|| failed(self.dev_num.0, format!("has no slot {slot}")))?;
        Ok(pool(frontend, self.dev_num)?.address(block, 0))
    }

    fn length(&self, len: usize) -> Result<u32, FrontendError> {
        u32::try_from(len)
            .ok()
            .filter(|_| len <= self.request_bytes)
            .ok_or_else(|| failed(self.dev_num.0, format!("{len} bytes do not fit a request")))
    }
}

fn pool(frontend: &mut Frontend, dev_num: DevNum) -> Result<&mut Pool, FrontendError> {
    frontend
        .link()?
        .pool_mut()
        .ok_or_else(|| failed(dev_num.0, "no memory is shared with the backend"))
}

fn failed(dev_num: u16, why: impl ToString) -> FrontendError {
    FrontendError::Device {
        dev_num,
        why: why.to_string(),
    }
}
