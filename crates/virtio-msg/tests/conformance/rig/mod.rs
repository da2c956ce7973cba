//! The peers: one device end to be asked raw requests, and a pair of ends on a virtual clock.

mod device;
mod pair;

pub(crate) use device::{Answer, DeviceRig, completion, dev, drain, set_vqueue};
pub(crate) use pair::Pair;

use std::time::Duration;
use virtio_msg::wire::{DevNum, Frame, MaxMessageSize};
use virtio_msg::{DeviceInfo, DriverConfig, Features, Limits, QueueSetup};

pub(crate) const DEV: DevNum = DevNum(0);
pub(crate) const SLOTS: u16 = 16;
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A bit of the device's own (a block device's FLUSH).
pub(crate) const FLUSH: Features = Features::bit(9);
/// Another, which the device offers only with FLUSH.
pub(crate) const WRITEBACK: Features = Features::bit(11);

pub(crate) fn limits() -> Limits {
    limits_of(264)
}

pub(crate) fn limits_of(max_message_size: u32) -> Limits {
    Limits {
        max_message_size: MaxMessageSize::new(max_message_size).unwrap(),
        slots: SLOTS,
    }
}

/// A block device: 60 bytes of configuration space, queue 0 of 256, queue 1 not usable, queue 2 of 64.
pub(crate) fn block_device() -> DeviceInfo {
    DeviceInfo {
        device_id: 2,
        vendor_id: 0x5845_4e58,
        uuid: *b"0123456789abcdef",
        features: Features::REQUIRED
            | Features::INDIRECT_DESC
            | Features::EVENT_IDX
            | Features::RING_RESET
            | Features::NOTIFICATION_DATA
            | FLUSH
            | WRITEBACK,
        prerequisites: &[virtio_msg::Prerequisite {
            feature: WRITEBACK,
            any_of: FLUSH,
        }],
        config: (0..60).collect(),
        queue_max: vec![256, 0, 64],
    }
}

pub(crate) fn wants() -> DriverConfig {
    DriverConfig {
        features: Features::RING_RESET | Features::EVENT_IDX | FLUSH,
        queues: 3,
        config_len: 60,
        request_timeout: 2 * SECOND,
        reset_timeout: 10 * SECOND,
    }
}

/// Memory for a queue; each index has its own.
pub(crate) fn setup(index: u16, size: u16) -> QueueSetup {
    let base = 0x0001_0000_0000_0000 + u64::from(index) * 0x10000;
    QueueSetup {
        size,
        desc: base,
        driver: base + 0x4000,
        device: base + 0x8000,
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Frame<'_> {
    Frame::parse(bytes, MaxMessageSize::new(65535).unwrap()).expect("a frame")
}

pub(crate) fn emit(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = vec![0; frame.wire_len()];
    frame.emit(&mut bytes).expect("it fits");
    bytes
}
