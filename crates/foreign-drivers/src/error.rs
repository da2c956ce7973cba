//! Why a foreign driver cannot be run.

use frontend_shim::{FrontendError, PoolFull};

/// What keeps a driver of the library from its device.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// The bus or the device.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// The library's memory trait knows no bus, so a thread has one.
    #[error(
        "bus {wanted}: this thread runs foreign drivers on bus {bus}; run those of bus {wanted} on a thread of their own"
    )]
    OtherBus {
        /// The bus that the thread has.
        bus: u32,
        /// The bus that was asked for.
        wanted: u32,
    },
    /// No memory for rings and buffers.
    #[error("bus {bus}: {source}")]
    NoMemory {
        /// The bus.
        bus: u32,
        /// What was asked for last.
        source: PoolFull,
    },
    /// A device type that the library does not know.
    #[error("device {dev_num}: virtio-drivers does not know virtio type {kind}")]
    UnknownType {
        /// The device number.
        dev_num: u16,
        /// What the device says that it is.
        kind: u32,
    },
    /// The driver refused the device.
    #[error("device {dev_num}: {source}")]
    Driver {
        /// The device number.
        dev_num: u16,
        /// What the library says.
        source: virtio_drivers::Error,
    },
}
