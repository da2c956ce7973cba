//! From a device number to a disk that runs (virtio-msg sections 7.1 and 7.3).

use virtio_msg::{DriverAction, DriverSide, Features, QueueSetup};
use virtqueue::{DriverQueue, QueueLayout, RingFeatures};

use super::{
    BLK_DEVICE_ID, Disk, DiskOptions, F_BLK_SIZE, F_FLUSH, F_RO, NO_MEMORY, Slot, release,
};
use crate::error::FrontendError;
use crate::frontend::{Frontend, Wants};
use crate::pool::Block;

/// Descriptors of the queue (binding section 4: a user-space frontend's default).
const QUEUE_SIZE: u16 = 128;
/// What is used of a block device: one queue, and configuration space up to SECURE_ERASE.
const WANTS: Wants = Wants {
    features: Features(
        F_RO.0 | F_BLK_SIZE.0 | F_FLUSH.0 | Features::INDIRECT_DESC.0 | Features::EVENT_IDX.0,
    ),
    queues: 1,
    config_len: 60,
};

impl Disk {
    /// Brings device `dev_num` up with the default [`DiskOptions`]. Shares the frontend's memory
    /// first if that was not done yet.
    ///
    /// # Errors
    /// There is no such device, it is no block device, or it does not come up: then it is reset
    /// and off the bus again. Memory of a device that does not even reset stays taken until the
    /// connection ends.
    pub fn open(frontend: &mut Frontend, dev_num: u16) -> Result<Self, FrontendError> {
        Self::open_with(frontend, dev_num, DiskOptions::default())
    }

    /// Brings device `dev_num` up with room for as many requests as `options` says.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_with(
        frontend: &mut Frontend,
        dev_num: u16,
        options: DiskOptions,
    ) -> Result<Self, FrontendError> {
        frontend.share_pool()?;
        frontend.start_device(dev_num, WANTS)?;
        let mut memory = Vec::new();
        match Self::bring_up(frontend, dev_num, options, &mut memory) {
            Ok(disk) => Ok(Self { memory, ..disk }),
            Err(error) => {
                if memory.is_empty() {
                    frontend.drop_device(dev_num);
                } else if let Err(error) = release(frontend, dev_num, memory) {
                    tracing::warn!(dev_num, %error, "memory stays with a device that failed");
                }
                Err(error)
            }
        }
    }

    /// What it takes from the pool goes into `memory` at once.
    fn bring_up(
        frontend: &mut Frontend,
        dev_num: u16,
        options: DiskOptions,
        memory: &mut Vec<Block>,
    ) -> Result<Self, FrontendError> {
        let handle = frontend.instance().handle;
        let failed = |why: &dyn std::fmt::Display| FrontendError::device(handle, dev_num, why);
        let limits = frontend.limits();
        let mut queue = None;
        let (features, config) = loop {
            match frontend.wait_device(dev_num, limits.answer)? {
                DriverAction::NeedQueue { index, max_size } => {
                    check_kind(frontend, dev_num)?;
                    let bytes = options.request_bytes;
                    let provided =
                        provide_queue(frontend, dev_num, (index, max_size), bytes, memory);
                    queue = Some(provided?);
                }
                DriverAction::Ready { features, config } => break (features, config),
                DriverAction::Failed(fault) => return Err(failed(&fault)),
                _ => {}
            }
        };
        check_kind(frontend, dev_num)?;
        let queue = queue.ok_or_else(|| failed(&"has no queue"))?;
        let capacity = config
            .first_chunk::<8>()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .ok_or_else(|| failed(&"has no capacity in its configuration space"))?;
        let link = frontend.link()?;
        let connection = link.number();
        let pool = link.pool_mut().ok_or_else(|| failed(&NO_MEMORY))?;
        let mut slots = Vec::new();
        while slots.len() < options.requests {
            match Slot::take(pool, options.request_bytes) {
                Ok(slot) => {
                    memory.extend([slot.control, slot.data]);
                    slots.push(slot);
                }
                Err(full) if slots.is_empty() => return Err(failed(&full)),
                Err(_) => break,
            }
        }
        Ok(Self {
            handle,
            dev_num,
            connection,
            queue,
            slots,
            segments: Default::default(),
            request_bytes: options.request_bytes,
            memory: Vec::new(),
            capacity,
            features,
            limit: limits.request,
        })
    }
}

fn check_kind(frontend: &mut Frontend, dev_num: u16) -> Result<(), FrontendError> {
    let found = frontend.with_device(dev_num, |device| device.info().device_id)?;
    if found == BLK_DEVICE_ID {
        return Ok(());
    }
    Err(FrontendError::OtherKind {
        handle: frontend.instance().handle,
        dev_num,
        wanted: BLK_DEVICE_ID,
        found,
    })
}

fn provide_queue(
    frontend: &mut Frontend,
    dev_num: u16,
    (index, max_size): (u16, u16),
    request_bytes: usize,
    memory: &mut Vec<Block>,
) -> Result<DriverQueue, FrontendError> {
    let handle = frontend.instance().handle;
    let failed = |why: &dyn std::fmt::Display| FrontendError::device(handle, dev_num, why);
    let size = QUEUE_SIZE.min(max_size);
    let features = frontend.with_device(dev_num, |device| DriverSide::features(device))?;
    let link = frontend.link()?;
    let now = link.now();
    let pool = link.pool_mut().ok_or_else(|| failed(&NO_MEMORY))?;
    // Header, data, status.
    let entries = 2_usize.saturating_add(pool.segments(request_bytes));
    let entries = u16::try_from(entries).map_err(|error| failed(&error))?;
    let mut take = |len: u32| {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let block = pool.take(len).map_err(|full| failed(&full))?;
        memory.push(block);
        Ok::<_, FrontendError>(pool.address(block, 0))
    };
    let rings = take(QueueLayout::contiguous_bytes(size))?;
    let tables = take(DriverQueue::indirect_table_bytes(size, entries))?;
    let layout = QueueLayout::contiguous(rings, size);
    let ring = RingFeatures {
        indirect: features.contains(Features::INDIRECT_DESC),
        event_idx: features.contains(Features::EVENT_IDX),
    };
    let queue = DriverQueue::new(pool, layout, ring)
        .and_then(|queue| queue.with_indirect_tables(pool, tables, entries))
        .map_err(|error| failed(&error))?;
    let setup = QueueSetup {
        size,
        desc: layout.desc,
        driver: layout.avail,
        device: layout.used,
    };
    frontend
        .with_device(dev_num, |device| device.provide_queue(now, index, setup))?
        .map_err(|error| failed(&error))?;
    Ok(queue)
}
