//! [`DriverSide`]: the driver end of the transport for one device, sans-IO (virtio-msg sections 5 and 7).
//!
//! It brings a device up in six round trips, each phase pipelined: GET_DEVICE_INFO | reset | ACKNOWLEDGE, DRIVER,
//! features, configuration, queue limits | driver features, FEATURES_OK | SET_VQUEUE and GET_VQUEUE of each queue |
//! DRIVER_OK. Nothing that the device says is believed unchecked: an answer that breaks a rule ends in
//! [`DriverAction::Failed`], from which [`start_reset`](DriverSide::start_reset) or [`start`](DriverSide::start) leads
//! back. Tokens and device numbers are the bus's business; rings are not looked at; time is passed in.

mod bring_up;
mod config;
mod fault;
mod flight;
mod queue;

pub use fault::{DriverFault, QueueError, WriteConfigError};
pub use flight::RequestId;

use crate::features::Features;
use crate::instant::Instant;
use crate::queue::QueueSetup;
use crate::round_robin::RoundRobin;
use crate::status::Status;
use crate::wire::{
    DeviceInfoResponse, Event, EventAvail, EventConfig, MaxMessageSize, Request, Response,
};
use alloc::borrow::Cow;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use config::ConfigCopy;
use core::time::Duration;
use flight::Flight;
use queue::Queue;

/// Bytes of configuration space that a driver reads at most; the largest structure of a known device is 88 bytes, and
/// `config_size` is a number that the device picks.
pub const MAX_CONFIG_LEN: u32 = 4096;

/// Between two looks at the status of a device in reset; Linux has the same number.
const RESET_POLL: Duration = Duration::from_millis(10);

/// What a driver wants of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// Bits that the driver knows. VERSION_1 and ACCESS_PLATFORM are always wanted; bits that do not belong on this
    /// transport are never accepted.
    pub features: Features,
    /// Queues that the driver could use: indexes below this are asked for, those that the device has.
    pub queues: u16,
    /// Bytes of configuration space that the driver knows, at most [`MAX_CONFIG_LEN`].
    pub config_len: u32,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// How long a reset of the device or of a queue may take: I/O may have to end first.
    pub reset_timeout: Duration,
}

/// What the user of the device has to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverAction {
    /// Memory for a queue is wanted: answer with [`DriverSide::provide_queue`] or [`DriverSide::decline_queue`].
    /// Features and configuration space are known by now.
    NeedQueue {
        /// The queue.
        index: u16,
        /// Largest size; ours must be a power of two.
        max_size: u16,
    },
    /// The device runs: buffers may be made available.
    Ready {
        /// Negotiated.
        features: Features,
        /// The part of configuration space that was asked for.
        config: Vec<u8>,
    },
    /// The device used buffers of this queue, or says so.
    Used(u16),
    /// [`DriverSide::config`] was read anew.
    ConfigChanged,
    /// The verdict on [`DriverSide::write_config`].
    ConfigWritten {
        /// As passed.
        offset: u32,
        /// All bytes were taken, or none.
        accepted: bool,
    },
    /// The device cannot go on without [`DriverSide::start_reset`]. Nothing that is outstanding may be relied on.
    NeedsReset,
    /// The driver side gave up. The memory of the queues is still the device's until a reset is done.
    Failed(DriverFault),
    /// The status reads 0: the device touches no queue any more.
    ResetDone,
    /// A queue was reset: the device does not touch it any more, and it can be provided again.
    QueueReset(u16),
    /// A queue that was provided after [`DriverAction::Ready`] runs.
    QueueReady(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Info,
    Resetting {
        bring_up: bool,
        deadline: Instant,
        poll_at: Option<Instant>,
    },
    Probing,
    Negotiating,
    Queues,
    Starting,
    Running,
    Failed,
}

/// The driver end of the transport for one device.
#[derive(Debug)]
pub struct DriverSide {
    wants: DriverConfig,
    max: MaxMessageSize,
    phase: Phase,
    flight: Flight,
    info: DeviceInfoResponse,
    offered: Features,
    features: Features,
    /// As written by us, plus NEEDS_RESET once seen.
    status: Status,
    config: ConfigCopy,
    queues: Vec<Queue>,
    kicks: RoundRobin<u16, u32>,
    used: RoundRobin<u16>,
    actions: VecDeque<DriverAction>,
}

impl DriverSide {
    /// A driver that has not begun.
    #[must_use]
    pub fn new(wants: DriverConfig, max: MaxMessageSize) -> Self {
        DriverSide {
            wants,
            max,
            phase: Phase::Idle,
            flight: Flight::default(),
            info: DeviceInfoResponse::default(),
            offered: Features::default(),
            features: Features::default(),
            status: Status::empty(),
            config: ConfigCopy::default(),
            queues: Vec::new(),
            kicks: RoundRobin::new(),
            used: RoundRobin::new(),
            actions: VecDeque::new(),
        }
    }

    /// Brings the device up, from whatever state: a reset is part of it.
    pub fn start(&mut self, now: Instant) {
        self.forget();
        self.phase = Phase::Info;
        self.ask(now, Request::GetDeviceInfo);
    }

    /// Resets the device and leaves it there, from whatever state; ends in [`DriverAction::ResetDone`].
    pub fn start_reset(&mut self, now: Instant) {
        self.reset(now, false);
    }

    /// Stops one queue; ends in [`DriverAction::QueueReset`].
    pub fn reset_queue(&mut self, now: Instant, index: u16) -> Result<(), QueueError> {
        if !self.features.contains(Features::RING_RESET) {
            return Err(QueueError::NoRingReset);
        }
        let running = self.phase == Phase::Running;
        let queue = self
            .queues
            .get_mut(usize::from(index))
            .filter(|queue| running && queue.is_enabled());
        *queue.ok_or(QueueError::WrongState(index))? = Queue::Resetting;
        self.kicks.clear(&index);
        self.used.clear(&index);
        // The answer waits for the end of I/O, and what is behind it waits with it.
        let deadline = now + self.wants.reset_timeout;
        self.flight.ask(
            Request::ResetVqueue {
                index: index.into(),
            },
            deadline,
        );
        self.flight.ask(
            Request::GetVqueue {
                index: index.into(),
            },
            deadline,
        );
        Ok(())
    }

    /// Gives memory to a queue: one that was asked for, or, in a running device, one that is not configured.
    pub fn provide_queue(
        &mut self,
        now: Instant,
        index: u16,
        setup: QueueSetup,
    ) -> Result<(), QueueError> {
        let phase = self.phase;
        let queue = self
            .queues
            .get_mut(usize::from(index))
            .ok_or(QueueError::WrongState(index))?;
        let max_size = match (*queue, phase) {
            (Queue::Wanted { max_size }, Phase::Queues)
            | (Queue::Free { max_size }, Phase::Running) => max_size,
            _ => return Err(QueueError::WrongState(index)),
        };
        if !setup.is_sound(max_size) {
            return Err(QueueError::Unsound { index, max_size });
        }
        *queue = Queue::Enabling { max_size, setup };
        self.ask(now, Request::SetVqueue(setup.to_request(index)));
        self.ask(
            now,
            Request::GetVqueue {
                index: index.into(),
            },
        );
        Ok(())
    }

    /// Leaves a queue that was asked for without memory.
    pub fn decline_queue(&mut self, now: Instant, index: u16) -> Result<(), QueueError> {
        match self.queues.get_mut(usize::from(index)) {
            Some(queue @ Queue::Wanted { .. }) => {
                let max_size = queue.free_size().unwrap_or_default();
                *queue = Queue::Free { max_size };
                self.advance(now);
                Ok(())
            }
            _ => Err(QueueError::WrongState(index)),
        }
    }

    /// Writes configuration space, all or nothing; ends in [`DriverAction::ConfigWritten`].
    pub fn write_config(
        &mut self,
        now: Instant,
        offset: u32,
        data: &[u8],
    ) -> Result<(), WriteConfigError> {
        let (len, size) = (data.len(), self.info.config_size);
        let room = ConfigCopy::chunk_len(self.max);
        if self.phase != Phase::Running {
            return Err(WriteConfigError::NotRunning);
        }
        let inside = u32::try_from(len)
            .ok()
            .and_then(|len| offset.checked_add(len))
            .is_some_and(|end| end <= size);
        if len == 0 || !inside {
            return Err(WriteConfigError::OutOfRange { offset, len, size });
        }
        if len > room {
            return Err(WriteConfigError::TooLong { len, room });
        }
        // Generation 0: the baseline profile, in which devices ignore it.
        self.ask(
            now,
            Request::SetConfig {
                generation: 0,
                offset,
                data: Cow::Owned(data.to_vec()),
            },
        );
        Ok(())
    }

    /// New buffers in a queue: EVENT_AVAIL is due, coalesced with one not sent yet. `next` is core's notification
    /// value (15 bits of ring position, then the wrap bit); it is sent only with NOTIFICATION_DATA. Nothing happens
    /// when the queue does not run.
    pub fn kick(&mut self, index: u16, next: u16) {
        if self.phase == Phase::Running && self.is_enabled(index) {
            let hint = self.features.contains(Features::NOTIFICATION_DATA);
            self.kicks.set(
                index,
                if hint {
                    EventAvail::encode_next(next)
                } else {
                    0
                },
            );
        }
    }

    /// The next request to send.
    pub fn poll_request(&mut self) -> Option<(RequestId, Request<'static>)> {
        self.flight.poll()
    }

    /// The next event to send.
    pub fn poll_event(&mut self) -> Option<Event<'static>> {
        let (index, next_offset) = self.kicks.take()?;
        Some(Event::Avail(EventAvail {
            index: index.into(),
            next_offset,
        }))
    }

    /// The next thing to do or to know.
    pub fn poll_action(&mut self) -> Option<DriverAction> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if !self.has_used() {
            return None;
        }
        self.used
            .take()
            .map(|(index, ())| DriverAction::Used(index))
    }

    /// Takes the answer to a request. Ignored when nobody waits for it any more.
    pub fn handle_response(&mut self, now: Instant, id: RequestId, response: &Response<'_>) {
        if let Some(request) = self.flight.answered(id) {
            match self.answered(now, &request, response) {
                Ok(()) => self.advance(now),
                Err(fault) => self.fail(fault),
            }
        }
    }

    /// Takes an event of the device. One that does not make sense now is ignored.
    pub fn handle_event(&mut self, now: Instant, event: &Event<'_>) {
        match event {
            Event::Config(event) => self.config_event(now, event),
            Event::Used { index } => {
                let live = matches!(self.phase, Phase::Starting | Phase::Running);
                if let Ok(index) = u16::try_from(*index)
                    && live
                    && self.is_enabled(index)
                {
                    self.used.set(index, ());
                }
            }
            Event::Avail(_) => {}
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let poll_at = match self.phase {
            Phase::Resetting { poll_at, .. } => poll_at,
            _ => None,
        };
        self.flight.next_deadline().into_iter().chain(poll_at).min()
    }

    /// Looks at the clock.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Phase::Resetting {
            deadline, poll_at, ..
        } = &mut self.phase
        {
            let deadline = *deadline;
            if now >= deadline {
                self.fail(DriverFault::ResetTimeout);
            } else if poll_at.take_if(|at| *at <= now).is_some() {
                self.flight.ask(Request::GetDeviceStatus, deadline);
            }
        } else if let Some(msg_id) = self.flight.expired(now) {
            self.fail(DriverFault::Timeout(msg_id));
        }
    }

    /// Whether [`Self::poll_request`] has something.
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.flight.has_unsent()
    }

    /// Whether [`Self::poll_event`] has something.
    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.kicks.is_empty()
    }

    /// Whether [`Self::poll_action`] has something.
    #[must_use]
    pub fn has_action(&self) -> bool {
        !self.actions.is_empty() || self.has_used()
    }

    /// What the device said of itself; all zero before it did.
    #[must_use]
    pub fn info(&self) -> &DeviceInfoResponse {
        &self.info
    }

    /// The negotiated features; empty before FEATURES_OK stands.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// The last consistent copy of the part of configuration space that was asked for.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        self.config.bytes()
    }

    /// Whether the device runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Before Ready the user has put nothing into the rings; a mark of that time is kept for then.
    fn has_used(&self) -> bool {
        self.phase == Phase::Running && !self.used.is_empty()
    }

    fn config_event(&mut self, now: Instant, event: &EventConfig<'_>) {
        let inside = event
            .offset
            .checked_add(event.length)
            .is_some_and(|end| end <= self.info.config_size);
        let begun = matches!(
            self.phase,
            Phase::Probing | Phase::Negotiating | Phase::Queues | Phase::Starting | Phase::Running
        );
        if !begun || !inside {
            return;
        }
        if Status::from_bits_truncate(event.status).contains(Status::NEEDS_RESET) {
            if self.phase != Phase::Running {
                return self.fail(DriverFault::NeedsReset);
            }
            if !self.status.contains(Status::NEEDS_RESET) {
                self.status |= Status::NEEDS_RESET;
                self.actions.push_back(DriverAction::NeedsReset);
            }
        }
        self.config.stale = true;
        self.refresh_config(now);
    }

    /// Reads configuration space again if it may have changed; one read at a time, whatever the device says.
    fn refresh_config(&mut self, now: Instant) {
        if self.phase == Phase::Running && self.config.stale && !self.config.is_reading() {
            self.read_config(now);
        }
    }

    fn read_config(&mut self, now: Instant) {
        let len = self
            .wants
            .config_len
            .min(MAX_CONFIG_LEN)
            .min(self.info.config_size);
        for request in self.config.begin(len, self.max) {
            self.ask(now, request);
        }
    }

    fn is_enabled(&self, index: u16) -> bool {
        self.queues
            .get(usize::from(index))
            .is_some_and(|queue| queue.is_enabled())
    }

    fn ask(&mut self, now: Instant, request: Request<'static>) {
        self.flight.ask(request, now + self.wants.request_timeout);
    }

    /// Says an action once, however often it becomes due before it is polled.
    fn say(&mut self, action: DriverAction) {
        if !self.actions.contains(&action) {
            self.actions.push_back(action);
        }
    }
}
