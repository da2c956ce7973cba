//! From a device number to a queue that runs, and back (virtio-msg sections 7.1 and 7.3): what
//! devices of any kind have in common.

use virtio_msg::{DriverAction, DriverSide, Features, QueueSetup};
use virtqueue::{DriverQueue, QueueLayout, RingFeatures};

use crate::error::FrontendError;
use crate::frontend::{Frontend, Wants};
use crate::pool::{Block, Pool};

/// Descriptors of a queue (binding section 4: a user-space frontend's default).
const QUEUE_SIZE: u16 = 128;
/// Why a device cannot be used on a connection without a pool.
pub(crate) const NO_MEMORY: &str = "no memory is shared with the backend";

/// A device that runs, with its one queue.
pub(crate) struct Started {
    pub(crate) queue: DriverQueue,
    pub(crate) features: Features,
    pub(crate) config: Vec<u8>,
}

/// Starts a device and lets `build` make of it what its user wants; what that takes from the pool
/// goes into its `Vec` at once. Shares the frontend's memory first if that was not done yet.
///
/// # Errors
/// There is no such device, or `build` fails: then the device is reset and off the bus again. Memory
/// of a device that does not even reset stays taken until the connection ends.
pub(crate) fn open<T>(
    frontend: &mut Frontend,
    dev_num: u16,
    wants: Wants,
    build: impl FnOnce(&mut Frontend, &mut Vec<Block>) -> Result<T, FrontendError>,
) -> Result<(T, Vec<Block>), FrontendError> {
    frontend.share_pool()?;
    frontend.start_device(dev_num, wants)?;
    let mut memory = Vec::new();
    match build(frontend, &mut memory) {
        Ok(built) => Ok((built, memory)),
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

/// Brings a device of type `kind` up; `chain` says how many descriptors a request takes at most.
pub(crate) fn start(
    frontend: &mut Frontend,
    dev_num: u16,
    kind: u32,
    chain: impl Fn(&Pool) -> usize,
    memory: &mut Vec<Block>,
) -> Result<Started, FrontendError> {
    let handle = frontend.instance().handle;
    let failed = |why: &dyn std::fmt::Display| FrontendError::device(handle, dev_num, why);
    let limits = frontend.limits();
    let mut queue = None;
    let (features, config) = loop {
        match frontend.wait_device(dev_num, limits.answer)? {
            DriverAction::NeedQueue { index, max_size } => {
                check_kind(frontend, dev_num, kind)?;
                let provided = provide_queue(frontend, dev_num, (index, max_size), &chain, memory);
                queue = Some(provided?);
            }
            DriverAction::Ready { features, config } => break (features, config),
            DriverAction::Failed(fault) => return Err(failed(&fault)),
            _ => {}
        }
    };
    check_kind(frontend, dev_num, kind)?;
    Ok(Started {
        queue: queue.ok_or_else(|| failed(&"has no queue"))?,
        features,
        config,
    })
}

/// Resets the device; only then is its memory free.
pub(crate) fn release(
    frontend: &mut Frontend,
    dev_num: u16,
    memory: Vec<Block>,
) -> Result<(), FrontendError> {
    frontend.reset_device(dev_num)?;
    if let Some(pool) = frontend.link()?.pool_mut() {
        for block in memory {
            pool.give_back(block);
        }
    }
    Ok(())
}

fn check_kind(frontend: &mut Frontend, dev_num: u16, wanted: u32) -> Result<(), FrontendError> {
    let found = frontend.with_device(dev_num, |device| device.info().device_id)?;
    if found == wanted {
        return Ok(());
    }
    Err(FrontendError::OtherKind {
        handle: frontend.instance().handle,
        dev_num,
        wanted,
        found,
    })
}

fn provide_queue(
    frontend: &mut Frontend,
    dev_num: u16,
    (index, max_size): (u16, u16),
    chain: impl Fn(&Pool) -> usize,
    memory: &mut Vec<Block>,
) -> Result<DriverQueue, FrontendError> {
    let handle = frontend.instance().handle;
    let failed = |why: &dyn std::fmt::Display| FrontendError::device(handle, dev_num, why);
    let size = QUEUE_SIZE.min(max_size);
    let features = frontend.with_device(dev_num, |device| DriverSide::features(device))?;
    let link = frontend.link()?;
    let now = link.now();
    let pool = link.pool_mut().ok_or_else(|| failed(&NO_MEMORY))?;
    let entries = u16::try_from(chain(pool)).map_err(|error| failed(&error))?;
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
