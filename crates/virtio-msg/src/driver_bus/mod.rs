//! [`DriverSideBus`]: the driver end of one bus instance, sans-IO (virtio-msg sections 3 and 6, binding section 4).
//!
//! It owns the tokens: a request counts, and its token stays taken, until its answer came or the device was removed,
//! whatever the timers say; at most `slots` count at once, over all devices and bus requests. Requests beyond that
//! wait here, unsent, for their turn. Notifying sets a mark, so it neither fails nor drops.

mod private;
mod tokens;

pub use private::PrivateId;

use crate::driver::{DriverAction, DriverSide};
use crate::fault::{Limits, MAX_PRIVATE_EVENTS, PeerFault};
use crate::instant::Instant;
use crate::round_robin::RoundRobin;
use crate::wire::{BusMessage, DevNum, DeviceWindow, Frame, MsgId, Presence, Response, Token};
use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;
use private::PrivateRequests;
use tokens::{Sent, Tokens};

/// Fixed payload bytes of a GET_DEVICES response.
const WINDOW_FIXED: usize = 6;

/// What the owner of the bus has to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverBusAction {
    /// For the user of a device.
    Device {
        /// The device.
        dev_num: DevNum,
        /// What to do.
        action: DriverAction,
    },
    /// There is a device that was not added yet; it answers to [`DriverSideBus::add_device`] and a start.
    Added(DevNum),
    /// A device is gone, and its driver side with it: what was outstanding has failed.
    Removed(DevNum),
    /// [`DriverSideBus::enumerate`] came to its end; every device found was told before.
    Enumerated,
    /// No answer to GET_DEVICES in time.
    EnumerationTimedOut,
    /// The answer to [`DriverSideBus::send_private`].
    PrivateAnswer {
        /// Of the request.
        id: PrivateId,
        /// Everything after the header.
        payload: Vec<u8>,
    },
    /// No answer to a private request in time. Its token stays taken.
    PrivateTimedOut(PrivateId),
    /// A private event of the device side.
    PrivateEvent {
        /// 0xc0..=0xff.
        msg_id: MsgId,
        /// Everything after the header.
        payload: Vec<u8>,
    },
    /// The device side answered our PING with this.
    Pong {
        /// Its data.
        data: u32,
    },
}

/// The driver end of one bus instance.
#[derive(Debug)]
pub struct DriverSideBus {
    limits: Limits,
    request_timeout: Duration,
    devices: BTreeMap<DevNum, Registered>,
    registrations: u64,
    tokens: Tokens,
    requests: RoundRobin<DevNum>,
    events: RoundRobin<DevNum>,
    actions: RoundRobin<DevNum>,
    private_requests: PrivateRequests,
    private_received: RoundRobin<(MsgId, Vec<u8>)>,
    enumeration: Enumeration,
    ping: Option<u32>,
    pong: Option<(Token, u32)>,
    presence: RoundRobin<DevNum, Change>,
    news: VecDeque<DriverBusAction>,
    discarded: u64,
}

#[derive(Debug)]
struct Registered {
    device: DriverSide,
    /// Tells this driver side from an earlier one under the same number.
    registration: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enumeration {
    None,
    Due { offset: u16, deadline: Instant },
    Asked { offset: u16, deadline: Instant },
}

/// What became of a number since its user was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    removed: bool,
    added: bool,
}

impl DriverSideBus {
    /// An instance of which nothing is known. Bus requests are given up after `request_timeout`.
    #[must_use]
    pub fn new(limits: Limits, request_timeout: Duration) -> Self {
        DriverSideBus {
            limits,
            request_timeout,
            devices: BTreeMap::new(),
            registrations: 0,
            tokens: Tokens::new(limits.slots),
            requests: RoundRobin::new(),
            events: RoundRobin::new(),
            actions: RoundRobin::new(),
            private_requests: PrivateRequests::default(),
            private_received: RoundRobin::new(),
            enumeration: Enumeration::None,
            ping: None,
            pong: None,
            presence: RoundRobin::new(),
            news: VecDeque::new(),
            discarded: 0,
        }
    }

    /// Asks for all devices: [`DriverBusAction::Added`] for each that is not here yet, then
    /// [`DriverBusAction::Enumerated`]. Nothing new begins while one is under way.
    pub fn enumerate(&mut self, now: Instant) {
        if self.enumeration == Enumeration::None {
            self.enumeration = Enumeration::Due {
                offset: 0,
                deadline: now + self.request_timeout,
            };
        }
    }

    /// Gives a number its driver side; one that was there is dropped, and what it had outstanding with it.
    pub fn add_device(&mut self, dev_num: DevNum, device: DriverSide) {
        self.registrations += 1;
        self.devices.insert(
            dev_num,
            Registered {
                device,
                registration: self.registrations,
            },
        );
        self.follow_up(dev_num);
    }

    /// Takes the driver side off a number. Tokens stay taken until the answers came; they find nobody.
    pub fn remove_device(&mut self, dev_num: DevNum) -> Option<DriverSide> {
        self.requests.clear(&dev_num);
        self.events.clear(&dev_num);
        self.actions.clear(&dev_num);
        self.devices
            .remove(&dev_num)
            .map(|registered| registered.device)
    }

    /// A driver side, to look at.
    #[must_use]
    pub fn device(&self, dev_num: DevNum) -> Option<&DriverSide> {
        self.devices
            .get(&dev_num)
            .map(|registered| &registered.device)
    }

    /// Every number that has a driver side, ascending.
    pub fn devices(&self) -> impl Iterator<Item = DevNum> + '_ {
        self.devices.keys().copied()
    }

    /// Uses a driver side (`start`, `provide_queue`, `kick`, …) and notices what that makes due.
    pub fn update<R>(
        &mut self,
        dev_num: DevNum,
        change: impl FnOnce(&mut DriverSide) -> R,
    ) -> Option<R> {
        let result = change(&mut self.devices.get_mut(&dev_num)?.device);
        self.follow_up(dev_num);
        Some(result)
    }

    /// Takes one frame; it may be followed by padding. What cannot be used is discarded and counted.
    pub fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), PeerFault> {
        match Frame::parse(bytes, self.limits.max_message_size) {
            Ok(Frame::Response {
                dev_num,
                token,
                response,
            }) => self.response(now, dev_num, token, &response),
            Ok(Frame::Event { dev_num, event }) => {
                if self
                    .update(dev_num, |device| device.handle_event(now, &event))
                    .is_none()
                {
                    self.discard();
                }
            }
            Ok(Frame::Bus { token, message }) => return self.bus_message(now, token, message),
            Ok(Frame::Request { .. }) | Err(_) => self.discard(),
        }
        Ok(())
    }

    /// Writes the next frame to the start of `buf`, which holds at least the maximum message size, and gives its
    /// length. To be called when the carrier has room: what it gives is gone from here.
    pub fn next_frame(&mut self, buf: &mut [u8]) -> Option<usize> {
        if buf.len() < self.limits.max_message_size.bytes() {
            return None;
        }
        if let Some((token, data)) = self.pong.take() {
            return Frame::Bus {
                token,
                message: BusMessage::Pong { data },
            }
            .emit(buf);
        }
        if let Some(frame) = self.next_request() {
            return frame.emit(buf);
        }
        let (dev_num, ()) = self.events.take()?;
        let event = self.devices.get_mut(&dev_num)?.device.poll_event()?;
        self.follow_up(dev_num);
        Frame::Event { dev_num, event }.emit(buf)
    }

    /// Whether [`Self::next_frame`] has something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        let request = self.ping.is_some()
            || matches!(self.enumeration, Enumeration::Due { .. })
            || self.private_requests.has_unsent()
            || !self.requests.is_empty();
        self.pong.is_some() || !self.events.is_empty() || request && self.tokens.has_slot()
    }

    /// The next thing to do. To be called until there is nothing, after each change.
    pub fn poll_action(&mut self) -> Option<DriverBusAction> {
        if let Some(action) = self.poll_bus_action() {
            return Some(action);
        }
        let (dev_num, ()) = self.actions.take()?;
        let action = self.devices.get_mut(&dev_num)?.device.poll_action()?;
        self.follow_up(dev_num);
        Some(DriverBusAction::Device { dev_num, action })
    }

    /// As [`Self::poll_action`], without what is for the users of devices: they ask their own, by
    /// [`Self::update`] and [`DriverSide::poll_action`].
    pub fn poll_bus_action(&mut self) -> Option<DriverBusAction> {
        if let Some((dev_num, change)) = self.presence.take() {
            if !change.removed {
                return Some(DriverBusAction::Added(dev_num));
            }
            if change.added {
                self.presence.set(
                    dev_num,
                    Change {
                        removed: false,
                        added: true,
                    },
                );
            }
            return Some(DriverBusAction::Removed(dev_num));
        }
        if let Some(news) = self.news.pop_front() {
            return Some(news);
        }
        let ((msg_id, payload), ()) = self.private_received.take()?;
        Some(DriverBusAction::PrivateEvent { msg_id, payload })
    }

    /// Queues a private request (ids 0x80..=0xbf). None when it does not fit a message.
    pub fn send_private(
        &mut self,
        now: Instant,
        msg_id: MsgId,
        payload: &[u8],
    ) -> Option<PrivateId> {
        if payload.len() > self.limits.max_message_size.room_after(0) {
            return None;
        }
        let deadline = now + self.request_timeout;
        Some(self.private_requests.ask(msg_id, payload, deadline))
    }

    /// Makes a PING due. False while an earlier one is outstanding. How long to wait for it is the caller's.
    pub fn ping(&mut self, data: u32) -> bool {
        let free = self.ping.is_none() && !self.tokens.has_ping();
        if free {
            self.ping = Some(data);
        }
        free
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let devices = self
            .devices
            .values()
            .filter_map(|registered| registered.device.poll_timeout());
        devices
            .chain(self.enumeration.deadline())
            .chain(self.private_requests.next_deadline())
            .min()
    }

    /// Looks at the clock.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self
            .enumeration
            .deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.enumeration = Enumeration::None;
            self.news.push_back(DriverBusAction::EnumerationTimedOut);
        }
        let late = self.private_requests.expire(now);
        self.news
            .extend(late.into_iter().map(DriverBusAction::PrivateTimedOut));
        let due =
            |registered: &Registered| registered.device.poll_timeout().is_some_and(|at| at <= now);
        let due: Vec<DevNum> = self
            .devices
            .iter()
            .filter(|(_, registered)| due(registered))
            .map(|(dev_num, _)| *dev_num)
            .collect();
        for dev_num in due {
            self.update(dev_num, |device| device.handle_timeout(now));
        }
    }

    /// Frames that could not be used, since the start.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Requests sent whose answers did not come.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.tokens.len()
    }

    fn response(&mut self, now: Instant, dev_num: DevNum, token: Token, response: &Response<'_>) {
        match self.tokens.get(token) {
            Some(Sent::Device {
                dev_num: asked,
                registration,
                id,
            }) if asked == dev_num => {
                self.tokens.free(token);
                if self
                    .devices
                    .get(&dev_num)
                    .is_some_and(|device| device.registration == registration)
                {
                    self.update(dev_num, |device| device.handle_response(now, id, response));
                }
            }
            _ => self.discard(),
        }
    }

    fn bus_message(
        &mut self,
        now: Instant,
        token: Token,
        message: BusMessage<'_>,
    ) -> Result<(), PeerFault> {
        match (message, self.tokens.get(token)) {
            (BusMessage::Ping { data }, _) => {
                if self.pong.is_some() {
                    return Err(PeerFault::SecondPing);
                }
                self.pong = Some((token, data));
            }
            (BusMessage::EventDevice { dev_num, state }, _) => self.presence_event(dev_num, state),
            (
                BusMessage::Private {
                    msg_id,
                    response: false,
                    payload,
                },
                _,
            ) if msg_id.is_event() => {
                let event = (msg_id, payload.into_owned());
                let new = self.private_received.get(&event).is_none();
                if new && self.private_received.len() >= MAX_PRIVATE_EVENTS {
                    return Err(PeerFault::TooManyPrivateEvents {
                        bound: MAX_PRIVATE_EVENTS,
                    });
                }
                self.private_received.set(event, ());
            }
            (BusMessage::Pong { data }, Some(Sent::Ping)) => {
                self.tokens.free(token);
                self.news.push_back(DriverBusAction::Pong { data });
            }
            (BusMessage::DeviceWindow(window), Some(Sent::Devices { offset }))
                if window.offset == offset =>
            {
                self.tokens.free(token);
                return self.window(now, &window);
            }
            (
                BusMessage::Private {
                    msg_id,
                    response: true,
                    payload,
                },
                Some(Sent::Private { id, msg_id: asked }),
            ) if msg_id == asked => {
                self.tokens.free(token);
                if self.private_requests.answered(id) {
                    self.news.push_back(DriverBusAction::PrivateAnswer {
                        id,
                        payload: payload.into_owned(),
                    });
                }
            }
            _ => self.discard(),
        }
        Ok(())
    }

    /// One step of an enumeration. It moves up by at least one window, so it ends.
    fn window(&mut self, now: Instant, window: &DeviceWindow<'_>) -> Result<(), PeerFault> {
        // An answer to an enumeration that was given up, perhaps after a newer one began, is of no use.
        if !matches!(self.enumeration, Enumeration::Asked { offset, .. } if offset == window.offset)
        {
            return Ok(());
        }
        for dev_num in window.devices() {
            self.presence_event(dev_num, Presence::ADDED);
        }
        // Some peers give the exact next number; the request must name a multiple of 8.
        let next = window.next_offset - window.next_offset % 8;
        if window.next_offset == 0 {
            self.enumeration = Enumeration::None;
            self.news.push_back(DriverBusAction::Enumerated);
        } else if next <= window.offset {
            return Err(PeerFault::NoProgress {
                offset: DevNum(window.offset),
            });
        } else {
            self.enumeration = Enumeration::Due {
                offset: next,
                deadline: now + self.request_timeout,
            };
        }
        Ok(())
    }

    fn presence_event(&mut self, dev_num: DevNum, state: Presence) {
        let change = self.presence.get(&dev_num).copied().unwrap_or_default();
        match state {
            Presence::ADDED if self.devices.contains_key(&dev_num) => {}
            Presence::ADDED => self.presence.set(
                dev_num,
                Change {
                    added: true,
                    ..change
                },
            ),
            Presence::REMOVED => {
                self.remove_device(dev_num);
                self.tokens.free_device(dev_num);
                self.presence.set(
                    dev_num,
                    Change {
                        removed: true,
                        added: false,
                    },
                );
            }
            _ => self.discard(),
        }
    }

    /// The next request, if another may be outstanding: the bus's own first, then a device's.
    fn next_request(&mut self) -> Option<Frame<'static>> {
        if !self.tokens.has_slot() {
            return None;
        }
        if let Enumeration::Due { offset, deadline } = self.enumeration {
            self.enumeration = Enumeration::Asked { offset, deadline };
            let count = self.window_len(offset);
            return Some(self.bus_request(
                Sent::Devices { offset },
                BusMessage::GetDevices { offset, count },
            ));
        }
        if let Some(data) = self.ping.take() {
            return Some(self.bus_request(Sent::Ping, BusMessage::Ping { data }));
        }
        if let Some((id, msg_id, payload)) = self.private_requests.poll() {
            let message = BusMessage::Private {
                msg_id,
                response: false,
                payload: Cow::Owned(payload),
            };
            return Some(self.bus_request(Sent::Private { id, msg_id }, message));
        }
        let (dev_num, ()) = self.requests.take()?;
        let registered = self.devices.get_mut(&dev_num)?;
        let (id, request) = registered.device.poll_request()?;
        let sent = Sent::Device {
            dev_num,
            registration: registered.registration,
            id,
        };
        let token = self.tokens.take(sent);
        self.follow_up(dev_num);
        Some(Frame::Request {
            dev_num,
            token,
            request,
        })
    }

    fn bus_request(&mut self, sent: Sent, message: BusMessage<'static>) -> Frame<'static> {
        Frame::Bus {
            token: self.tokens.take(sent),
            message,
        }
    }

    /// As many numbers as the answer can carry, and there are.
    fn window_len(&self, offset: u16) -> u16 {
        let room = self
            .limits
            .max_message_size
            .room_after(WINDOW_FIXED)
            .saturating_mul(8);
        let left = usize::from(u16::MAX - offset) + 1;
        // A multiple of 8 that 16 bits hold; the rest comes with the next window.
        u16::try_from(room.min(left)).unwrap_or(u16::MAX - 7)
    }

    /// Marks what a device has.
    fn follow_up(&mut self, dev_num: DevNum) {
        let Some(Registered { device, .. }) = self.devices.get(&dev_num) else {
            return;
        };
        let marks = [
            (device.has_request(), &mut self.requests),
            (device.has_event(), &mut self.events),
            (device.has_action(), &mut self.actions),
        ];
        for (due, marks) in marks {
            if due {
                marks.set(dev_num, ());
            } else {
                marks.clear(&dev_num);
            }
        }
    }

    fn discard(&mut self) {
        self.discarded = self.discarded.saturating_add(1);
    }
}

impl Enumeration {
    fn deadline(self) -> Option<Instant> {
        match self {
            Enumeration::None => None,
            Enumeration::Due { deadline, .. } | Enumeration::Asked { deadline, .. } => {
                Some(deadline)
            }
        }
    }
}
