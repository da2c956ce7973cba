//! From a device number to a disk that runs (virtio-msg sections 7.1 and 7.3).

use std::time::Duration;

use virtio_msg::wire::DevNum;
use virtio_msg::{DriverAction, DriverBusAction, DriverConfig, DriverSide, Features, QueueSetup};
use virtqueue::{DriverQueue, QueueLayout, RingFeatures};

use super::{
    BLK_DEVICE_ID, Disk, DiskOptions, F_BLK_SIZE, F_FLUSH, F_RO, RESET_LIMIT, Slot, failed, pool,
};
use crate::error::FrontendError;
use crate::frontend::Frontend;
use crate::pool::Block;

/// Descriptors of the queue (binding section 4: a user-space frontend's default).
const QUEUE_SIZE: u16 = 128;
/// Descriptors of a request: header, data, status.
const TABLE_ENTRIES: u16 = 3;
/// Bytes of configuration space that are read: all up to SECURE_ERASE.
const CONFIG_LEN: u32 = 60;
/// How long an answer to a message may take.
const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

impl Disk {
    /// Brings device `dev_num` up with the default [`DiskOptions`]. Shares the frontend's memory first
    /// if that was not done yet.
    ///
    /// # Errors
    /// There is no such device, it is no block device, or it does not come up.
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
                    return Self::new(frontend, dev_num, queue, blocks, features, &config, options);
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
        options: DiskOptions,
    ) -> Result<Self, FrontendError> {
        let capacity = config
            .first_chunk::<8>()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .ok_or_else(|| failed(dev_num.0, "has no capacity in its configuration space"))?;
        let pool = pool(frontend, dev_num)?;
        let mut slots = Vec::new();
        while slots.len() < options.requests {
            match Slot::take(pool, options.request_bytes) {
                Ok(slot) => slots.push(slot),
                Err(full) if slots.is_empty() => return Err(failed(dev_num.0, full)),
                Err(_) => break,
            }
        }
        Ok(Self {
            dev_num,
            queue,
            slots,
            request_bytes: options.request_bytes,
            queue_blocks,
            capacity,
            features,
        })
    }
}

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
