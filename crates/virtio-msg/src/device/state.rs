//! What of a device survives a restart of its owner: out as plain data, back in validated (binding section 9).
//!
//! Marks for events are not kept: after a restart every one of them is raised again.

use super::config::ConfigSpace;
use super::{BadDeviceInfo, DeviceInfo, DeviceSide, Refused, Reply};
use crate::fault::Limits;
use crate::features::Features;
use crate::queue::QueueSetup;
use crate::status::Status;
use crate::wire::{Request, Token};
use alloc::vec::Vec;
use thiserror::Error;

/// One device as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// The device status.
    pub status: u32,
    /// The driver's choice.
    pub features: Features,
    /// Whether the driver chose a bit that this transport does not have.
    pub chose_unknown: bool,
    /// Configuration space.
    pub config: Vec<u8>,
    /// Its generation.
    pub generation: u32,
    /// Every queue, enabled or not.
    pub queues: Vec<Option<QueueSetup>>,
    /// Requests without an answer, the one under way first. It runs again: its action may already have been done.
    pub requests: Vec<(Token, Request<'static>)>,
    /// Answers owed.
    pub replies: Vec<Reply>,
}

/// A state that no device of this description can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ImportError {
    /// The description itself.
    #[error(transparent)]
    Info(#[from] BadDeviceInfo),
    /// The sizes do not match the description.
    #[error(
        "saved state has {config} bytes of configuration and {queues} queues, not the device's"
    )]
    Shape {
        /// Bytes saved.
        config: usize,
        /// Queues saved.
        queues: usize,
    },
    /// A status that cannot be.
    #[error("saved status {0:#x} is impossible")]
    Status(u32),
    /// A queue that SET_VQUEUE would not have accepted.
    #[error("saved set-up of queue {0} is impossible")]
    Queue(u16),
    /// A request that would not have been taken.
    #[error("saved requests: {0}")]
    Request(#[from] Refused),
}

impl DeviceSide {
    /// The device as it stands.
    #[must_use]
    pub fn export(&self) -> DeviceState {
        let under_way = self
            .pending
            .iter()
            .map(|pending| (pending.token, pending.request.clone()));
        DeviceState {
            status: self.status.bits(),
            features: self.chosen,
            chose_unknown: self.chose_unknown,
            config: self.config.bytes().to_vec(),
            generation: self.config.generation(),
            queues: self.queues.clone(),
            requests: under_way.chain(self.waiting.iter().cloned()).collect(),
            replies: self.replies.iter().cloned().collect(),
        }
    }

    /// The device as it stood. Requests run again and their actions come out anew; every event is due, every enabled
    /// queue of a running device is kicked. Starting those queues before that is the caller's.
    pub fn import(
        info: DeviceInfo,
        limits: Limits,
        state: DeviceState,
    ) -> Result<Self, ImportError> {
        let mut device = DeviceSide::new(info, limits)?;
        if state.config.len() != device.info.config.len()
            || state.queues.len() != device.queues.len()
        {
            return Err(ImportError::Shape {
                config: state.config.len(),
                queues: state.queues.len(),
            });
        }
        device.status = device
            .possible_status(&state)
            .ok_or(ImportError::Status(state.status))?;
        let negotiated = device.status.contains(Status::FEATURES_OK);
        for ((index, max_size), setup) in (0..).zip(&device.info.queue_max).zip(&state.queues) {
            if setup.is_some_and(|setup| !negotiated || !setup.is_sound(*max_size)) {
                return Err(ImportError::Queue(index));
            }
        }
        device.chosen = state.features;
        device.chose_unknown = state.chose_unknown;
        device.config = ConfigSpace::new(state.config, state.generation);
        device.queues = state.queues;
        if state.replies.len() > usize::from(limits.slots) {
            return Err(Refused::TooManyRequests {
                bound: limits.slots,
            }
            .into());
        }
        device.replies = state.replies.into();
        device.raise_everything();
        for (token, request) in state.requests {
            device.handle(request, token)?;
        }
        Ok(device)
    }

    fn possible_status(&self, state: &DeviceState) -> Option<Status> {
        let status = Status::from_bits(state.status)?;
        let negotiated = status.contains(Status::FEATURES_OK);
        if status.contains(Status::DRIVER_OK) && !negotiated {
            return None;
        }
        if negotiated && (state.chose_unknown || !self.info.accepts(state.features)) {
            return None;
        }
        Some(status)
    }

    fn raise_everything(&mut self) {
        if !self.status.contains(Status::DRIVER_OK) {
            return;
        }
        self.announce = true;
        let enabled: Vec<u16> = self.enabled().collect();
        for index in enabled {
            self.kicks.set(index, ());
            self.used.set(index, ());
        }
    }
}
