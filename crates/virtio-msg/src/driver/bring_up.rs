//! The phases of a driver side: what each answer must be, and what follows when a phase has all its answers
//! (virtio-msg sections 5.8, 7.1 and 7.3).

use super::config::{Chunk, ConfigCopy};
use super::fault::DriverFault;
use super::queue::{News, Queue};
use super::{DriverAction, DriverSide, Phase, RESET_POLL};
use crate::features::Features;
use crate::instant::Instant;
use crate::status::Status;
use crate::wire::{DeviceInfoResponse, FeatureBlocks, Request, Response};

/// Queue indexes fit 16 bits.
const MAX_QUEUES: u32 = 1 << 16;

impl DriverSide {
    /// Takes the answer to `request`. An answer that does not belong to it is the device's fault.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        request: &Request<'_>,
        response: &Response<'_>,
    ) -> Result<(), DriverFault> {
        match (request, response) {
            (Request::GetDeviceInfo, Response::GetDeviceInfo(info)) => {
                self.info = checked_info(info)?;
                Ok(())
            }
            (
                Request::GetDeviceFeatures {
                    block_index,
                    num_blocks,
                },
                Response::GetDeviceFeatures {
                    block_index: echo,
                    blocks,
                },
            ) if block_index == echo && *num_blocks == blocks.count() => {
                for (index, block) in (*block_index..).zip(blocks.iter()) {
                    // Never out of range: no more blocks are asked for than there are.
                    self.offered.set_block(index, block);
                }
                Ok(())
            }
            (Request::SetDriverFeatures { .. }, Response::SetDriverFeatures) => Ok(()),
            (
                Request::GetConfig { offset, length },
                Response::GetConfig {
                    generation,
                    offset: echo,
                    data,
                },
            ) if offset == echo && usize::try_from(*length) == Ok(data.len()) => {
                self.config_chunk(now, *offset, *generation, data)
            }
            (
                Request::SetConfig { offset, data, .. },
                Response::SetConfig {
                    offset: echo,
                    length,
                    ..
                },
            ) if offset == echo && (*length == 0 || usize::try_from(*length) == Ok(data.len())) => {
                let accepted = *length != 0;
                self.actions.push_back(DriverAction::ConfigWritten {
                    offset: *offset,
                    accepted,
                });
                // What it reads like now is for GET_CONFIG to say.
                self.config.stale |= accepted;
                self.refresh_config(now);
                Ok(())
            }
            (Request::SetDeviceStatus { status: wrote }, Response::SetDeviceStatus { status }) => {
                self.status_written(
                    now,
                    Status::from_bits_retain(*wrote),
                    Status::from_bits_retain(*status),
                )
            }
            (Request::GetDeviceStatus, Response::GetDeviceStatus { status }) => {
                self.reset_progress(now, *status);
                Ok(())
            }
            (Request::GetVqueue { index }, Response::GetVqueue(answer))
                if *index == answer.index =>
            {
                let index = u16::try_from(*index).unwrap_or(u16::MAX);
                match self
                    .queues
                    .get_mut(usize::from(index))
                    .map(|queue| queue.answered(index, answer))
                {
                    None => Ok(()),
                    Some(news) => {
                        match news? {
                            News::Enabled if self.phase == Phase::Running => {
                                self.actions.push_back(DriverAction::QueueReady(index));
                            }
                            News::Reset => self.actions.push_back(DriverAction::QueueReset(index)),
                            News::Enabled | News::None => {}
                        }
                        Ok(())
                    }
                }
            }
            (Request::SetVqueue(_), Response::SetVqueue)
            | (Request::ResetVqueue { .. }, Response::ResetVqueue) => Ok(()),
            _ => Err(DriverFault::WrongAnswer {
                asked: request.msg_id(),
                answered: response.msg_id(),
            }),
        }
    }

    /// Goes on to the next phase when the present one has all its answers.
    pub(super) fn advance(&mut self, now: Instant) {
        if !self.flight.is_idle() {
            return;
        }
        match self.phase {
            Phase::Info => self.reset(now, true),
            Phase::Probing => self.negotiate(now),
            Phase::Negotiating => {
                self.phase = Phase::Queues;
                for (index, queue) in (0..).zip(&mut self.queues) {
                    if let Queue::Free { max_size } = *queue {
                        *queue = Queue::Wanted { max_size };
                        self.actions
                            .push_back(DriverAction::NeedQueue { index, max_size });
                    }
                }
                self.start_if_provided(now);
            }
            Phase::Queues => self.start_if_provided(now),
            Phase::Starting => {
                self.phase = Phase::Running;
                let config = self.config.bytes().to_vec();
                self.actions.push_back(DriverAction::Ready {
                    features: self.features,
                    config,
                });
                self.refresh_config(now);
            }
            Phase::Idle | Phase::Resetting { .. } | Phase::Running | Phase::Failed => {}
        }
    }

    /// Gives up. A device that knows of its driver is told, without waiting for an answer.
    pub(super) fn fail(&mut self, fault: DriverFault) {
        let told =
            self.status.contains(Status::DRIVER) && !matches!(self.phase, Phase::Resetting { .. });
        let status = self.status & Status::BY_DRIVER | Status::FAILED;
        self.forget();
        self.phase = Phase::Failed;
        if told {
            self.flight.send(Request::SetDeviceStatus {
                status: status.bits(),
            });
        }
        self.actions.push_back(DriverAction::Failed(fault));
    }

    pub(super) fn reset(&mut self, now: Instant, bring_up: bool) {
        self.forget();
        let deadline = now + self.wants.reset_timeout;
        self.phase = Phase::Resetting {
            bring_up,
            deadline,
            poll_at: None,
        };
        self.flight
            .ask(Request::SetDeviceStatus { status: 0 }, deadline);
    }

    /// Nothing of what went before counts any more, but for what the device said of itself.
    pub(super) fn forget(&mut self) {
        self.flight.forget_all();
        self.offered = Features::default();
        self.features = Features::default();
        self.status = Status::empty();
        self.config = ConfigCopy::default();
        self.queues.clear();
        self.kicks.clear_all();
        self.used.clear_all();
        self.actions.clear();
    }

    fn status_written(
        &mut self,
        now: Instant,
        wrote: Status,
        got: Status,
    ) -> Result<(), DriverFault> {
        if wrote.is_empty() {
            self.reset_progress(now, got.bits());
            return Ok(());
        }
        if got.contains(Status::NEEDS_RESET) {
            return Err(DriverFault::NeedsReset);
        }
        if !got.contains(Status::FEATURES_OK) && self.phase == Phase::Negotiating {
            return Err(DriverFault::FeaturesRefused(self.features));
        }
        if !got.contains(wrote) {
            return Err(DriverFault::StatusNotTaken { wrote, got });
        }
        Ok(())
    }

    /// The reset is done only when the status reads 0, however often one has to look.
    fn reset_progress(&mut self, now: Instant, status: u32) {
        let Phase::Resetting {
            bring_up, poll_at, ..
        } = &mut self.phase
        else {
            return;
        };
        if status != 0 {
            *poll_at = Some(now + RESET_POLL);
        } else if *bring_up {
            self.probe(now);
        } else {
            self.phase = Phase::Idle;
            self.actions.push_back(DriverAction::ResetDone);
        }
    }

    fn probe(&mut self, now: Instant) {
        self.phase = Phase::Probing;
        self.write_status(now, Status::ACKNOWLEDGE);
        self.write_status(now, Status::DRIVER);
        let num_blocks = self.info.num_feature_blocks.min(Features::MAX_BLOCKS);
        if num_blocks > 0 {
            self.ask(
                now,
                Request::GetDeviceFeatures {
                    block_index: 0,
                    num_blocks,
                },
            );
        }
        self.read_config(now);
        let (first, count) = (self.info.admin_vq_start, self.info.admin_vq_count);
        for index in 0..self.info.max_virtqueues.min(self.wants.queues.into()) {
            let admin = index >= first && index - first < count;
            self.queues
                .push(if admin { Queue::Absent } else { Queue::Unknown });
            if !admin {
                self.ask(now, Request::GetVqueue { index });
            }
        }
    }

    fn negotiate(&mut self, now: Instant) {
        let features =
            self.offered & (self.wants.features | Features::REQUIRED) & Features::NEGOTIABLE;
        if !features.contains(Features::REQUIRED) {
            return self.fail(DriverFault::MissingFeatures(self.offered));
        }
        self.phase = Phase::Negotiating;
        self.features = features;
        let count = self.info.num_feature_blocks.min(Features::MAX_BLOCKS);
        self.ask(
            now,
            Request::SetDriverFeatures {
                block_index: 0,
                blocks: FeatureBlocks::of(features, 0, count),
            },
        );
        self.write_status(now, Status::FEATURES_OK);
    }

    fn start_if_provided(&mut self, now: Instant) {
        let waiting = self
            .queues
            .iter()
            .any(|queue| matches!(queue, Queue::Wanted { .. }));
        if !waiting && self.flight.is_idle() {
            self.phase = Phase::Starting;
            self.write_status(now, Status::DRIVER_OK);
        }
    }

    fn write_status(&mut self, now: Instant, add: Status) {
        self.status |= add;
        self.ask(
            now,
            Request::SetDeviceStatus {
                status: self.status.bits(),
            },
        );
    }

    fn config_chunk(
        &mut self,
        now: Instant,
        offset: u32,
        generation: u32,
        data: &[u8],
    ) -> Result<(), DriverFault> {
        match self.config.take(offset, generation, data) {
            Chunk::Partial => {}
            Chunk::Torn => self.read_config(now),
            Chunk::Unstable => return Err(DriverFault::ConfigUnstable),
            Chunk::Complete => {
                if self.phase == Phase::Running {
                    self.say(DriverAction::ConfigChanged);
                }
                self.refresh_config(now);
            }
        }
        Ok(())
    }
}

fn checked_info(info: &DeviceInfoResponse) -> Result<DeviceInfoResponse, DriverFault> {
    if info.device_id == 0 {
        return Err(DriverFault::NoDevice);
    }
    let admin_end = u64::from(info.admin_vq_start) + u64::from(info.admin_vq_count);
    if info.max_virtqueues > MAX_QUEUES || admin_end > u64::from(info.max_virtqueues) {
        return Err(DriverFault::BadQueueCount {
            max_virtqueues: info.max_virtqueues,
            admin_start: info.admin_vq_start,
            admin_count: info.admin_vq_count,
        });
    }
    Ok(*info)
}
