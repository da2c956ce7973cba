//! [`DeviceSide`]: the device end of the transport for one device, sans-IO (virtio-msg sections 5 and 7).
//!
//! Requests go in and are processed in receive order. What only the owner of the device can do comes out as an
//! [`Action`]; while the action of a request is under way, later requests of the device wait, and its reply is held
//! back until the [`Completion`]: a driver that reads status 0 revokes its memory. Frames, tokens' uniqueness and
//! device numbers are the bus's business; rings are not looked at.

mod config;
mod info;
mod requests;
mod state;

pub use config::OutsideConfig;
pub use info::{BadDeviceInfo, DeviceInfo, Prerequisite};
pub use state::{DeviceState, ImportError};

use crate::fault::Limits;
use crate::features::Features;
use crate::queue::QueueSetup;
use crate::round_robin::RoundRobin;
use crate::status::Status;
use crate::wire::{Event, EventAvail, EventConfig, FeatureBlocks, Request, Response, Token};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use config::ConfigSpace;
use requests::{Outcome, Step};
use thiserror::Error;

/// Fixed payload bytes of a GET_DEVICE_FEATURES response.
const FEATURES_FIXED: usize = 8;
/// Fixed payload bytes of an EVENT_CONFIG.
const EVENT_CONFIG_FIXED: usize = 16;

/// What the owner of the device has to do. All but [`Action::Kick`] are answered by a [`Completion`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// SET_VQUEUE: can these addresses be used? Leases are taken now, and kept until the queue is stopped or reset.
    CheckQueue {
        /// The queue.
        index: u16,
        /// Size and addresses; sound as numbers.
        setup: QueueSetup,
    },
    /// Start these queues: all that are enabled, at DRIVER_OK; the one queue that was enabled later.
    Start {
        /// In ascending order.
        queues: Vec<u16>,
    },
    /// RESET_VQUEUE: end all I/O of the queue and let go of its memory. It may not have been started yet.
    StopQueue {
        /// The queue.
        index: u16,
    },
    /// Status 0: end all I/O of the device and let go of every queue.
    Reset,
    /// SET_CONFIG: may these bytes be written? Applied here when the answer is yes.
    WriteConfig {
        /// First byte; the range lies inside configuration space.
        offset: u32,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A running queue has new buffers.
    Kick {
        /// The queue.
        index: u16,
    },
}

/// The end of an [`Action`]. One for something that is not under way is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Ends [`Action::CheckQueue`].
    QueueChecked {
        /// The queue.
        index: u16,
        /// Whether it can be used. If not, nothing of it may be held.
        accepted: bool,
    },
    /// Ends [`Action::Start`].
    Started {
        /// Whether the queues run. If not, the device needs a reset.
        running: bool,
    },
    /// Ends [`Action::StopQueue`]: no I/O of it is pending anywhere.
    QueueStopped {
        /// The queue.
        index: u16,
    },
    /// Ends [`Action::Reset`]: no I/O of the device is pending anywhere.
    ResetDone,
    /// Ends [`Action::WriteConfig`].
    ConfigChecked {
        /// Whether the device takes the write.
        accepted: bool,
    },
}

/// An answer that is owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of the request.
    pub token: Token,
    /// The message.
    pub response: Response<'static>,
}

/// Why a request was not taken. The device is unchanged and will not answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// More requests than may be outstanding; a fault of the peer.
    #[error("more than {bound} requests outstanding")]
    TooManyRequests {
        /// The bound.
        bound: u16,
    },
    /// The answer would not fit a message; discard.
    #[error("{num_blocks} feature blocks do not fit a message")]
    AnswerTooLong {
        /// What was asked.
        num_blocks: u32,
    },
}

/// The device end of the transport for one device.
#[derive(Clone, Debug)]
pub struct DeviceSide {
    info: DeviceInfo,
    limits: Limits,
    status: Status,
    chosen: Features,
    /// The driver asked for a bit past the 128 that exist here.
    chose_unknown: bool,
    config: ConfigSpace,
    queues: Vec<Option<QueueSetup>>,
    pending: Option<Pending>,
    waiting: VecDeque<(Token, Request<'static>)>,
    replies: VecDeque<Reply>,
    kicks: RoundRobin<u16>,
    used: RoundRobin<u16>,
    /// EVENT_CONFIG is due.
    announce: bool,
}

/// The request whose action is under way.
#[derive(Clone, Debug)]
struct Pending {
    token: Token,
    request: Request<'static>,
    step: Step,
    /// The action was handed out; before that nothing can complete it.
    asked: bool,
}

impl DeviceSide {
    /// A device after power-on: status 0, no queue enabled.
    pub fn new(info: DeviceInfo, limits: Limits) -> Result<Self, BadDeviceInfo> {
        info.check()?;
        Ok(DeviceSide {
            config: ConfigSpace::new(info.config.clone(), 0),
            queues: info.queue_max.iter().map(|_| None).collect(),
            info,
            limits,
            status: Status::empty(),
            chosen: Features::default(),
            chose_unknown: false,
            pending: None,
            waiting: VecDeque::new(),
            replies: VecDeque::new(),
            kicks: RoundRobin::new(),
            used: RoundRobin::new(),
            announce: false,
        })
    }

    /// Takes a request. It is processed when all earlier ones of the device are; poll replies and actions afterwards.
    pub fn handle(&mut self, request: Request<'_>, token: Token) -> Result<(), Refused> {
        if let Request::GetDeviceFeatures { num_blocks, .. } = request
            && !self.fits(num_blocks)
        {
            return Err(Refused::AnswerTooLong { num_blocks });
        }
        if self.open_requests() + self.replies.len() >= usize::from(self.limits.slots) {
            return Err(Refused::TooManyRequests {
                bound: self.limits.slots,
            });
        }
        self.waiting.push_back((token, request.into_owned()));
        self.process_waiting();
        Ok(())
    }

    /// Takes EVENT_AVAIL: a kick if the queue runs, else nothing (section 5.13). The hint in it is not used.
    pub fn event(&mut self, event: EventAvail) {
        let Ok(index) = u16::try_from(event.index) else {
            return;
        };
        // Before it is started, or once it is to stop, a queue takes no kick; starting looks at the ring anyway.
        let in_between = match self.pending.as_ref().map(|pending| &pending.step) {
            Some(Step::Reset) => true,
            Some(Step::StopQueue(busy) | Step::StartQueue(busy)) => *busy == index,
            _ => false,
        };
        if self.status.contains(Status::DRIVER_OK) && self.queue(index).is_some() && !in_between {
            self.kicks.set(index, ());
        }
    }

    /// The next answer, in the order of the requests.
    pub fn poll_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(pending) = &mut self.pending
            && !pending.asked
        {
            pending.asked = true;
            return Some(pending.step.action());
        }
        self.kicks.take().map(|(index, ())| Action::Kick { index })
    }

    /// The next event to send. None before DRIVER_OK.
    pub fn poll_event(&mut self) -> Option<Event<'_>> {
        if !self.has_event() {
            return None;
        }
        if self.announce {
            self.announce = false;
            let (status, generation) = (self.status.bits(), self.config.generation());
            let (offset, data) = self
                .config
                .take_change(self.limits.max_message_size.room_after(EVENT_CONFIG_FIXED));
            let length = u32::try_from(data.len()).unwrap_or_default();
            return Some(Event::Config(EventConfig {
                status,
                generation,
                offset,
                length,
                data,
            }));
        }
        self.used.take().map(|(index, ())| Event::Used {
            index: index.into(),
        })
    }

    /// Whether [`Self::poll_event`] has something.
    #[must_use]
    pub fn has_event(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && (self.announce || !self.used.is_empty())
    }

    /// Whether [`Self::poll_action`] has something.
    #[must_use]
    pub fn has_action(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| !pending.asked) || !self.kicks.is_empty()
    }

    /// Ends an action. Ignored when it is not the one under way.
    pub fn complete(&mut self, completion: Completion) {
        let Some(pending) = self
            .pending
            .take_if(|pending| pending.asked && pending.step.ends_with(&completion))
        else {
            return;
        };
        let outcome = self.finish(&pending.step, completion);
        self.settle(pending.token, pending.request, outcome);
        self.process_waiting();
    }

    /// The device used buffers of a queue: EVENT_USED is due. Nothing when the queue is not enabled.
    pub fn used(&mut self, index: u16) {
        if self.queue(index).is_some() {
            self.used.set(index, ());
        }
    }

    /// The device cannot go on: NEEDS_RESET until the driver resets it, and EVENT_CONFIG once the driver runs.
    pub fn needs_reset(&mut self) {
        self.status |= Status::NEEDS_RESET;
        self.announce = true;
    }

    /// Configuration space changed by itself: a new generation, then the bytes, then EVENT_CONFIG.
    pub fn config_changed(&mut self, offset: u32, data: &[u8]) -> Result<(), OutsideConfig> {
        self.config.change(offset, data)?;
        // A driver that has not begun will read the new bytes; one that has may have read the old ones already.
        if self.status.is_empty() {
            self.config.forget_change();
        } else {
            self.announce = true;
        }
        Ok(())
    }

    /// Requests taken and not answered yet; answers not polled yet do not count.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.waiting.len() + usize::from(self.pending.is_some())
    }

    /// Answers not polled yet.
    pub(crate) fn owed_replies(&self) -> usize {
        self.replies.len()
    }

    /// What the device says of itself.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The device status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The feature set under negotiation; final once FEATURES_OK is set.
    #[must_use]
    pub fn features(&self) -> Features {
        self.chosen
    }

    /// Configuration space as the driver reads it.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        self.config.bytes()
    }

    /// Where an enabled queue stands.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<QueueSetup> {
        self.queues.get(usize::from(index)).copied().flatten()
    }

    fn fits(&self, num_blocks: u32) -> bool {
        usize::try_from(num_blocks)
            .ok()
            .and_then(|blocks| blocks.checked_mul(FeatureBlocks::BLOCK_BYTES))
            .is_some_and(|bytes| bytes <= self.limits.max_message_size.room_after(FEATURES_FIXED))
    }

    /// Processes requests until one has to wait. At most as many as may be outstanding.
    fn process_waiting(&mut self) {
        while self.pending.is_none()
            && let Some((token, request)) = self.waiting.pop_front()
        {
            let outcome = self.process(&request);
            self.settle(token, request, outcome);
        }
    }

    fn settle(&mut self, token: Token, request: Request<'static>, outcome: Outcome) {
        match outcome {
            Outcome::Answer(response) => self.replies.push_back(Reply { token, response }),
            Outcome::Wait(step) => {
                match &step {
                    Step::Reset => self.kicks.clear_all(),
                    Step::StopQueue(index) => drop(self.kicks.clear(index)),
                    _ => {}
                }
                self.pending = Some(Pending {
                    token,
                    request,
                    step,
                    asked: false,
                });
            }
        }
    }
}
