//! The device status byte (virtio-msg section 5.6).

use bitflags::bitflags;

bitflags! {
    /// Device status: the core field, zero-extended to 32 bits in messages.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Status: u32 {
        /// The driver has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive it.
        const DRIVER = 2;
        /// The driver is set up; the device runs.
        const DRIVER_OK = 4;
        /// The negotiated feature set stands.
        const FEATURES_OK = 8;
        /// The device cannot go on without a reset.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

impl Status {
    /// What a driver may set. NEEDS_RESET is the device's; SUSPEND (16) is never negotiated here.
    pub(crate) const BY_DRIVER: Status = Status::ACKNOWLEDGE
        .union(Status::DRIVER)
        .union(Status::DRIVER_OK)
        .union(Status::FEATURES_OK)
        .union(Status::FAILED);
}
