//! What of a bus instance survives a restart of its owner: out as plain data, back in validated (binding section 9).

use super::{DeviceSideBus, PrivateRequest};
use crate::device::{DeviceInfo, DeviceSide, DeviceState, ImportError, Refused};
use crate::fault::Limits;
use crate::wire::{DevNum, Frame, Presence};
use alloc::vec::Vec;

/// One bus instance as plain data (binding section 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceBusState {
    /// Every device.
    pub devices: Vec<(DevNum, DeviceState)>,
    /// Answers owed, in order.
    pub owed: Vec<Frame<'static>>,
    /// Private requests without an answer.
    pub private_requests: Vec<PrivateRequest>,
    /// Numbers whose REMOVED has not been sent.
    pub removed: Vec<DevNum>,
}

impl DeviceSideBus {
    /// The instance as it stands. Marks other than REMOVED are not kept: they are raised again.
    #[must_use]
    pub fn export(&self) -> DeviceBusState {
        let removed = self
            .presence
            .iter()
            .filter(|(_, state)| **state == Presence::REMOVED);
        DeviceBusState {
            devices: self
                .devices
                .iter()
                .map(|(dev_num, device)| (*dev_num, device.export()))
                .collect(),
            owed: self.owed.iter().cloned().collect(),
            private_requests: self.private_requests.iter().cloned().collect(),
            removed: removed.map(|(dev_num, _)| *dev_num).collect(),
        }
    }

    /// The instance as it stood: requests run again, ADDED and every event are due. `describe` gives what each device
    /// says of itself; a device for which it gives nothing is removed.
    pub fn import(
        limits: Limits,
        state: DeviceBusState,
        mut describe: impl FnMut(DevNum) -> Option<DeviceInfo>,
    ) -> Result<Self, ImportError> {
        let mut bus = DeviceSideBus::new(limits);
        bus.outstanding = state.owed.len() + state.private_requests.len();
        bus.owed = state.owed.into();
        bus.private_unasked = state.private_requests.len();
        bus.private_requests = state.private_requests.into();
        for (dev_num, device) in state.devices {
            match describe(dev_num) {
                Some(info) => {
                    let device = DeviceSide::import(info, limits, device)?;
                    bus.outstanding += device.open_requests() + device.owed_replies();
                    bus.devices.insert(dev_num, device);
                    bus.presence.set(dev_num, Presence::ADDED);
                    bus.follow_up(dev_num);
                }
                None => bus.presence.set(dev_num, Presence::REMOVED),
            }
        }
        for dev_num in state.removed {
            bus.presence.set(dev_num, Presence::REMOVED);
        }
        if bus.outstanding > usize::from(limits.slots) {
            return Err(Refused::TooManyRequests {
                bound: limits.slots,
            }
            .into());
        }
        Ok(bus)
    }
}
