//! [`DeviceSideBus`]: the device end of one bus instance, sans-IO (virtio-msg sections 3 and 6, binding section 4).
//!
//! Frames come in by [`receive`](DeviceSideBus::receive) and are always taken; frames go out by
//! [`next_frame`](DeviceSideBus::next_frame) when the carrier has room: answers first, in order, then pending marks,
//! round robin. What is owed is bounded by the requests that the driver side may have outstanding; a driver side that
//! has more ends the instance. Notifying sets a mark, so it neither fails nor drops.

mod restart;

pub use restart::DeviceBusState;

use crate::device::{Action, Completion, DeviceSide, Refused};
use crate::fault::{Limits, PeerFault};
use crate::round_robin::RoundRobin;
use crate::wire::{
    BusMessage, DevNum, DeviceWindow, Event, Frame, MsgId, Presence, Request, Token,
};
use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use thiserror::Error;

/// Fixed payload bytes of a GET_DEVICES response.
const WINDOW_FIXED: usize = 6;

/// What the owner of the bus has to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceBusAction {
    /// For the owner of a device.
    Device {
        /// The device.
        dev_num: DevNum,
        /// What to do; end it with [`DeviceSideBus::complete`].
        action: Action,
    },
    /// A private request; end it with [`DeviceSideBus::answer_private`].
    PrivateRequest(PrivateRequest),
    /// The driver side answered our PING with this.
    Pong {
        /// Its data.
        data: u32,
    },
}

/// A private request of the driver side (ids 0x80..=0xbf).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateRequest {
    /// Which message.
    pub msg_id: MsgId,
    /// For the answer.
    pub token: Token,
    /// Everything after the header.
    pub payload: Vec<u8>,
}

/// The number has a device, or its REMOVED has not been sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("device number {0} is in use")]
pub struct NumberInUse(pub DevNum);

/// The device end of one bus instance.
#[derive(Debug)]
pub struct DeviceSideBus {
    limits: Limits,
    devices: BTreeMap<DevNum, DeviceSide>,
    /// Requests taken whose answers have not left.
    outstanding: usize,
    owed: VecDeque<Frame<'static>>,
    private_requests: VecDeque<PrivateRequest>,
    /// The last of `private_requests` that were not handed out yet.
    private_unasked: usize,
    private_events: RoundRobin<(MsgId, Vec<u8>)>,
    presence: RoundRobin<DevNum, Presence>,
    actions: RoundRobin<DevNum>,
    events: RoundRobin<DevNum>,
    ping: OwnPing,
    discarded: u64,
}

/// The one PING that may be outstanding from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwnPing {
    None,
    Due(u32),
    Sent,
    Answered(u32),
}

/// The device side has one request of its own at most, so one token does.
const PING_TOKEN: Token = Token(1);

impl DeviceSideBus {
    /// An instance without devices.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        DeviceSideBus {
            limits,
            devices: BTreeMap::new(),
            outstanding: 0,
            owed: VecDeque::new(),
            private_requests: VecDeque::new(),
            private_unasked: 0,
            private_events: RoundRobin::new(),
            presence: RoundRobin::new(),
            actions: RoundRobin::new(),
            events: RoundRobin::new(),
            ping: OwnPing::None,
            discarded: 0,
        }
    }

    /// Puts a device on the bus; ADDED is due. Numbers should not be used twice (virtio-msg section 7.4).
    pub fn add_device(&mut self, dev_num: DevNum, device: DeviceSide) -> Result<(), NumberInUse> {
        if self.devices.contains_key(&dev_num) || self.presence.get(&dev_num).is_some() {
            return Err(NumberInUse(dev_num));
        }
        self.devices.insert(dev_num, device);
        self.presence.set(dev_num, Presence::ADDED);
        self.follow_up(dev_num);
        Ok(())
    }

    /// Takes a device off the bus. Answers that it owes go out before REMOVED, and nothing of it after: requests still
    /// open end with it.
    pub fn remove_device(&mut self, dev_num: DevNum) -> Option<DeviceSide> {
        let device = self.devices.remove(&dev_num)?;
        self.outstanding -= device.open_requests();
        self.actions.clear(&dev_num);
        self.events.clear(&dev_num);
        self.presence.set(dev_num, Presence::REMOVED);
        Some(device)
    }

    /// A device, to look at.
    #[must_use]
    pub fn device(&self, dev_num: DevNum) -> Option<&DeviceSide> {
        self.devices.get(&dev_num)
    }

    /// Every device number in use, ascending.
    pub fn devices(&self) -> impl Iterator<Item = DevNum> + '_ {
        self.devices.keys().copied()
    }

    /// Changes a device (`used`, `needs_reset`, `config_changed`) and notices what that makes due.
    pub fn update<R>(
        &mut self,
        dev_num: DevNum,
        change: impl FnOnce(&mut DeviceSide) -> R,
    ) -> Option<R> {
        let result = change(self.devices.get_mut(&dev_num)?);
        self.follow_up(dev_num);
        Some(result)
    }

    /// Ends an action of a device.
    pub fn complete(&mut self, dev_num: DevNum, completion: Completion) {
        self.update(dev_num, |device| device.complete(completion));
    }

    /// Takes one frame; it may be followed by padding. What cannot be used is discarded and counted.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), PeerFault> {
        match Frame::parse(bytes, self.limits.max_message_size) {
            Ok(Frame::Request {
                dev_num,
                token,
                request,
            }) => self.request(dev_num, token, request),
            Ok(Frame::Event {
                dev_num,
                event: Event::Avail(event),
            }) => {
                if self.update(dev_num, |device| device.event(event)).is_none() {
                    self.discard();
                }
                Ok(())
            }
            Ok(Frame::Bus { token, message }) => self.bus_message(token, message),
            Ok(Frame::Response { .. } | Frame::Event { .. }) | Err(_) => {
                self.discard();
                Ok(())
            }
        }
    }

    /// Writes the next frame to the start of `buf`, which holds at least the maximum message size, and gives its
    /// length. To be called when the carrier has room: what it gives is gone from here.
    pub fn next_frame(&mut self, buf: &mut [u8]) -> Option<usize> {
        if buf.len() < self.limits.max_message_size.bytes() {
            return None;
        }
        if let Some(answer) = self.owed.pop_front() {
            self.outstanding -= 1;
            return answer.emit(buf);
        }
        if let Some((dev_num, state)) = self.presence.take() {
            return bus_event(BusMessage::EventDevice { dev_num, state }).emit(buf);
        }
        if let Some(((msg_id, payload), ())) = self.private_events.take() {
            return bus_event(BusMessage::Private {
                msg_id,
                response: false,
                payload: payload.into(),
            })
            .emit(buf);
        }
        if let OwnPing::Due(data) = self.ping {
            self.ping = OwnPing::Sent;
            return Frame::Bus {
                token: PING_TOKEN,
                message: BusMessage::Ping { data },
            }
            .emit(buf);
        }
        let (dev_num, ()) = self.events.take()?;
        let device = self.devices.get_mut(&dev_num)?;
        let len = device
            .poll_event()
            .and_then(|event| Frame::Event { dev_num, event }.emit(buf));
        self.follow_up(dev_num);
        len
    }

    /// Whether [`Self::next_frame`] has something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !(self.owed.is_empty()
            && self.presence.is_empty()
            && self.private_events.is_empty()
            && self.events.is_empty())
            || matches!(self.ping, OwnPing::Due(_))
    }

    /// The next thing to do. To be called until there is nothing, after each change.
    pub fn poll_action(&mut self) -> Option<DeviceBusAction> {
        if let Some(next) = self
            .private_requests
            .len()
            .checked_sub(self.private_unasked)
            && let Some(request) = self.private_requests.get(next)
        {
            self.private_unasked -= 1;
            return Some(DeviceBusAction::PrivateRequest(request.clone()));
        }
        if let OwnPing::Answered(data) = self.ping {
            self.ping = OwnPing::None;
            return Some(DeviceBusAction::Pong { data });
        }
        let (dev_num, ()) = self.actions.take()?;
        let action = self.devices.get_mut(&dev_num)?.poll_action()?;
        self.follow_up(dev_num);
        Some(DeviceBusAction::Device { dev_num, action })
    }

    /// Answers a private request. False, and nothing owed, when no such request is open or the answer does not fit.
    pub fn answer_private(&mut self, msg_id: MsgId, token: Token, payload: &[u8]) -> bool {
        let asked = self.private_requests.len() - self.private_unasked;
        let open = self.private_requests.iter().take(asked);
        let found = open
            .enumerate()
            .find(|(_, request)| request.msg_id == msg_id && request.token == token);
        let Some((at, _)) = found else { return false };
        if payload.len() > self.limits.max_message_size.room_after(0) {
            return false;
        }
        self.private_requests.remove(at);
        let payload = Cow::Owned(payload.to_vec());
        self.owe(
            token,
            BusMessage::Private {
                msg_id,
                response: true,
                payload,
            },
        );
        true
    }

    /// Makes a private event due; one that equals a waiting one is that one. False when it does not fit a message.
    pub fn send_private_event(&mut self, msg_id: MsgId, payload: &[u8]) -> bool {
        let fits = payload.len() <= self.limits.max_message_size.room_after(0);
        if fits {
            self.private_events.set((msg_id, payload.to_vec()), ());
        }
        fits
    }

    /// Takes back a private event that has not left. Says whether there was one.
    pub fn retract_private_event(&mut self, msg_id: MsgId, payload: &[u8]) -> bool {
        self.private_events
            .clear(&(msg_id, payload.to_vec()))
            .is_some()
    }

    /// Makes a PING due. False while an earlier one is outstanding.
    pub fn ping(&mut self, data: u32) -> bool {
        let free = self.ping == OwnPing::None;
        if free {
            self.ping = OwnPing::Due(data);
        }
        free
    }

    /// Frames that could not be used, since the start.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Requests taken whose answers have not left.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    fn request(
        &mut self,
        dev_num: DevNum,
        token: Token,
        request: Request<'_>,
    ) -> Result<(), PeerFault> {
        let Some(device) = self.devices.get_mut(&dev_num) else {
            self.discard();
            return Ok(());
        };
        if self.outstanding >= usize::from(self.limits.slots) {
            return Err(self.too_many());
        }
        match device.handle(request, token) {
            Ok(()) => {
                self.outstanding += 1;
                self.follow_up(dev_num);
            }
            Err(Refused::AnswerTooLong { .. }) => self.discard(),
            Err(Refused::TooManyRequests { .. }) => return Err(self.too_many()),
        }
        Ok(())
    }

    fn bus_message(&mut self, token: Token, message: BusMessage<'_>) -> Result<(), PeerFault> {
        match message {
            BusMessage::GetDevices { offset, count } if offset % 8 == 0 && count % 8 == 0 => {
                self.take_bus_request()?;
                let window = self.window(offset, count);
                self.owe(token, BusMessage::DeviceWindow(window));
            }
            BusMessage::Ping { data } => {
                let owed = |frame: &Frame<'_>| {
                    matches!(
                        frame,
                        Frame::Bus {
                            message: BusMessage::Pong { .. },
                            ..
                        }
                    )
                };
                if self.owed.iter().any(owed) {
                    return Err(PeerFault::SecondPing);
                }
                self.take_bus_request()?;
                self.owe(token, BusMessage::Pong { data });
            }
            BusMessage::Pong { data } if token == PING_TOKEN && self.ping == OwnPing::Sent => {
                self.ping = OwnPing::Answered(data);
            }
            BusMessage::Private {
                msg_id,
                response: false,
                payload,
            } if !msg_id.is_event() => {
                self.take_bus_request()?;
                self.private_unasked += 1;
                let payload = payload.into_owned();
                self.private_requests.push_back(PrivateRequest {
                    msg_id,
                    token,
                    payload,
                });
            }
            _ => self.discard(),
        }
        Ok(())
    }

    /// The part of a window that fits a message and the number space, and where the next device is.
    fn window(&self, offset: u16, count: u16) -> DeviceWindow<'static> {
        let room = self
            .limits
            .max_message_size
            .room_after(WINDOW_FIXED)
            .saturating_mul(8);
        let count = usize::from(count)
            .min(room)
            .min(usize::from(u16::MAX) + 1 - usize::from(offset));
        let end = usize::from(offset) + count;
        let mut bitmap = vec![0u8; count / 8];
        for DevNum(number) in self
            .devices
            .range(DevNum(offset)..)
            .map(|(dev_num, _)| *dev_num)
        {
            let at = usize::from(number - offset);
            match bitmap.get_mut(at / 8) {
                Some(byte) => *byte |= 1 << (at % 8),
                None => break,
            }
        }
        let next = u16::try_from(end)
            .ok()
            .and_then(|end| self.devices.range(DevNum(end)..).next());
        DeviceWindow {
            offset,
            count: u16::try_from(count).unwrap_or_default(),
            next_offset: next.map_or(0, |(DevNum(number), _)| number - number % 8),
            bitmap: Cow::Owned(bitmap),
        }
    }

    /// Moves a device's answers to the queue of the bus and marks what else it has.
    fn follow_up(&mut self, dev_num: DevNum) {
        let Some(device) = self.devices.get_mut(&dev_num) else {
            return;
        };
        while let Some(reply) = device.poll_reply() {
            self.owed.push_back(Frame::Response {
                dev_num,
                token: reply.token,
                response: reply.response,
            });
        }
        if device.has_action() {
            self.actions.set(dev_num, ());
        }
        if device.has_event() {
            self.events.set(dev_num, ());
        } else {
            self.events.clear(&dev_num);
        }
    }

    fn take_bus_request(&mut self) -> Result<(), PeerFault> {
        if self.outstanding >= usize::from(self.limits.slots) {
            return Err(self.too_many());
        }
        self.outstanding += 1;
        Ok(())
    }

    fn owe(&mut self, token: Token, message: BusMessage<'static>) {
        self.owed.push_back(Frame::Bus { token, message });
    }

    fn too_many(&self) -> PeerFault {
        PeerFault::TooManyRequests {
            slots: self.limits.slots,
        }
    }

    fn discard(&mut self) {
        self.discarded = self.discarded.saturating_add(1);
    }
}

fn bus_event(message: BusMessage<'_>) -> Frame<'_> {
    Frame::Bus {
        token: Token::EVENT,
        message,
    }
}
