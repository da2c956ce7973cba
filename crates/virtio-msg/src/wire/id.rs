//! The numbers of a frame: device number, token, message id, and the size limit of a bus.
//!
//! Sources: virtio-msg sections 2.1, 2.2, 3.3 and 4. Nothing here decides who may use which number.

use core::fmt;
use thiserror::Error;

/// The number by which a bus instance knows a device. 0 is a legal device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNum(pub u16);

impl fmt::Display for DevNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Pairs a response with its request. Owned by the bus of the requester, opaque to everybody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u16);

impl Token {
    /// What an event carries.
    pub const EVENT: Token = Token(0);
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// A message id: bit 7 private, bit 6 event, the rest a number. Transport and bus messages have separate spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsgId(pub u8);

impl MsgId {
    /// Transport request.
    pub const GET_DEVICE_INFO: MsgId = MsgId(0x02);
    /// Transport request.
    pub const GET_DEVICE_FEATURES: MsgId = MsgId(0x03);
    /// Transport request.
    pub const SET_DRIVER_FEATURES: MsgId = MsgId(0x04);
    /// Transport request.
    pub const GET_CONFIG: MsgId = MsgId(0x05);
    /// Transport request.
    pub const SET_CONFIG: MsgId = MsgId(0x06);
    /// Transport request.
    pub const GET_DEVICE_STATUS: MsgId = MsgId(0x07);
    /// Transport request.
    pub const SET_DEVICE_STATUS: MsgId = MsgId(0x08);
    /// Transport request.
    pub const GET_VQUEUE: MsgId = MsgId(0x09);
    /// Transport request.
    pub const SET_VQUEUE: MsgId = MsgId(0x0a);
    /// Transport request.
    pub const RESET_VQUEUE: MsgId = MsgId(0x0b);
    /// Transport request.
    pub const GET_SHM: MsgId = MsgId(0x0c);
    /// Transport event, sent by the device.
    pub const EVENT_CONFIG: MsgId = MsgId(0x40);
    /// Transport event, sent by the driver.
    pub const EVENT_AVAIL: MsgId = MsgId(0x41);
    /// Transport event, sent by the device.
    pub const EVENT_USED: MsgId = MsgId(0x42);
    /// Bus request, sent by the driver side.
    pub const GET_DEVICES: MsgId = MsgId(0x02);
    /// Bus request, sent by either side.
    pub const PING: MsgId = MsgId(0x03);
    /// Bus event, sent by the device side.
    pub const EVENT_DEVICE: MsgId = MsgId(0x40);

    /// Whether the id is of the event class, which is never answered.
    #[must_use]
    pub const fn is_event(self) -> bool {
        self.0 & 0x40 != 0
    }

    /// Whether the meaning of the id is left to the implementation (0x80 and above).
    #[must_use]
    pub const fn is_private(self) -> bool {
        self.0 & 0x80 != 0
    }
}

impl fmt::Display for MsgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// The largest frame of a bus instance in bytes, header and payload, both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaxMessageSize(u16);

/// A maximum message size that revision 1 does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("maximum message size {0} is outside 52..=65535")]
pub struct BadMessageSize(pub u32);

impl MaxMessageSize {
    /// The floor: exactly the GET_DEVICE_INFO response.
    pub const MIN: MaxMessageSize = MaxMessageSize(52);
    /// What the specification recommends.
    pub const RECOMMENDED: MaxMessageSize = MaxMessageSize(264);

    /// Takes a size that some parameter store names.
    pub fn new(bytes: u32) -> Result<Self, BadMessageSize> {
        match u16::try_from(bytes) {
            Ok(size) if size >= Self::MIN.0 => Ok(Self(size)),
            _ => Err(BadMessageSize(bytes)),
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Bytes left for the variable part of a message whose fixed payload has `fixed` bytes.
    #[must_use]
    pub(crate) const fn room_after(self, fixed: usize) -> usize {
        self.bytes().saturating_sub(super::HEADER_LEN + fixed)
    }
}

impl Default for MaxMessageSize {
    fn default() -> Self {
        Self::RECOMMENDED
    }
}
