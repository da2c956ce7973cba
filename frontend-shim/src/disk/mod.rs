//! A block device on the bus: what it is, its slots, and its end. [`bring_up`] makes it, [`io`] keeps
//! requests in flight (virtio 1.4 section 5.2; the device side is taken for hostile).

mod bring_up;
mod io;
mod request;

use std::time::{Duration, Instant};

use guest_memory::{Access, AddressSpace as _};
use virtio_msg::Features;
use virtqueue::{DriverQueue, Segment};
use xen_types::PAGE_SIZE;

use crate::bring_up::release;
use crate::error::FrontendError;
use crate::frontend::Frontend;
use crate::pool::{Block, Pool, PoolFull};
use request::{CONTROL, HEADER, ID_BYTES, STATUS_AT};

pub use request::{Finished, MAX_REQUEST, Operation, SECTOR, Status};

/// Virtio device type of a block device.
pub const BLK_DEVICE_ID: u32 = 2;

/// Feature bits of a block device.
const F_RO: Features = Features::bit(5);
const F_BLK_SIZE: Features = Features::bit(6);
const F_FLUSH: Features = Features::bit(9);
const F_DISCARD: Features = Features::bit(13);
const F_WRITE_ZEROES: Features = Features::bit(14);

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
    /// What the device reads first, and writes last.
    header: Segment,
    status: Segment,
    /// All of `data`.
    buffer: Vec<Segment>,
    /// What is in flight, and since when.
    busy: Option<(Operation, Instant)>,
}

impl Slot {
    fn take(pool: &mut Pool, request_bytes: usize) -> Result<Self, PoolFull> {
        let len = u32::try_from(request_bytes).unwrap_or(u32::MAX);
        let control = pool.take(CONTROL)?;
        // Direct I/O takes no other memory as it is, and no page is pinned that need not be.
        match pool.take_aligned(request_bytes, PAGE_SIZE) {
            Ok(data) => Ok(Self {
                control,
                data,
                header: pool.within_page(control, 0, HEADER),
                status: pool.within_page(control, STATUS_AT, 1),
                buffer: pool.buffer(data, len).collect(),
                busy: None,
            }),
            Err(full) => {
                pool.give_back(control);
                Err(full)
            }
        }
    }

    /// The first `len` bytes of the data.
    fn data(&self, len: u32) -> impl Iterator<Item = Segment> {
        let mut left = len;
        self.buffer.iter().map_while(move |segment| {
            let len = segment.len.min(left);
            left = left.saturating_sub(len);
            let addr = segment.addr;
            (len > 0).then_some(Segment { addr, len })
        })
    }
}

/// A block device in use.
#[derive(Debug)]
pub struct Disk {
    /// The number of the bus.
    handle: u32,
    dev_num: u16,
    /// Of which connection the device and its memory are.
    connection: u64,
    queue: DriverQueue,
    slots: Vec<Slot>,
    /// Slots that are free; the last is used next.
    idle: Vec<usize>,
    /// By head of a chain in the queue: the slot of its request.
    owners: Vec<Option<usize>>,
    /// Of the request that is being made available: what the device reads, and what it writes.
    segments: [Vec<Segment>; 2],
    request_bytes: usize,
    /// Everything that was taken from the pool.
    memory: Vec<Block>,
    capacity: u64,
    features: Features,
    /// Sectors of a request that discards, and of one that zeroes.
    erase_limits: [u32; 2],
    /// How long the device may take for a request.
    limit: Duration,
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

    /// Sectors of one [`Operation::Discard`]; `None`: it is not offered.
    #[must_use]
    pub fn discard_limit(&self) -> Option<u32> {
        let limit = self.features.contains(F_DISCARD);
        limit
            .then_some(self.erase_limits[0])
            .filter(|most| *most > 0)
    }

    /// Sectors of one [`Operation::WriteZeroes`]; `None`: it is not offered.
    #[must_use]
    pub fn zero_limit(&self) -> Option<u32> {
        let limit = self.features.contains(F_WRITE_ZEROES);
        limit
            .then_some(self.erase_limits[1])
            .filter(|most| *most > 0)
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len().saturating_sub(self.idle.len())
    }

    /// Requests that can be in flight.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// A slot that is free.
    #[must_use]
    pub fn free_slot(&self) -> Option<usize> {
        self.idle.last().copied()
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
        self.pool(frontend)?
            .translate(address, len, Access::Write)
            .map_err(|error| error.to_string())
            .and_then(|range| range.write(0, bytes).map_err(|error| error.to_string()))
            .map_err(|error| self.failed(error))
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
        self.pool(frontend)?
            .translate(address, len, Access::Read)
            .map_err(|error| error.to_string())
            .and_then(|range| range.read(0, bytes).map_err(|error| error.to_string()))
            .map_err(|error| self.failed(error))
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
    /// The connection ended, or the device does not reset: then its memory stays taken until the
    /// connection ends.
    pub fn close(self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        self.pool(frontend)?;
        release(frontend, self.dev_num, self.memory)
    }

    fn data_address(&self, frontend: &mut Frontend, slot: usize) -> Result<u64, FrontendError> {
        let block = self.slots.get(slot).map(|slot| slot.data);
        let block = block.ok_or_else(|| self.failed(format_args!("has no slot {slot}")))?;
        Ok(self.pool(frontend)?.address(block, 0))
    }

    fn length(&self, len: usize) -> Result<u32, FrontendError> {
        u32::try_from(len)
            .ok()
            .filter(|_| len <= self.request_bytes)
            .ok_or_else(|| self.failed(format_args!("{len} bytes do not fit a request")))
    }

    /// The memory that the disk lives in, unless that went with its connection.
    fn pool<'a>(&self, frontend: &'a mut Frontend) -> Result<&'a mut Pool, FrontendError> {
        frontend.pool_of(self.dev_num, self.connection)
    }

    fn failed(&self, why: impl ToString) -> FrontendError {
        FrontendError::device(self.handle, self.dev_num, why)
    }
}
