//! What a device says of itself, checked once before anybody can ask (virtio-msg sections 5.1, 5.2, 5.16).

use crate::features::Features;
use alloc::vec::Vec;
use thiserror::Error;

/// A device as its bus shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The virtio device type; not 0.
    pub device_id: u32,
    /// Implementation-defined.
    pub vendor_id: u32,
    /// Stable identity; all zero is none.
    pub uuid: [u8; 16],
    /// Offered bits, VERSION_1 and ACCESS_PLATFORM among them.
    pub features: Features,
    /// Offered bits that mean nothing without another.
    pub prerequisites: &'static [Prerequisite],
    /// Configuration space as it stands at the start.
    pub config: Vec<u8>,
    /// Largest size of each queue, a power of two; 0: the queue cannot be used.
    pub queue_max: Vec<u16>,
}

/// A feature that must not be accepted alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prerequisite {
    /// The feature.
    pub feature: Features,
    /// One of these must be accepted with it.
    pub any_of: Features,
}

/// A device that must not be put on a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadDeviceInfo {
    /// Device type 0 means "no device".
    #[error("device type 0 is reserved")]
    NoDeviceId,
    /// VERSION_1 or ACCESS_PLATFORM is missing.
    #[error("device must offer VERSION_1 and ACCESS_PLATFORM, offers {0}")]
    MissingFeatures(Features),
    /// A bit that does not exist on this transport.
    #[error("device offers bits that this transport does not have: {0}")]
    UnsuitableFeatures(Features),
    /// A bit whose prerequisite is not offered.
    #[error("device offers {0} without what it needs")]
    MissingPrerequisite(Features),
    /// A queue index must fit 16 bits.
    #[error("device has {0} queues, the transport counts 65536")]
    TooManyQueues(usize),
    /// A split queue has 1 to 32768 descriptors, a power of two.
    #[error("queue {index} cannot have {size} descriptors")]
    BadQueueSize {
        /// The queue.
        index: usize,
        /// What was said.
        size: u16,
    },
    /// Configuration space must be counted by 32 bits.
    #[error("configuration space of {0} bytes is too large")]
    ConfigTooLarge(usize),
}

impl DeviceInfo {
    pub(super) fn check(&self) -> Result<(), BadDeviceInfo> {
        let unsuitable = self.features & !Features::NEGOTIABLE;
        if self.device_id == 0 {
            return Err(BadDeviceInfo::NoDeviceId);
        }
        if !self.features.contains(Features::REQUIRED) {
            return Err(BadDeviceInfo::MissingFeatures(self.features));
        }
        if !unsuitable.is_empty() {
            return Err(BadDeviceInfo::UnsuitableFeatures(unsuitable));
        }
        if let Some(lonely) = self.unmet(self.features) {
            return Err(BadDeviceInfo::MissingPrerequisite(lonely));
        }
        if u16::try_from(self.queue_max.len().saturating_sub(1)).is_err() {
            return Err(BadDeviceInfo::TooManyQueues(self.queue_max.len()));
        }
        if let Some((index, &size)) = self
            .queue_max
            .iter()
            .enumerate()
            .find(|(_, size)| **size != 0 && !size.is_power_of_two())
        {
            return Err(BadDeviceInfo::BadQueueSize { index, size });
        }
        if u32::try_from(self.config.len()).is_err() {
            return Err(BadDeviceInfo::ConfigTooLarge(self.config.len()));
        }
        Ok(())
    }

    /// The whole verdict at FEATURES_OK: a subset of the offer, with what the transport and the bits themselves need.
    pub(super) fn accepts(&self, chosen: Features) -> bool {
        self.features.contains(chosen)
            && chosen.contains(Features::REQUIRED)
            && self.unmet(chosen).is_none()
    }

    fn unmet(&self, set: Features) -> Option<Features> {
        self.prerequisites
            .iter()
            .find(|rule| set.contains(rule.feature) && (set & rule.any_of).is_empty())
            .map(|rule| rule.feature)
    }
}
