//! From a device number to a disk that runs (virtio-msg sections 7.1 and 7.3).

use virtio_msg::Features;

use super::{
    BLK_DEVICE_ID, Disk, DiskOptions, F_BLK_SIZE, F_DISCARD, F_FLUSH, F_RO, F_WRITE_ZEROES, Slot,
};
use crate::bring_up::{NO_MEMORY, Started, open, start};
use crate::error::FrontendError;
use crate::frontend::{Frontend, Wants};
use crate::pool::{Block, Pool};

/// What is used of a block device: one queue, and configuration space up to SECURE_ERASE.
const WANTS: Wants = Wants {
    features: Features(
        F_RO.0
            | F_BLK_SIZE.0
            | F_FLUSH.0
            | F_DISCARD.0
            | F_WRITE_ZEROES.0
            | Features::INDIRECT_DESC.0
            | Features::EVENT_IDX.0,
    ),
    queues: 1,
    config_len: 60,
};

/// Where configuration space has the limits of requests that erase (virtio 1.4 section 5.2.4).
const MAX_DISCARD_SECTORS: usize = 36;
const MAX_WRITE_ZEROES_SECTORS: usize = 48;

fn u32_at(config: &[u8], at: usize) -> Option<u32> {
    let bytes = config.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

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
        let (disk, memory) = open(frontend, dev_num, WANTS, |frontend, memory| {
            Self::bring_up(frontend, dev_num, options, memory)
        })?;
        Ok(Self { memory, ..disk })
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
        // Header, data, status.
        let chain = |pool: &Pool| pool.segments(options.request_bytes).saturating_add(2);
        let started = start(frontend, dev_num, BLK_DEVICE_ID, chain, memory)?;
        let Started {
            queue,
            features,
            config,
        } = started;
        let limit = frontend.limits().request;
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
            idle: (0..slots.len()).rev().collect(),
            owners: vec![None; queue.size().into()],
            queue,
            slots,
            segments: Default::default(),
            request_bytes: options.request_bytes,
            memory: Vec::new(),
            capacity,
            features,
            erase_limits: [MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS]
                .map(|at| u32_at(&config, at).unwrap_or(0)),
            limit,
        })
    }
}
