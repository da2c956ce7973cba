//! Bus messages (virtio-msg section 6): GET_DEVICES, PING, EVENT_DEVICE, and private ones passed through whole.

use super::layout::{self, take};
use super::request::word;
use super::{DevNum, MsgId, WireError};
use alloc::borrow::Cow;
use zerocopy::IntoBytes;

/// A message between the two ends of a bus. Its device number is always 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BusMessage<'a> {
    /// Request: which numbers of a window have a device.
    GetDevices {
        /// First number; a multiple of 8.
        offset: u16,
        /// Numbers asked for; a multiple of 8.
        count: u16,
    },
    /// Response to [`BusMessage::GetDevices`].
    DeviceWindow(DeviceWindow<'a>),
    /// Request: answer with the same data.
    Ping {
        /// Anything.
        data: u32,
    },
    /// Response to [`BusMessage::Ping`].
    Pong {
        /// As asked.
        data: u32,
    },
    /// Event: a device came or went.
    EventDevice {
        /// The device.
        dev_num: DevNum,
        /// What happened.
        state: Presence,
    },
    /// A private message of the bus (ids 0x80 and above), for its owner to parse.
    Private {
        /// 0x80..=0xbf requests, 0xc0..=0xff events.
        msg_id: MsgId,
        /// A response, not a request or event.
        response: bool,
        /// Everything after the header.
        payload: Cow<'a, [u8]>,
    },
}

/// The payload of GET_DEVICES's response: a snapshot of one window of device numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceWindow<'a> {
    /// First number, echoed.
    pub offset: u16,
    /// Numbers covered.
    pub count: u16,
    /// Where to ask on; 0 when there is nothing more.
    pub next_offset: u16,
    /// A bit per number, lowest first.
    pub bitmap: Cow<'a, [u8]>,
}

/// What EVENT_DEVICE says of a device. Other values are reserved or private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Presence(pub u16);

impl Presence {
    /// The device can be used.
    pub const ADDED: Presence = Presence(1);
    /// The device is gone.
    pub const REMOVED: Presence = Presence(2);
}

impl<'a> BusMessage<'a> {
    /// The id under which the message travels.
    #[must_use]
    pub fn msg_id(&self) -> MsgId {
        match self {
            BusMessage::GetDevices { .. } | BusMessage::DeviceWindow(_) => MsgId::GET_DEVICES,
            BusMessage::Ping { .. } | BusMessage::Pong { .. } => MsgId::PING,
            BusMessage::EventDevice { .. } => MsgId::EVENT_DEVICE,
            BusMessage::Private { msg_id, .. } => *msg_id,
        }
    }

    /// Whether the message answers another.
    #[must_use]
    pub fn is_response(&self) -> bool {
        match self {
            BusMessage::DeviceWindow(_) | BusMessage::Pong { .. } => true,
            BusMessage::GetDevices { .. }
            | BusMessage::Ping { .. }
            | BusMessage::EventDevice { .. } => false,
            BusMessage::Private { response, .. } => *response,
        }
    }

    pub(super) fn parse(id: MsgId, response: bool, payload: &'a [u8]) -> Result<Self, WireError> {
        Ok(match (id, response) {
            (MsgId::GET_DEVICES, false) => {
                let (fixed, _) = take::<layout::GetDevices>(payload)?;
                BusMessage::GetDevices {
                    offset: fixed.offset.get(),
                    count: fixed.count.get(),
                }
            }
            (MsgId::GET_DEVICES, true) => BusMessage::DeviceWindow(DeviceWindow::parse(payload)?),
            (MsgId::PING, false) => BusMessage::Ping {
                data: word(payload)?,
            },
            (MsgId::PING, true) => BusMessage::Pong {
                data: word(payload)?,
            },
            (MsgId::EVENT_DEVICE, _) => {
                let (fixed, rest) = take::<layout::EventDevice>(payload)?;
                if !rest.is_empty() {
                    return Err(WireError::EventSize);
                }
                BusMessage::EventDevice {
                    dev_num: DevNum(fixed.dev_num.get()),
                    state: Presence(fixed.state.get()),
                }
            }
            (msg_id, response) if msg_id.is_private() => BusMessage::Private {
                msg_id,
                response,
                payload: Cow::Borrowed(payload),
            },
            _ => return Err(WireError::UnknownId(id)),
        })
    }

    /// Hands the fixed and the variable part of the payload to `f`.
    pub(super) fn parts<R>(&self, f: impl FnOnce(&[u8], &[u8]) -> R) -> R {
        match self {
            BusMessage::GetDevices { offset, count } => {
                let fixed = layout::GetDevices {
                    offset: (*offset).into(),
                    count: (*count).into(),
                };
                f(fixed.as_bytes(), &[])
            }
            BusMessage::DeviceWindow(window) => {
                let fixed = layout::DeviceWindow {
                    offset: window.offset.into(),
                    first: window.count.into(),
                    second: window.next_offset.into(),
                };
                f(fixed.as_bytes(), &window.bitmap)
            }
            BusMessage::Ping { data } | BusMessage::Pong { data } => f(
                layout::Word {
                    value: (*data).into(),
                }
                .as_bytes(),
                &[],
            ),
            BusMessage::EventDevice { dev_num, state } => {
                let fixed = layout::EventDevice {
                    dev_num: dev_num.0.into(),
                    state: state.0.into(),
                };
                f(fixed.as_bytes(), &[])
            }
            BusMessage::Private { payload, .. } => f(&[], payload),
        }
    }
}

impl<'a> DeviceWindow<'a> {
    /// Two field orders are in use (section 6.2): the count is the field that matches the length of the bitmap, the
    /// smaller one if both do. We emit count first, as every published text has it.
    fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let (fixed, bitmap) = take::<layout::DeviceWindow>(payload)?;
        let (first, second) = (fixed.first.get(), fixed.second.get());
        let fits = |count: u16| usize::from(count.div_ceil(8)) == bitmap.len();
        let (count, next_offset) = match (fits(first), fits(second)) {
            (true, true) => (first.min(second), first.max(second)),
            (true, false) => (first, second),
            (false, true) => (second, first),
            (false, false) => return Err(WireError::WindowSize),
        };
        Ok(DeviceWindow {
            offset: fixed.offset.get(),
            count,
            next_offset,
            bitmap: Cow::Borrowed(bitmap),
        })
    }

    /// The numbers that have a device, lowest first.
    pub fn devices(&self) -> impl Iterator<Item = DevNum> + '_ {
        let bits = self
            .bitmap
            .iter()
            .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
        (u32::from(self.offset)..)
            .zip(bits)
            .take(usize::from(self.count))
            .filter(|(_, present)| *present)
            .filter_map(|(number, _)| u16::try_from(number).ok().map(DevNum))
    }
}
