//! The three transport events (virtio-msg sections 5.12 to 5.14). Events are never answered and have an exact size.

use super::layout::{self, take};
use super::request::word;
use super::{MsgId, WireError};
use alloc::borrow::Cow;
use zerocopy::IntoBytes;

/// A transport event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event<'a> {
    /// Device to driver: status or configuration space changed by itself.
    Config(EventConfig<'a>),
    /// Driver to device: a queue has new buffers.
    Avail(EventAvail),
    /// Device to driver: a queue has used buffers.
    Used {
        /// The queue.
        index: u32,
    },
}

/// EVENT_CONFIG. Sent without a range, or with a range and its data; a range without data is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventConfig<'a> {
    /// The device status as it stands.
    pub status: u32,
    /// The generation of the contents.
    pub generation: u32,
    /// First changed byte.
    pub offset: u32,
    /// Changed bytes; 0 when the event names no range.
    pub length: u32,
    /// `length` bytes, or none.
    pub data: Cow<'a, [u8]>,
}

/// EVENT_AVAIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventAvail {
    /// The queue.
    pub index: u32,
    /// With NOTIFICATION_DATA: bits 0..30 offset, bit 31 wrap. A hint; the ring is the truth. 0 without the feature.
    pub next_offset: u32,
}

impl EventAvail {
    /// Core's 16-bit notification value (15 bits of position, then the wrap bit) as this message carries it.
    #[must_use]
    pub fn encode_next(next: u16) -> u32 {
        u32::from(next & 0x7fff) | u32::from(next >> 15) << 31
    }
}

impl<'a> Event<'a> {
    /// The id under which the event travels.
    #[must_use]
    pub fn msg_id(&self) -> MsgId {
        match self {
            Event::Config(_) => MsgId::EVENT_CONFIG,
            Event::Avail(_) => MsgId::EVENT_AVAIL,
            Event::Used { .. } => MsgId::EVENT_USED,
        }
    }

    pub(super) fn parse(id: MsgId, payload: &'a [u8]) -> Result<Self, WireError> {
        match id {
            MsgId::EVENT_CONFIG => {
                let (fixed, data) = take::<layout::EventConfig>(payload)?;
                let length = fixed.length.get();
                if !data.is_empty() && super::length_of(data) != length {
                    return Err(WireError::EventSize);
                }
                Ok(Event::Config(EventConfig {
                    status: fixed.status.get(),
                    generation: fixed.generation.get(),
                    offset: fixed.offset.get(),
                    length,
                    data: Cow::Borrowed(data),
                }))
            }
            MsgId::EVENT_AVAIL => {
                let (fixed, rest) = take::<layout::EventAvail>(payload)?;
                exact(rest)?;
                Ok(Event::Avail(EventAvail {
                    index: fixed.index.get(),
                    next_offset: fixed.next_offset.get(),
                }))
            }
            MsgId::EVENT_USED => {
                let index = word(payload)?;
                exact(payload.get(4..).unwrap_or_default())?;
                Ok(Event::Used { index })
            }
            _ => Err(WireError::UnknownId(id)),
        }
    }

    /// Hands the fixed and the variable part of the payload to `f`.
    pub(super) fn parts<R>(&self, f: impl FnOnce(&[u8], &[u8]) -> R) -> R {
        match self {
            Event::Config(event) => {
                let fixed = layout::EventConfig {
                    status: event.status.into(),
                    generation: event.generation.into(),
                    offset: event.offset.into(),
                    length: event.length.into(),
                };
                f(fixed.as_bytes(), &event.data)
            }
            Event::Avail(event) => {
                let fixed = layout::EventAvail {
                    index: event.index.into(),
                    next_offset: event.next_offset.into(),
                };
                f(fixed.as_bytes(), &[])
            }
            Event::Used { index } => f(
                layout::Word {
                    value: (*index).into(),
                }
                .as_bytes(),
                &[],
            ),
        }
    }
}

/// Linux drops an event of any other size (section 2.4, point 7), and so do we: padding would hide a mistake.
fn exact(rest: &[u8]) -> Result<(), WireError> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(WireError::EventSize)
    }
}
