//! The order in which a stock driver brings a block device up: one request at a time, each waiting for
//! the answer before it. For comparison with [`crate::DriverSide`], which asks whole phases at once.
//!
//! It is the order of Linux 6.12: `register_virtio_device`, `virtio_dev_probe`, `virtblk_probe` and `init_vq`, on its
//! virtio-msg transport, which reads the status before each write of it, has a message for each configuration field,
//! and confirms each SET_VQUEUE by a GET_VQUEUE. Only a list: it looks at no answer.

use crate::features::Features;
use crate::queue::QueueSetup;
use crate::status::Status;
use crate::wire::{FeatureBlocks, Request};
use alloc::vec;
use alloc::vec::Vec;

/// 32-bit blocks that Linux knows of.
const FEATURE_BLOCKS: u32 = 2;

/// A field of configuration space: offset and bytes (VIRTIO 1.4, 5.2.4).
type Field = (u32, u32);

/// Read before the queues are set up.
const SEG_MAX: Field = (12, 4);
/// The same, with VIRTIO_BLK_F_MQ.
const NUM_QUEUES: Field = (34, 2);
/// Read afterwards: `size_max`, `blk_size`, `physical_block_exp`, `alignment_offset`, `min_io_size`, `opt_io_size`, what
/// discard and write zeroes are limited to, `writeback`, `capacity`.
const LIMITS: [Field; 11] = [
    (8, 4),
    (20, 4),
    (24, 1),
    (25, 1),
    (26, 2),
    (28, 4),
    (36, 4),
    (40, 4),
    (48, 4),
    (32, 1),
    (0, 8),
];

/// All requests of the bring-up of a block device with these queues, which chooses `features`: 29 messages each way for
/// one queue, 33 for two, 51 for eight.
#[must_use]
pub fn block_bring_up(features: Features, queues: &[QueueSetup]) -> Vec<Request<'static>> {
    let mut requests = vec![Request::GetDeviceInfo, set_status(Status::empty())];
    let mut status = Status::empty();
    add_status(&mut requests, &mut status, Status::ACKNOWLEDGE);
    add_status(&mut requests, &mut status, Status::DRIVER);
    requests.push(Request::GetDeviceFeatures {
        block_index: 0,
        num_blocks: FEATURE_BLOCKS,
    });
    requests.push(Request::SetDriverFeatures {
        block_index: 0,
        blocks: FeatureBlocks::of(features, 0, FEATURE_BLOCKS),
    });
    add_status(&mut requests, &mut status, Status::FEATURES_OK);
    // Whether it stands.
    requests.push(Request::GetDeviceStatus);
    requests.push(get_config(SEG_MAX));
    if queues.len() > 1 {
        requests.push(get_config(NUM_QUEUES));
    }
    for (index, setup) in (0..).zip(queues) {
        let get = Request::GetVqueue {
            index: u32::from(index),
        };
        requests.extend([
            get.clone(),
            Request::SetVqueue(setup.to_request(index)),
            get,
        ]);
    }
    requests.extend(LIMITS.map(get_config));
    add_status(&mut requests, &mut status, Status::DRIVER_OK);
    // Whether the driver has done that itself.
    requests.push(Request::GetDeviceStatus);
    requests
}

/// Read, modify, write.
fn add_status(requests: &mut Vec<Request<'static>>, status: &mut Status, add: Status) {
    *status |= add;
    requests.extend([Request::GetDeviceStatus, set_status(*status)]);
}

fn set_status(status: Status) -> Request<'static> {
    Request::SetDeviceStatus {
        status: status.bits(),
    }
}

fn get_config((offset, length): Field) -> Request<'static> {
    Request::GetConfig { offset, length }
}
