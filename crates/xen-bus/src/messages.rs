//! The private bus messages of this binding (binding section 6): AREA_SHARE, AREA_UNSHARE and
//! REMOVE_REQUEST. All are of bus type with `dev_num` 0; virtio-msg carries them as bytes.
//!
//! Payloads are taken apart and put together here; what a share does is [`crate::areas`].

use bitflags::bitflags;
use xen_types::GrantRef;

/// Message id of AREA_SHARE.
pub const AREA_SHARE: u8 = 0x81;
/// Message id of AREA_UNSHARE.
pub const AREA_UNSHARE: u8 = 0x82;
/// Message id of the REMOVE_REQUEST event.
pub const REMOVE_REQUEST: u8 = 0xc1;

/// Bytes of an AREA_SHARE request.
const SHARE_LEN: usize = 12;
/// Bytes of an AREA_UNSHARE request.
const UNSHARE_LEN: usize = 2;
/// Bytes of the answer to either.
const REPLY_LEN: usize = 4;
/// Bytes of a REMOVE_REQUEST.
const REMOVE_LEN: usize = 2;

bitflags! {
    /// Flags of AREA_SHARE. Bits that this binding does not name survive parsing.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ShareFlags: u16 {
        /// The device may write.
        const DEVICE_WRITE = 1;
        /// The followers of the first reference are consecutive: there is no directory.
        const CONSECUTIVE = 2;
    }
}

/// AREA_SHARE: the driver side shares pages under an area id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AreaShare {
    /// The id, as the peer wrote it: 0 and ids above 32,767 are refused, not malformed.
    pub area_id: u16,
    /// Direction and form.
    pub flags: ShareFlags,
    /// How many data pages.
    pub page_count: u32,
    /// The first data page, or the first directory page.
    pub first: GrantRef,
}

/// AREA_UNSHARE: the driver side takes an area back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AreaUnshare {
    /// The id, as the peer wrote it.
    pub area_id: u16,
}

/// The answer to AREA_SHARE and to AREA_UNSHARE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AreaReply {
    /// The id of the request.
    pub area_id: u16,
    /// How it ended.
    pub result: AreaResult,
}

/// REMOVE_REQUEST: the device side asks the driver to let go of a device (binding section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemoveRequest {
    /// The device.
    pub dev_num: u16,
}

/// The `result` of an [`AreaReply`]. Numbers that this binding does not name survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AreaResult(pub u16);

impl AreaResult {
    /// Done.
    pub const DONE: Self = Self(0);
    /// The request makes no sense, or a grant cannot be mapped.
    pub const REFUSED: Self = Self(1);
    /// A queue or a taken chain lies in the area; nothing changed.
    pub const BUSY: Self = Self(2);
    /// A limit of the backend is reached.
    pub const NO_ROOM: Self = Self(3);
}

impl std::fmt::Display for AreaResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::DONE => f.write_str("done"),
            Self::REFUSED => f.write_str("refused"),
            Self::BUSY => f.write_str("busy"),
            Self::NO_ROOM => f.write_str("no room"),
            Self(other) => write!(f, "unknown result {other}"),
        }
    }
}

/// A private bus message of this binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrivateMessage {
    /// A request to share.
    AreaShare(AreaShare),
    /// The answer to [`AreaShare`].
    AreaShareReply(AreaReply),
    /// A request to unshare.
    AreaUnshare(AreaUnshare),
    /// The answer to [`AreaUnshare`].
    AreaUnshareReply(AreaReply),
    /// An event.
    RemoveRequest(RemoveRequest),
}

/// A private bus message that is not one of ours; it is discarded without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The id is reserved, unknown, or an event marked as a response.
    #[error("bus message id {msg_id:#04x} ({}) is not known", kind(*.response))]
    Unknown {
        /// The message id.
        msg_id: u8,
        /// Whether the type said response.
        response: bool,
    },
    /// The payload is not exactly as long as the message says.
    #[error("bus message {msg_id:#04x} ({}) has {got} payload bytes, {expected} expected", kind(*.response))]
    Length {
        /// The message id.
        msg_id: u8,
        /// Whether the type said response.
        response: bool,
        /// Bytes that the message has.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
}

impl PrivateMessage {
    /// Bytes of the longest payload.
    pub const MAX_LEN: usize = SHARE_LEN;

    /// Takes a payload apart.
    ///
    /// # Errors
    /// Says what is wrong; the message is to be discarded.
    pub fn parse(msg_id: u8, response: bool, payload: &[u8]) -> Result<Self, MessageError> {
        let length = |expected| MessageError::Length {
            msg_id,
            response,
            expected,
            got: payload.len(),
        };
        let reply = || {
            let [i0, i1, r0, r1] = exactly::<REPLY_LEN>(payload).ok_or(length(REPLY_LEN))?;
            Ok(AreaReply {
                area_id: u16::from_le_bytes([i0, i1]),
                result: AreaResult(u16::from_le_bytes([r0, r1])),
            })
        };
        match (msg_id, response) {
            (AREA_SHARE, false) => {
                let [i0, i1, f0, f1, c0, c1, c2, c3, g0, g1, g2, g3] =
                    exactly::<SHARE_LEN>(payload).ok_or(length(SHARE_LEN))?;
                Ok(Self::AreaShare(AreaShare {
                    area_id: u16::from_le_bytes([i0, i1]),
                    flags: ShareFlags::from_bits_retain(u16::from_le_bytes([f0, f1])),
                    page_count: u32::from_le_bytes([c0, c1, c2, c3]),
                    first: GrantRef(u32::from_le_bytes([g0, g1, g2, g3])),
                }))
            }
            (AREA_SHARE, true) => reply().map(Self::AreaShareReply),
            (AREA_UNSHARE, false) => {
                let id = exactly::<UNSHARE_LEN>(payload).ok_or(length(UNSHARE_LEN))?;
                Ok(Self::AreaUnshare(AreaUnshare {
                    area_id: u16::from_le_bytes(id),
                }))
            }
            (AREA_UNSHARE, true) => reply().map(Self::AreaUnshareReply),
            (REMOVE_REQUEST, false) => {
                let dev_num = exactly::<REMOVE_LEN>(payload).ok_or(length(REMOVE_LEN))?;
                Ok(Self::RemoveRequest(RemoveRequest {
                    dev_num: u16::from_le_bytes(dev_num),
                }))
            }
            _ => Err(MessageError::Unknown { msg_id, response }),
        }
    }

    /// The message id.
    #[must_use]
    pub const fn msg_id(&self) -> u8 {
        match self {
            Self::AreaShare(_) | Self::AreaShareReply(_) => AREA_SHARE,
            Self::AreaUnshare(_) | Self::AreaUnshareReply(_) => AREA_UNSHARE,
            Self::RemoveRequest(_) => REMOVE_REQUEST,
        }
    }

    /// Whether the message is a response.
    #[must_use]
    pub const fn is_response(&self) -> bool {
        matches!(self, Self::AreaShareReply(_) | Self::AreaUnshareReply(_))
    }

    /// The payload, ready to be sent.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        match self {
            Self::AreaShare(share) => [
                &share.area_id.to_le_bytes()[..],
                &share.flags.bits().to_le_bytes(),
                &share.page_count.to_le_bytes(),
                &share.first.0.to_le_bytes(),
            ]
            .concat(),
            Self::AreaUnshare(unshare) => unshare.area_id.to_le_bytes().to_vec(),
            Self::AreaShareReply(reply) | Self::AreaUnshareReply(reply) => {
                [reply.area_id.to_le_bytes(), reply.result.0.to_le_bytes()].concat()
            }
            Self::RemoveRequest(remove) => remove.dev_num.to_le_bytes().to_vec(),
        }
    }
}

/// The payload, if it has exactly `N` bytes.
fn exactly<const N: usize>(payload: &[u8]) -> Option<[u8; N]> {
    payload.try_into().ok()
}

/// How a log names the two kinds.
const fn kind(response: bool) -> &'static str {
    if response { "response" } else { "request" }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn payloads_are_those_of_the_published_table() {
        let share = PrivateMessage::AreaShare(AreaShare {
            area_id: 0x7fff,
            flags: ShareFlags::DEVICE_WRITE | ShareFlags::CONSECUTIVE,
            page_count: 512,
            first: GrantRef(0x1234_5678),
        });
        let reply = AreaReply {
            area_id: 0x0102,
            result: AreaResult::NO_ROOM,
        };
        let unshare = PrivateMessage::AreaUnshare(AreaUnshare { area_id: 3 });
        let remove = PrivateMessage::RemoveRequest(RemoveRequest { dev_num: 0x0201 });
        for (message, msg_id, response, bytes) in [
            (
                share,
                0x81,
                false,
                &[0xff, 0x7f, 3, 0, 0, 2, 0, 0, 0x78, 0x56, 0x34, 0x12][..],
            ),
            (
                PrivateMessage::AreaShareReply(reply),
                0x81,
                true,
                &[2, 1, 3, 0],
            ),
            (unshare, 0x82, false, &[3, 0]),
            (
                PrivateMessage::AreaUnshareReply(reply),
                0x82,
                true,
                &[2, 1, 3, 0],
            ),
            (remove, 0xc1, false, &[1, 2]),
        ] {
            assert_eq!(message.emit(), bytes);
            assert_eq!(
                (message.msg_id(), message.is_response()),
                (msg_id, response)
            );
            assert_eq!(PrivateMessage::parse(msg_id, response, bytes), Ok(message));
            for bad in [&bytes[..bytes.len() - 1], &[bytes, &[0]].concat()] {
                assert_eq!(
                    PrivateMessage::parse(msg_id, response, bad),
                    Err(MessageError::Length {
                        msg_id,
                        response,
                        expected: bytes.len(),
                        got: bad.len()
                    })
                );
            }
        }
    }

    #[test]
    fn reserved_ids_and_an_answered_event_are_unknown() {
        for (msg_id, response) in [
            (0x80, false),
            (0x83, false),
            (0x88, true),
            (0x89, false),
            (0xc0, false),
            (0xc1, true),
        ] {
            let error = PrivateMessage::parse(msg_id, response, &[0; 4]).unwrap_err();
            assert_eq!(error, MessageError::Unknown { msg_id, response });
        }
        let text = MessageError::Unknown {
            msg_id: 0xc1,
            response: true,
        }
        .to_string();
        assert_eq!(text, "bus message id 0xc1 (response) is not known");
    }

    #[test]
    fn unknown_flags_survive_parsing() {
        let parsed = PrivateMessage::parse(0x81, false, &[1, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
        let Ok(PrivateMessage::AreaShare(share)) = parsed else {
            panic!("{parsed:?}");
        };
        assert_eq!(share.flags.bits(), 0x8000);
    }

    proptest! {
        #[test]
        fn what_parses_is_emitted_as_the_same_bytes(
            msg_id: u8,
            response: bool,
            payload in proptest::collection::vec(any::<u8>(), 0..16),
        ) {
            if let Ok(message) = PrivateMessage::parse(msg_id, response, &payload) {
                prop_assert_eq!(message.emit(), payload);
                prop_assert_eq!(message.msg_id(), msg_id);
                prop_assert_eq!(message.is_response(), response);
            }
        }
    }
}
