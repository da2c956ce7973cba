//! What each request does to a device: the "bad input" tables of virtio-msg section 5, row by row.
//!
//! Malformed input never arrives here; a refusal is the message's own shape of refusal.

use super::{Action, Completion, DeviceSide};
use crate::features::Features;
use crate::queue::QueueSetup;
use crate::status::Status;
use crate::wire::{
    DeviceInfoResponse, FeatureBlocks, Request, Response, SetVqueue, VqueueResponse,
};
use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;

/// Fixed payload bytes of a GET_CONFIG response.
const CONFIG_FIXED: usize = 12;

pub(super) enum Outcome {
    Answer(Response<'static>),
    Wait(Step),
}

/// What a request waits for.
#[derive(Clone, Debug)]
pub(super) enum Step {
    CheckQueue(u16, QueueSetup),
    StartQueue(u16),
    StartAll(Vec<u16>),
    StopQueue(u16),
    Reset,
    WriteConfig(u32, Vec<u8>),
}

impl Step {
    pub(super) fn action(&self) -> Action {
        match self {
            Step::CheckQueue(index, setup) => Action::CheckQueue {
                index: *index,
                setup: *setup,
            },
            Step::StartQueue(index) => Action::Start {
                queues: vec![*index],
            },
            Step::StartAll(queues) => Action::Start {
                queues: queues.clone(),
            },
            Step::StopQueue(index) => Action::StopQueue { index: *index },
            Step::Reset => Action::Reset,
            Step::WriteConfig(offset, data) => Action::WriteConfig {
                offset: *offset,
                data: data.clone(),
            },
        }
    }

    pub(super) fn ends_with(&self, completion: &Completion) -> bool {
        match (self, completion) {
            (Step::CheckQueue(asked, _), Completion::QueueChecked { index, .. })
            | (Step::StopQueue(asked), Completion::QueueStopped { index }) => asked == index,
            (Step::StartQueue(_) | Step::StartAll(_), Completion::Started { .. })
            | (Step::Reset, Completion::ResetDone)
            | (Step::WriteConfig(..), Completion::ConfigChecked { .. }) => true,
            _ => false,
        }
    }
}

impl DeviceSide {
    pub(super) fn process(&mut self, request: &Request<'static>) -> Outcome {
        Outcome::Answer(match request {
            Request::GetDeviceInfo => self.device_info(),
            Request::GetDeviceFeatures {
                block_index,
                num_blocks,
            } => Response::GetDeviceFeatures {
                block_index: *block_index,
                blocks: FeatureBlocks::of(self.info.features, *block_index, *num_blocks),
            },
            Request::SetDriverFeatures {
                block_index,
                blocks,
            } => self.choose(*block_index, blocks),
            Request::GetConfig { offset, length } => self.read_config(*offset, *length),
            Request::SetConfig { offset, data, .. } => return self.write_config(*offset, data),
            Request::GetDeviceStatus => Response::GetDeviceStatus {
                status: self.status.bits(),
            },
            Request::SetDeviceStatus { status } => return self.set_status(*status),
            Request::GetVqueue { index } => Response::GetVqueue(self.vqueue(*index)),
            Request::SetVqueue(queue) => return self.set_vqueue(queue),
            Request::ResetVqueue { index } => return self.reset_vqueue(*index),
            // Revision 1 of the binding has no memory of the device's own (binding section 5).
            Request::GetShm { shmid } => Response::GetShm {
                shmid: *shmid,
                length: 0,
                address: 0,
            },
        })
    }

    /// What follows from the end of an action that `step` waited for.
    pub(super) fn finish(&mut self, step: &Step, completion: Completion) -> Outcome {
        match (step, completion) {
            (Step::CheckQueue(index, setup), Completion::QueueChecked { accepted: true, .. }) => {
                if let Some(queue) = self.queues.get_mut(usize::from(*index)) {
                    *queue = Some(*setup);
                }
                if self.status.contains(Status::DRIVER_OK) {
                    return Outcome::Wait(Step::StartQueue(*index));
                }
                Outcome::Answer(Response::SetVqueue)
            }
            (Step::StartAll(_), Completion::Started { running }) => {
                if running {
                    self.status |= Status::DRIVER_OK;
                } else {
                    self.needs_reset();
                }
                Outcome::Answer(Response::SetDeviceStatus {
                    status: self.status.bits(),
                })
            }
            (Step::StartQueue(_), Completion::Started { running }) => {
                if !running {
                    self.needs_reset();
                }
                Outcome::Answer(Response::SetVqueue)
            }
            (Step::StopQueue(index), _) => {
                if let Some(queue) = self.queues.get_mut(usize::from(*index)) {
                    *queue = None;
                }
                self.used.clear(index);
                Outcome::Answer(Response::ResetVqueue)
            }
            (Step::Reset, _) => {
                self.reset();
                Outcome::Answer(Response::SetDeviceStatus { status: 0 })
            }
            (Step::WriteConfig(offset, data), Completion::ConfigChecked { accepted: true }) => {
                self.config.write(*offset, data);
                Outcome::Answer(self.config_verdict(*offset, data.len()))
            }
            (Step::WriteConfig(offset, _), _) => Outcome::Answer(self.config_verdict(*offset, 0)),
            // Only a refused CheckQueue is left: ends_with has paired the rest.
            _ => Outcome::Answer(Response::SetVqueue),
        }
    }

    fn device_info(&self) -> Response<'static> {
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Response::GetDeviceInfo(DeviceInfoResponse {
            device_id: self.info.device_id,
            vendor_id: self.info.vendor_id,
            device_uuid: self.info.uuid,
            num_feature_blocks: self.info.features.blocks(),
            config_size: count(self.config.bytes().len()),
            max_virtqueues: count(self.queues.len()),
            admin_vq_start: 0,
            admin_vq_count: 0,
        })
    }

    fn choose(&mut self, first: u32, blocks: &FeatureBlocks<'_>) -> Response<'static> {
        if !self.status.contains(Status::FEATURES_OK) {
            for (i, block) in (0..).zip(blocks.iter()) {
                let held = first
                    .checked_add(i)
                    .map_or(block == 0, |index| self.chosen.set_block(index, block));
                self.chose_unknown |= !held;
            }
        }
        Response::SetDriverFeatures
    }

    fn read_config(&self, offset: u32, length: u32) -> Response<'static> {
        let room = self.limits.max_message_size.room_after(CONFIG_FIXED);
        let data = self
            .config
            .read(offset, length)
            .filter(|data| data.len() <= room)
            .unwrap_or_default();
        Response::GetConfig {
            generation: self.config.generation(),
            offset,
            data: Cow::Owned(data.to_vec()),
        }
    }

    fn write_config(&self, offset: u32, data: &[u8]) -> Outcome {
        let inside = u32::try_from(data.len())
            .is_ok_and(|length| self.config.read(offset, length).is_some());
        if data.is_empty() || !inside || !self.status.contains(Status::FEATURES_OK) {
            return Outcome::Answer(self.config_verdict(offset, 0));
        }
        Outcome::Wait(Step::WriteConfig(offset, data.to_vec()))
    }

    fn config_verdict(&self, offset: u32, length: usize) -> Response<'static> {
        let length = u32::try_from(length).unwrap_or_default();
        Response::SetConfig {
            generation: self.config.generation(),
            offset,
            length,
        }
    }

    fn set_status(&mut self, written: u32) -> Outcome {
        // The status is 8 bits wide; what is written above it is nothing.
        if written & 0xff == 0 {
            return Outcome::Wait(Step::Reset);
        }
        let written = Status::from_bits_truncate(written) & Status::BY_DRIVER;
        self.status |= written - Status::FEATURES_OK - Status::DRIVER_OK;
        if written.contains(Status::FEATURES_OK)
            && !self.chose_unknown
            && self.info.accepts(self.chosen)
        {
            self.status |= Status::FEATURES_OK;
        }
        let startable = self.status.contains(Status::FEATURES_OK)
            && !self
                .status
                .intersects(Status::DRIVER_OK | Status::NEEDS_RESET | Status::FAILED);
        if written.contains(Status::DRIVER_OK) && startable {
            return Outcome::Wait(Step::StartAll(self.enabled().collect()));
        }
        Outcome::Answer(Response::SetDeviceStatus {
            status: self.status.bits(),
        })
    }

    /// The zero sentinel for a queue that is not there or cannot be used.
    fn vqueue(&self, index: u32) -> VqueueResponse {
        let sentinel = VqueueResponse {
            index,
            ..VqueueResponse::default()
        };
        let Some(max_size) = self.queue_max(index) else {
            return sentinel;
        };
        let unconfigured = VqueueResponse {
            max_size: max_size.into(),
            ..sentinel
        };
        match u16::try_from(index)
            .ok()
            .and_then(|index| self.queue(index))
        {
            None => unconfigured,
            Some(setup) => VqueueResponse {
                cur_size: setup.size.into(),
                flags: VqueueResponse::ENABLED,
                descriptor_addr: setup.desc,
                driver_addr: setup.driver,
                device_addr: setup.device,
                ..unconfigured
            },
        }
    }

    fn set_vqueue(&self, queue: &SetVqueue) -> Outcome {
        let acceptable = || {
            let max_size = self.queue_max(queue.index)?;
            let index = u16::try_from(queue.index).ok()?;
            let setup = QueueSetup::from_request(queue)?;
            let free = self.queue(index).is_none() && self.status.contains(Status::FEATURES_OK);
            (free && setup.is_sound(max_size)).then_some((index, setup))
        };
        match acceptable() {
            Some((index, setup)) => Outcome::Wait(Step::CheckQueue(index, setup)),
            None => Outcome::Answer(Response::SetVqueue),
        }
    }

    fn reset_vqueue(&self, index: u32) -> Outcome {
        let negotiated =
            self.status.contains(Status::FEATURES_OK) && self.chosen.contains(Features::RING_RESET);
        match u16::try_from(index) {
            Ok(index) if negotiated && self.queue(index).is_some() => {
                Outcome::Wait(Step::StopQueue(index))
            }
            _ => Outcome::Answer(Response::ResetVqueue),
        }
    }

    /// The largest size of a queue that can be used.
    fn queue_max(&self, index: u32) -> Option<u16> {
        let index = usize::try_from(index).ok()?;
        self.info
            .queue_max
            .get(index)
            .copied()
            .filter(|max_size| *max_size != 0)
    }

    pub(super) fn enabled(&self) -> impl Iterator<Item = u16> + '_ {
        (0..)
            .zip(&self.queues)
            .filter(|(_, setup)| setup.is_some())
            .map(|(index, _)| index)
    }

    /// Back to power-on, but for the contents of configuration space and its generation. Requests that wait are kept.
    fn reset(&mut self) {
        let DeviceSide {
            info: _,
            limits: _,
            status,
            chosen,
            chose_unknown,
            config,
            queues,
            pending: _,
            waiting: _,
            replies: _,
            kicks,
            used,
            announce,
        } = self;
        *status = Status::empty();
        *chosen = Features::default();
        *chose_unknown = false;
        config.forget_change();
        queues.fill(None);
        kicks.clear_all();
        used.clear_all();
        *announce = false;
    }
}
