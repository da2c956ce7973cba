//! Where a queue stands: what SET_VQUEUE says of one, checked (virtio-msg section 5.9).
//!
//! Only what follows from the numbers alone; whether memory is behind the addresses is asked of the caller.

use crate::wire::SetVqueue;

/// Size and bus addresses of a split queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueueSetup {
    /// Descriptors; a power of two.
    pub size: u16,
    /// Descriptor table: 16 bytes a descriptor, aligned to 16.
    pub desc: u64,
    /// Driver area (available ring): 6 + 2·size bytes, aligned to 2.
    pub driver: u64,
    /// Device area (used ring): 6 + 8·size bytes, aligned to 4.
    pub device: u64,
}

impl QueueSetup {
    /// Whether a queue of at most `max_size` descriptors can stand there. No part may be at address 0: Linux takes that
    /// for "not configured" (section 5.8).
    #[must_use]
    pub fn is_sound(&self, max_size: u16) -> bool {
        let size = u64::from(self.size);
        let part = |address: u64, align: u64, len: u64| {
            address != 0 && address.is_multiple_of(align) && address.checked_add(len).is_some()
        };
        self.size.is_power_of_two()
            && self.size <= max_size
            && part(self.desc, 16, 16 * size)
            && part(self.driver, 2, 6 + 2 * size)
            && part(self.device, 4, 6 + 8 * size)
    }

    /// The message that asks for this queue.
    pub(crate) fn to_request(self, index: u16) -> SetVqueue {
        SetVqueue {
            index: index.into(),
            flags: SetVqueue::ENABLE,
            size: self.size.into(),
            descriptor_addr: self.desc,
            driver_addr: self.driver,
            device_addr: self.device,
        }
    }

    /// What a SET_VQUEUE asks for, if it is one that can be asked: flag 1, or the 0 of first-draft drivers.
    pub(crate) fn from_request(queue: &SetVqueue) -> Option<Self> {
        if queue.flags > SetVqueue::ENABLE {
            return None;
        }
        Some(QueueSetup {
            size: u16::try_from(queue.size).ok()?,
            desc: queue.descriptor_addr,
            driver: queue.driver_addr,
            device: queue.device_addr,
        })
    }
}
