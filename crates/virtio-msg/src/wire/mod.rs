//! Frames: every message of the virtio-msg chapter, from bytes and back (virtio-msg sections 2, 5 and 6).
//!
//! [`Frame::parse`] is total: any bytes give a frame or a reason to discard them. What is accepted is only well formed,
//! not yet sensible; sense is for the two protocol sides. Variable parts borrow from the bytes that were parsed.

mod blocks;
mod bus;
mod event;
mod id;
mod layout;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use blocks::FeatureBlocks;
pub use bus::{BusMessage, DeviceWindow, Presence};
pub use event::{Event, EventAvail, EventConfig};
pub use id::{BadMessageSize, DevNum, MaxMessageSize, MsgId, Token};
pub use request::{Request, SetVqueue};
pub use response::{DeviceInfoResponse, Response, VqueueResponse};

use thiserror::Error;
use zerocopy::IntoBytes;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Type bit: a response.
const RESPONSE: u8 = 1;
/// Type bit: a bus message.
const BUS: u8 = 2;

/// One well-formed message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Frame<'a> {
    /// Driver to device.
    Request {
        /// The device asked.
        dev_num: DevNum,
        /// To be copied into the response.
        token: Token,
        /// The message.
        request: Request<'a>,
    },
    /// Device to driver.
    Response {
        /// The device that answers.
        dev_num: DevNum,
        /// Of the request.
        token: Token,
        /// The message.
        response: Response<'a>,
    },
    /// Either direction, never answered. Its token is 0 when sent and ignored when received.
    Event {
        /// The device that sends it, or to which it goes.
        dev_num: DevNum,
        /// The message.
        event: Event<'a>,
    },
    /// Between the ends of the bus.
    Bus {
        /// Pairs a response with its request; 0 in events.
        token: Token,
        /// The message.
        message: BusMessage<'a>,
    },
}

/// Why bytes are not a frame. All of them mean: discard, answer nothing (section 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Fewer bytes than a header.
    #[error("{0} bytes are less than a header")]
    ShortFrame(usize),
    /// `msg_size` does not fit the bytes received or the bus.
    #[error("msg_size {0} does not fit the bytes received or the bus's maximum")]
    BadSize(u16),
    /// A bus message that names a device.
    #[error("bus message with device number {0}")]
    BusDevNum(DevNum),
    /// The response bit on an id of the event class.
    #[error("response bit on event id {0}")]
    EventResponse(MsgId),
    /// An id that revision 1 does not have.
    #[error("unknown message id {0}")]
    UnknownId(MsgId),
    /// Payload shorter than the message, or than its own length field says.
    #[error("payload is shorter than the message says")]
    ShortPayload,
    /// An event whose size is none of its shapes.
    #[error("event of a wrong size")]
    EventSize,
    /// A GET_DEVICES response whose bitmap matches neither field.
    #[error("device window whose bitmap does not match its count")]
    WindowSize,
}

impl<'a> Frame<'a> {
    /// Reads one frame from the start of `bytes`; bytes past `msg_size` are padding of the bus.
    /// The checks run in the order of section 2.4; whether the device number exists is for the bus.
    pub fn parse(bytes: &'a [u8], max: MaxMessageSize) -> Result<Self, WireError> {
        let (header, _) = layout::take::<layout::Header>(bytes)
            .map_err(|_| WireError::ShortFrame(bytes.len()))?;
        let msg_size = header.msg_size.get();
        let size = usize::from(msg_size);
        let payload = match bytes.get(HEADER_LEN..size) {
            Some(payload) if size <= max.bytes() => payload,
            _ => return Err(WireError::BadSize(msg_size)),
        };
        let id = MsgId(header.msg_id);
        let dev_num = DevNum(header.dev_num.get());
        let token = Token(header.token.get());
        let response = header.kind & RESPONSE != 0;
        let bus = header.kind & BUS != 0;
        if bus && dev_num != DevNum(0) {
            return Err(WireError::BusDevNum(dev_num));
        }
        if response && id.is_event() {
            return Err(WireError::EventResponse(id));
        }
        if bus {
            let message = BusMessage::parse(id, response, payload)?;
            let token = if id.is_event() { Token::EVENT } else { token };
            Ok(Frame::Bus { token, message })
        } else if response {
            Ok(Frame::Response {
                dev_num,
                token,
                response: Response::parse(id, payload)?,
            })
        } else if id.is_event() {
            Ok(Frame::Event {
                dev_num,
                event: Event::parse(id, payload)?,
            })
        } else {
            Ok(Frame::Request {
                dev_num,
                token,
                request: Request::parse(id, payload)?,
            })
        }
    }

    /// Bytes of the frame.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.parts(|fixed, tail| HEADER_LEN + fixed.len() + tail.len())
    }

    /// Writes the frame to the start of `buf` and gives its length; bytes after it are left alone.
    /// None, and nothing written, when it does not fit `buf` or the 16-bit size field.
    #[must_use]
    pub fn emit(&self, buf: &mut [u8]) -> Option<usize> {
        let (kind, msg_id, dev_num, token) = match self {
            Frame::Request {
                dev_num,
                token,
                request,
            } => (0, request.msg_id(), *dev_num, *token),
            Frame::Response {
                dev_num,
                token,
                response,
            } => (RESPONSE, response.msg_id(), *dev_num, *token),
            Frame::Event { dev_num, event } => (0, event.msg_id(), *dev_num, Token::EVENT),
            Frame::Bus { token, message } => {
                let kind = BUS | if message.is_response() { RESPONSE } else { 0 };
                (kind, message.msg_id(), DevNum(0), *token)
            }
        };
        let len = self.wire_len();
        let header = layout::Header {
            kind,
            msg_id: msg_id.0,
            dev_num: dev_num.0.into(),
            token: token.0.into(),
            msg_size: u16::try_from(len).ok()?.into(),
        };
        let (head, payload) = buf.get_mut(..len)?.split_at_mut_checked(HEADER_LEN)?;
        head.copy_from_slice(header.as_bytes());
        self.parts(|fixed, tail| {
            let (front, back) = payload.split_at_mut_checked(fixed.len())?;
            front.copy_from_slice(fixed);
            back.copy_from_slice(tail);
            Some(len)
        })
    }

    fn parts<R>(&self, f: impl FnOnce(&[u8], &[u8]) -> R) -> R {
        match self {
            Frame::Request { request, .. } => request.parts(f),
            Frame::Response { response, .. } => response.parts(f),
            Frame::Event { event, .. } => event.parts(f),
            Frame::Bus { message, .. } => message.parts(f),
        }
    }
}

/// The length field of a variable part. A part that 32 bits cannot count never fits a frame either.
fn length_of(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}
