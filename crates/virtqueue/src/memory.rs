//! What a ring is made of: arrays in leased memory, and the full fences of VIRTIO 1.4, 2.7.13 and
//! 2.7.14. A model checker brings its own (`model.rs`).

use std::sync::atomic::Ordering;

pub(crate) use guest_memory::LeasedArray;

/// The steps that need a full fence between a store and a load. The fences of 2 and 4, and of 6 and
/// 8, are pairs: acquire and release alone lose wake-ups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Step 2: the driver has published and looks whether the device wants to know.
    Kick,
    /// Step 4: the device has asked for notifications and looks once more.
    DeviceRearm,
    /// Step 6: the device has published and looks whether the driver wants to know.
    Signal,
    /// Step 8: the driver has asked for notifications and looks once more.
    DriverRearm,
}

/// The fence of a step.
#[inline]
pub(crate) fn fence(_: Step) {
    std::sync::atomic::fence(Ordering::SeqCst);
}
