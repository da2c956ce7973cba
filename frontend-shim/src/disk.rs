//! A block device on the bus: brings it up and keeps requests in flight
//! (virtio 1.4 section 5.2, as far as the device side is concerned hostile).

use std::time::{Duration, Instant};

use guest_memory::{Access, AddressSpace as _};
use virtio_msg::wire::DevNum;
use virtio_msg::{DriverAction, DriverBusAction, DriverConfig, DriverSide, Features, QueueSetup};
use virtqueue::{DriverQueue, QueueLayout, RingFeatures, Segment};
use xen_bus::messages::REMOVE_REQUEST;

use crate::error::FrontendError;
use crate::frontend::Frontend;
use crate::pool::{Block, Pool, PoolFull};

/// Virtio device type of a block device.
pub const BLK_DEVICE_ID: u32 = 2;
/// Bytes of a sector, the unit of the protocol.
pub const SECTOR: u64 = 512;
/// Requests that a disk can have in flight; fewer if the shared area has no room for so many.
pub const MAX_SLOTS: usize = 8;
/// Bytes that one request carries at most.
pub const MAX_REQUEST: usize = 128 << 10;
/// Descriptors of the queue (binding section 4: a user-space frontend's default).
const QUEUE_SIZE: u16 = 128;
/// Descriptors of a request: header, data, status.
const TABLE_ENTRIES: u16 = 3;
/// Bytes of a request's header, and where the status byte stands behind it.
const HEADER: usize = 16;
const STATUS: usize = 16;
/// Bytes of the serial that GET_ID gives.
const ID_BYTES: usize = 20;
/// Bytes of configuration space that are read: all up to SECURE_ERASE.
const CONFIG_LEN: u32 = 60;
/// How long the device may take for a request before the disk is given up.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// How long an answer to a message may take, and a reset.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);
const RESET_LIMIT: Duration = Duration::from_secs(60);

/// Feature bits of a block device.
const F_RO: Features = Features::bit(5);
const F_BLK_SIZE: Features = Features::bit(6);
const F_FLUSH: Features = Features::bit(9);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read `len` bytes from `sector` on.
    Read {
        /// First sector.
        sector: u64,
        /// Bytes, a multiple of 512.
        len: usize,
    },
    /// Write the bytes that were put into the slot.
    Write {
        /// First sector.
        sector: u64,
        /// Bytes, a multiple of 512.
        len: usize,
    },
    /// Make all completed writes durable.
    Flush,
    /// Read the serial.
    GetId,
}

impl Operation {
    /// Request type, sector, bytes of data, and whether the device writes them.
    fn parts(self) -> (u32, u64, usize, bool) {
        match self {
            Self::Read { sector, len } => (0, sector, len, true),
            Self::Write { sector, len } => (1, sector, len, false),
            Self::Flush => (4, 0, 0, false),
            Self::GetId => (8, 0, ID_BYTES, true),
        }
    }
}

/// What the device says of a request (virtio 1.4 section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// It failed: VIRTIO_BLK_S_IOERR.
    IoError,
    /// The device cannot do that: VIRTIO_BLK_S_UNSUPP.
    Unsupported,
}

/// A request that has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Where its data stands, until the slot is used again.
    pub slot: usize,
    /// What was asked.
    pub operation: Operation,
    /// What became of it.
    pub status: Status,
    /// From its submission to the moment its completion was seen.
    pub latency: Duration,
}

/// A slot: memory for one request.
#[derive(Debug)]
struct Slot {
    /// Header, then status byte.
    control: Block,
    data: Block,
    busy: Option<(u16, Operation, Instant)>,
}

impl Slot {
    fn take(pool: &mut Pool) -> Result<Self, PoolFull> {
        let control = pool.take(HEADER + 1)?;
        match pool.take(MAX_REQUEST) {
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
    /// The queue's memory.
    queue_blocks: [Block; 2],
    capacity: u64,
    features: Features,
}

impl Disk {
    /// Brings device `dev_num` up. Shares the frontend's memory first if that was not done yet.
    ///
    /// # Errors
    /// There is no such device, it is no block device, or it does not come up.
    pub fn open(frontend: &mut Frontend, dev_num: u16) -> Result<Self, FrontendError> {
        frontend.share_pool()?;
        let known = frontend.devices()?;
        if !known.contains(&dev_num) {
            return Err(failed(
                dev_num,
                format!("is not on this bus; it has {known:?}"),
            ));
        }
        let dev_num = DevNum(dev_num);
        let link = frontend.link()?;
        let wants = DriverConfig {
            features: F_RO | F_BLK_SIZE | F_FLUSH | Features::INDIRECT_DESC | Features::EVENT_IDX,
            queues: 1,
            config_len: CONFIG_LEN,
            request_timeout: MESSAGE_LIMIT,
            reset_timeout: RESET_LIMIT,
        };
        let max = link.max_message_size();
        let now = link.now();
        link.bus().add_device(dev_num, DriverSide::new(wants, max));
        link.bus().update(dev_num, |device| device.start(now));
        let mut queue = None;
        loop {
            match next_action(frontend, dev_num, MESSAGE_LIMIT)? {
                DriverAction::NeedQueue { index, max_size } => {
                    queue = Some(provide_queue(frontend, dev_num, index, max_size)?);
                }
                DriverAction::Ready { features, config } => {
                    let info = frontend
                        .link()?
                        .bus()
                        .device(dev_num)
                        .map(|d| d.info().device_id);
                    if info != Some(BLK_DEVICE_ID) {
                        return Err(failed(dev_num.0, "is no block device"));
                    }
                    let Some((queue, blocks)) = queue else {
                        return Err(failed(dev_num.0, "has no queue"));
                    };
                    return Self::new(frontend, dev_num, queue, blocks, features, &config);
                }
                DriverAction::Failed(fault) => return Err(failed(dev_num.0, fault)),
                _ => {}
            }
        }
    }

    fn new(
        frontend: &mut Frontend,
        dev_num: DevNum,
        queue: DriverQueue,
        queue_blocks: [Block; 2],
        features: Features,
        config: &[u8],
    ) -> Result<Self, FrontendError> {
        let capacity = config
            .first_chunk::<8>()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .ok_or_else(|| failed(dev_num.0, "has no capacity in its configuration space"))?;
        let pool = pool(frontend, dev_num)?;
        let mut slots = Vec::new();
        while slots.len() < MAX_SLOTS {
            match Slot::take(pool) {
                Ok(slot) => slots.push(slot),
                Err(full) if slots.is_empty() => return Err(failed(dev_num.0, full)),
                Err(_) => break,
            }
        }
        Ok(Self {
            dev_num,
            queue,
            slots,
            queue_blocks,
            capacity,
            features,
        })
    }

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

    /// Makes a request available and kicks if the device wants it.
    ///
    /// # Errors
    /// The slot is busy, or the request does not fit.
    pub fn submit(
        &mut self,
        frontend: &mut Frontend,
        slot: usize,
        operation: Operation,
    ) -> Result<(), FrontendError> {
        let dev_num = self.dev_num;
        let (kind, sector, len, device_writes) = operation.parts();
        let data = Segment {
            addr: self.data_address(frontend, slot)?,
            len: self.length(len)?,
        };
        let place = self
            .slots
            .get_mut(slot)
            .filter(|slot| slot.busy.is_none())
            .ok_or_else(|| failed(dev_num.0, format!("slot {slot} is busy")))?;
        let pool = pool(frontend, dev_num)?;
        let control = pool.address(place.control, 0);
        let mut header = [0; HEADER + 1];
        let (type_bytes, rest) = header.split_at_mut(8);
        type_bytes.copy_from_slice(&u64::from(kind).to_le_bytes());
        if let Some((sector_bytes, status)) = rest.split_first_chunk_mut::<8>() {
            *sector_bytes = sector.to_le_bytes();
            // No status of virtio: a device that writes none is found out.
            status.fill(NO_STATUS);
        }
        pool.translate(control, TAIL, Access::Write)
            .map_err(|error| error.to_string())
            .and_then(|range| range.write(0, &header).map_err(|error| error.to_string()))
            .map_err(|error| failed(dev_num.0, error))?;
        let header = Segment {
            addr: control,
            len: TAIL - 1,
        };
        let status = Segment {
            addr: pool.address(place.control, STATUS),
            len: 1,
        };
        let head = match (len, device_writes) {
            (0, _) => self.queue.add(&[header], &[status]),
            (_, true) => self.queue.add(&[header], &[data, status]),
            (_, false) => self.queue.add(&[header, data], &[status]),
        };
        let head = head.map_err(|error| failed(dev_num.0, error))?;
        place.busy = Some((head, operation, Instant::now()));
        if self.queue.publish() {
            let next = self.queue.offered();
            frontend
                .link()?
                .bus()
                .update(dev_num, |device| device.kick(0, next));
        }
        Ok(())
    }

    /// Waits for the next request to end.
    ///
    /// # Errors
    /// The device failed the request or broke the queue, the connection ended, or nothing
    /// happened for a minute.
    pub fn finish(&mut self, frontend: &mut Frontend) -> Result<Finished, FrontendError> {
        let deadline = Instant::now().checked_add(REQUEST_LIMIT);
        loop {
            if let Some(finished) = self.poll(frontend)? {
                let why = match finished.status {
                    Status::Ok => return Ok(finished),
                    Status::IoError => "failed: I/O error",
                    Status::Unsupported => "is not supported",
                };
                let operation = finished.operation;
                return Err(failed(self.dev_num.0, format!("{operation:?} {why}")));
            }
            if !frontend.wait_before(deadline)? {
                return Err(self.timeout(frontend));
            }
            frontend.pump()?;
        }
    }

    /// The next request that has ended, if there is one; never waits. What the device said of the
    /// request is no error here. If there is none, [`Frontend::wait`] wakes for the next.
    ///
    /// # Errors
    /// The device broke the queue or is being detached, the connection ended, or a request took
    /// longer than a minute.
    pub fn poll(&mut self, frontend: &mut Frontend) -> Result<Option<Finished>, FrontendError> {
        loop {
            let used = self.queue.pop_used();
            if let Some(used) = used.map_err(|e| failed(self.dev_num.0, e))? {
                return self.completed(frontend, used.head).map(Some);
            }
            if !self.queue.rearm() {
                break;
            }
        }
        self.watch_device(frontend)?;
        match self.deadline() {
            Some(deadline) if deadline <= Instant::now() => Err(self.timeout(frontend)),
            _ => Ok(None),
        }
    }

    /// When the oldest request in flight will have taken too long.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let busy = self.slots.iter().filter_map(|slot| slot.busy);
        let oldest = busy.map(|(_, _, since)| since).min()?;
        oldest.checked_add(REQUEST_LIMIT)
    }

    /// Runs one request alone.
    ///
    /// # Errors
    /// As [`Disk::submit`] and [`Disk::finish`].
    pub fn run(
        &mut self,
        frontend: &mut Frontend,
        operation: Operation,
    ) -> Result<Finished, FrontendError> {
        let slot = self
            .free_slot()
            .ok_or_else(|| failed(self.dev_num.0, "every slot is busy"))?;
        self.submit(frontend, slot, operation)?;
        self.finish(frontend)
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

    fn completed(&mut self, frontend: &mut Frontend, head: u16) -> Result<Finished, FrontendError> {
        let dev_num = self.dev_num.0;
        let found = (0..)
            .zip(&mut self.slots)
            .find_map(|(index, slot)| match slot.busy {
                Some((used, operation, since)) if used == head => {
                    slot.busy = None;
                    Some((index, slot.control, operation, since))
                }
                _ => None,
            });
        let Some((slot, control, operation, since)) = found else {
            return Err(failed(
                dev_num,
                format!("used head {head}, which is no request"),
            ));
        };
        let pool = pool(frontend, self.dev_num)?;
        let status = pool
            .translate(pool.address(control, STATUS), 1, Access::Read)
            .ok()
            .and_then(|range| range.read_array::<1>(0).ok());
        let status = match status {
            Some([0]) => Status::Ok,
            Some([1]) => Status::IoError,
            Some([2]) => Status::Unsupported,
            other => {
                return Err(failed(
                    dev_num,
                    format!("{operation:?} ended with status {other:?}"),
                ));
            }
        };
        Ok(Finished {
            slot,
            operation,
            status,
            latency: since.elapsed(),
        })
    }

    fn timeout(&self, frontend: &Frontend) -> FrontendError {
        FrontendError::Timeout {
            handle: frontend.instance().handle,
            what: format!(
                "a request of device {}: is the backend in domain {} alive?",
                self.dev_num.0,
                frontend.instance().backend
            ),
            limit: REQUEST_LIMIT,
        }
    }

    /// Looks for what ends the device while requests are outstanding.
    fn watch_device(&self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        while let Some(action) = frontend.link()?.poll_action() {
            let why = match action {
                DriverBusAction::Removed(number) if number == self.dev_num => "was removed",
                DriverBusAction::PrivateEvent { msg_id, payload }
                    if msg_id.0 == REMOVE_REQUEST && payload == self.dev_num.0.to_le_bytes() =>
                {
                    "is being detached: the backend asks for it"
                }
                DriverBusAction::Device { dev_num, action } if dev_num == self.dev_num => {
                    match action {
                        DriverAction::NeedsReset => "needs a reset: it found the queue broken",
                        DriverAction::Failed(fault) => return Err(failed(dev_num.0, fault)),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            return Err(failed(self.dev_num.0, why));
        }
        Ok(())
    }

    fn data_address(&self, frontend: &mut Frontend, slot: usize) -> Result<u64, FrontendError> {
        let block = self.slots.get(slot).map(|slot| slot.data);
        let block = block.ok_or_else(|| failed(self.dev_num.0, format!("has no slot {slot}")))?;
        Ok(pool(frontend, self.dev_num)?.address(block, 0))
    }

    fn length(&self, len: usize) -> Result<u32, FrontendError> {
        u32::try_from(len)
            .ok()
            .filter(|_| len <= MAX_REQUEST)
            .ok_or_else(|| failed(self.dev_num.0, format!("{len} bytes do not fit a request")))
    }
}

/// Header and status byte.
const TAIL: u32 = 17;
/// What stands in the status byte before the device writes it.
const NO_STATUS: u8 = 0xff;

fn provide_queue(
    frontend: &mut Frontend,
    dev_num: DevNum,
    index: u16,
    max_size: u16,
) -> Result<(DriverQueue, [Block; 2]), FrontendError> {
    let size = QUEUE_SIZE.min(max_size);
    let link = frontend.link()?;
    let now = link.now();
    let features = link
        .bus()
        .device(dev_num)
        .map(DriverSide::features)
        .unwrap_or_default();
    let tables = DriverQueue::indirect_table_bytes(size, TABLE_ENTRIES);
    let pool = pool(frontend, dev_num)?;
    let mut take = |len: u32| {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        pool.take(len).map_err(|full| failed(dev_num.0, full))
    };
    let blocks = [take(QueueLayout::contiguous_bytes(size))?, take(tables)?];
    let [rings, tables] = blocks.map(|block| pool.address(block, 0));
    let layout = QueueLayout::contiguous(rings, size);
    let ring = RingFeatures {
        indirect: features.contains(Features::INDIRECT_DESC),
        event_idx: features.contains(Features::EVENT_IDX),
    };
    let queue = DriverQueue::new(pool, layout, ring)
        .and_then(|queue| queue.with_indirect_tables(pool, tables, TABLE_ENTRIES))
        .map_err(|error| failed(dev_num.0, error))?;
    let setup = QueueSetup {
        size,
        desc: layout.desc,
        driver: layout.avail,
        device: layout.used,
    };
    let provided = frontend
        .link()?
        .bus()
        .update(dev_num, |device| device.provide_queue(now, index, setup));
    match provided {
        Some(Ok(())) => Ok((queue, blocks)),
        Some(Err(error)) => Err(failed(dev_num.0, error)),
        None => Err(failed(dev_num.0, "is gone")),
    }
}

/// The next action of a device, pumping until there is one.
fn next_action(
    frontend: &mut Frontend,
    dev_num: DevNum,
    limit: Duration,
) -> Result<DriverAction, FrontendError> {
    frontend.until(limit, &format!("device {dev_num}"), |action| match action {
        DriverBusAction::Device {
            dev_num: number,
            action,
        } if number == dev_num => Some(Ok(action)),
        DriverBusAction::Removed(number) if number == dev_num => {
            Some(Err(failed(dev_num.0, "was removed")))
        }
        _ => None,
    })?
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
