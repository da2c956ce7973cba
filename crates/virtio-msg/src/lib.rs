//! The virtio-msg transport: wire formats and both protocol state machines, without I/O.
//!
//! Everything here is a pure function of what is passed in: no file descriptor, clock, thread or random number.
//! The layers, from the wire up:
//!
//! - [`wire`]: frames from bytes and back; total for any input.
//! - [`DeviceSide`], [`DriverSide`]: one device each; requests and completions in, answers and actions out.
//! - [`DeviceSideBus`], [`DriverSideBus`]: one bus instance each; frames in, frames out; they route by device number,
//!   own the tokens, and keep the bounds of the Xen binding, section 4.
//! - [`bus`]: the trait of something that carries frames, and carriers for tests.
//!
//! A driver end asks a device end what it is; whatever carries frames stands between them:
//!
//! ```
//! use core::time::Duration;
//! use virtio_msg::wire::{DevNum, MaxMessageSize};
//! use virtio_msg::*;
//!
//! let limits = Limits { max_message_size: MaxMessageSize::RECOMMENDED, slots: 16 };
//! let entropy = DeviceInfo {
//!     device_id: 4,
//!     vendor_id: 0,
//!     uuid: [0; 16],
//!     features: Features::REQUIRED,
//!     prerequisites: &[],
//!     config: vec![],
//!     queue_max: vec![64],
//! };
//! let mut device_end = DeviceSideBus::new(limits);
//! device_end.add_device(DevNum(0), DeviceSide::new(entropy, limits)?)?;
//!
//! let second = Duration::from_secs(1);
//! let wants = DriverConfig {
//!     features: Features::default(),
//!     queues: 1,
//!     config_len: 0,
//!     request_timeout: second,
//!     reset_timeout: 10 * second,
//! };
//! let mut driver_end = DriverSideBus::new(limits, second);
//! driver_end.add_device(DevNum(0), DriverSide::new(wants, limits.max_message_size));
//! driver_end.update(DevNum(0), |driver| driver.start(Instant(0)));
//!
//! let mut slot = [0; 264];
//! let len = driver_end.next_frame(&mut slot).expect("GET_DEVICE_INFO");
//! device_end.receive(&slot[..len])?;
//! while let Some(len) = device_end.next_frame(&mut slot) {
//!     driver_end.receive(Instant(0), &slot[..len])?;
//! }
//! assert_eq!(driver_end.device(DevNum(0)).unwrap().info().device_id, 4);
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
//!
//! What an address means, how shared memory is found and who wakes whom is not known here: that is the binding's.

#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

extern crate alloc;

pub mod bus;
mod device;
mod device_bus;
mod driver;
mod driver_bus;
mod fault;
mod features;
mod instant;
mod queue;
mod round_robin;
mod status;
pub mod stock;
pub mod wire;

pub use device::{
    Action, BadDeviceInfo, Completion, DeviceInfo, DeviceSide, DeviceState, ImportError,
    OutsideConfig, Prerequisite, Refused, Reply,
};
pub use device_bus::{DeviceBusAction, DeviceBusState, DeviceSideBus, NumberInUse, PrivateRequest};
pub use driver::{
    DriverAction, DriverConfig, DriverFault, DriverSide, MAX_CONFIG_LEN, QueueError, RequestId,
    WriteConfigError,
};
pub use driver_bus::{DriverBusAction, DriverSideBus, PrivateId};
pub use fault::{Limits, PeerFault};
pub use features::Features;
pub use instant::Instant;
pub use queue::QueueSetup;
pub use status::Status;
