//! Where everything lies in the pages of a message ring (binding section 4).
//!
//! A layout is a pure function of the ring's page order and its message size; both sides compute
//! it and the header in the ring says the same, so that a disagreement is found at attach.

use xen_types::PAGE_SIZE;

/// Highest page order of a ring: 16 pages. Bounds what an instance makes the backend map, and
/// leaves room for the smallest number of slots of the largest message.
pub const MAX_RING_PAGE_ORDER: u32 = 4;

/// Pages of the largest ring.
pub const MAX_RING_PAGES: usize = 1 << MAX_RING_PAGE_ORDER;

/// Smallest message size: virtio-msg's floor, the answer to GET_DEVICE_INFO.
pub const MIN_MESSAGE_SIZE: u16 = 52;

/// Largest message size: the largest whose stride leaves [`MIN_SLOTS`] slots per direction in a
/// ring of order [`MAX_RING_PAGE_ORDER`].
pub const MAX_MESSAGE_SIZE: u16 = 8128;

/// The message size that a backend offers and a frontend takes if nobody says otherwise.
pub const DEFAULT_MESSAGE_SIZE: u16 = 264;

/// Fewest slots per direction: fewer would make every exchange wait for the other side.
pub const MIN_SLOTS: u32 = 4;

/// A writer's cache line: slots start on one and are a multiple of it.
const LINE: u32 = 64;

/// Offset of the to-device slots: the header's line and four lines of indexes come first.
pub(crate) const SLOTS_OFFSET: u32 = 5 * LINE;

/// The two directions of a ring, named after the receiver's virtio role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Frontend to backend.
    ToDevice,
    /// Backend to frontend.
    ToDriver,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Direction::ToDevice => "to-device",
            Direction::ToDriver => "to-driver",
        })
    }
}

/// Sizes and offsets of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingLayout {
    order: u32,
    message_size: u16,
    stride: u32,
    slots: u32,
}

/// A page order and a message size that make no ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More pages than a ring may have.
    #[error("ring page order is {0}, at most {MAX_RING_PAGE_ORDER} is allowed")]
    Order(u32),
    /// The message size is out of bounds.
    #[error("message size is {0}, {MIN_MESSAGE_SIZE} to {MAX_MESSAGE_SIZE} is allowed")]
    MessageSize(u32),
    /// The pages do not hold [`MIN_SLOTS`] slots per direction.
    #[error(
        "a ring of page order {order} holds {slots} slots of message size {message_size} \
         per direction, {MIN_SLOTS} are needed"
    )]
    TooFewSlots {
        /// The page order.
        order: u32,
        /// The message size in bytes.
        message_size: u16,
        /// How many slots would fit.
        slots: u32,
    },
}

impl RingLayout {
    /// The layout of a ring of 2^`order` pages for messages of up to `message_size` bytes.
    ///
    /// # Errors
    /// Says which of the two is out of bounds, or that they do not go together.
    pub fn new(order: u32, message_size: u32) -> Result<Self, LayoutError> {
        if order > MAX_RING_PAGE_ORDER {
            return Err(LayoutError::Order(order));
        }
        let message_size = u16::try_from(message_size)
            .ok()
            .filter(|size| (MIN_MESSAGE_SIZE..=MAX_MESSAGE_SIZE).contains(size))
            .ok_or(LayoutError::MessageSize(message_size))?;
        let stride = u32::from(message_size).next_multiple_of(LINE);
        let fit = (ring_bytes(order) - SLOTS_OFFSET) / (2 * stride);
        let slots = fit.checked_ilog2().map_or(0, |log| 1 << log);
        if slots < MIN_SLOTS {
            return Err(LayoutError::TooFewSlots {
                order,
                message_size,
                slots,
            });
        }
        Ok(Self {
            order,
            message_size,
            stride,
            slots,
        })
    }

    /// A layout with fewer slots than a real ring may have: a model checker fills and wraps it
    /// with a handful of messages.
    #[cfg(loom)]
    #[must_use]
    pub const fn with_slots(slots: u32) -> Self {
        assert!(slots.is_power_of_two());
        Self {
            order: 0,
            message_size: MIN_MESSAGE_SIZE,
            stride: LINE,
            slots,
        }
    }

    /// The page order.
    #[must_use]
    pub const fn order(&self) -> u32 {
        self.order
    }

    /// How many pages the ring has.
    #[must_use]
    pub const fn pages(&self) -> usize {
        1 << self.order
    }

    /// How many bytes the ring has.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        ring_bytes(self.order) as u64
    }

    /// The longest message in bytes, header included.
    #[must_use]
    pub const fn message_size(&self) -> u16 {
        self.message_size
    }

    /// Bytes from one slot to the next.
    #[must_use]
    pub const fn stride(&self) -> u32 {
        self.stride
    }

    /// Slots per direction, a power of two.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// The slots of one direction.
    #[must_use]
    pub const fn slots_of(&self, direction: Direction) -> Slots {
        let before = match direction {
            Direction::ToDevice => 0,
            Direction::ToDriver => self.slots,
        };
        Slots {
            first: SLOTS_OFFSET + before * self.stride,
            stride: self.stride,
            count: self.slots,
        }
    }

    /// Byte offset of the slot that holds message number `index` of `direction`.
    #[must_use]
    pub const fn slot_offset(&self, direction: Direction, index: u32) -> u64 {
        self.slots_of(direction).offset(index)
    }
}

/// Where the slots of one direction lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slots {
    /// Byte offset of the first.
    first: u32,
    /// Bytes from one to the next.
    stride: u32,
    /// How many, a power of two.
    count: u32,
}

impl Slots {
    /// How many there are, a power of two.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Byte offset of the slot that holds message number `index`.
    #[inline]
    #[must_use]
    pub const fn offset(&self, index: u32) -> u64 {
        (self.first + (index & (self.count - 1)) * self.stride) as u64
    }
}

/// Bytes of a ring of `order`, which is at most [`MAX_RING_PAGE_ORDER`].
const fn ring_bytes(order: u32) -> u32 {
    const PAGE: u32 = 4096;
    const { assert!(PAGE as usize == PAGE_SIZE) };
    PAGE << order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published text carries this table: slots per direction for page orders 0 to 4,
    /// 0 where the pair is refused.
    const SLOTS: [(u32, [u32; 5]); 9] = [
        (52, [16, 32, 64, 128, 256]),
        (64, [16, 32, 64, 128, 256]),
        (65, [8, 16, 32, 64, 128]),
        (128, [8, 16, 32, 64, 128]),
        (264, [4, 8, 16, 32, 64]),
        (1024, [0, 0, 4, 8, 16]),
        (2048, [0, 0, 0, 4, 8]),
        (4096, [0, 0, 0, 0, 4]),
        (8128, [0, 0, 0, 0, 4]),
    ];

    #[test]
    fn slots_are_those_of_the_published_table() {
        for (message_size, row) in SLOTS {
            for (order, slots) in (0..).zip(row) {
                let got = RingLayout::new(order, message_size).map_or(0, |layout| layout.slots());
                assert_eq!(got, slots, "order {order}, message size {message_size}");
            }
        }
    }

    #[test]
    fn slots_are_disjoint_aligned_and_inside() {
        for order in 0..=MAX_RING_PAGE_ORDER {
            for message_size in MIN_MESSAGE_SIZE..=MAX_MESSAGE_SIZE {
                let Ok(layout) = RingLayout::new(order, message_size.into()) else {
                    continue;
                };
                assert!(layout.stride() >= message_size.into());
                let mut end = u64::from(SLOTS_OFFSET);
                for direction in [Direction::ToDevice, Direction::ToDriver] {
                    for index in 0..layout.slots() {
                        assert_eq!(layout.slot_offset(direction, index), end);
                        assert_eq!(end % 64, 0);
                        end += u64::from(layout.stride());
                    }
                }
                assert!(end <= layout.bytes());
                assert!(
                    end + u64::from(layout.stride()) * 2 * u64::from(layout.slots())
                        > layout.bytes(),
                    "twice the slots would not fit"
                );
            }
        }
    }

    #[test]
    fn an_index_names_the_same_slot_across_the_wrap() {
        let layout = RingLayout::new(0, 264).unwrap();
        assert_eq!(
            layout.slot_offset(Direction::ToDevice, u32::MAX),
            layout.slot_offset(Direction::ToDevice, 3)
        );
        assert_eq!(layout.slot_offset(Direction::ToDevice, 0), 320);
        assert_eq!(layout.slot_offset(Direction::ToDriver, 0), 320 + 4 * 320);
    }

    #[test]
    fn every_bound_refuses_the_next_value() {
        assert_eq!(RingLayout::new(5, 264), Err(LayoutError::Order(5)));
        assert_eq!(RingLayout::new(0, 51), Err(LayoutError::MessageSize(51)));
        assert_eq!(
            RingLayout::new(4, 8129),
            Err(LayoutError::MessageSize(8129))
        );
        assert_eq!(
            RingLayout::new(4, 65536 + 264),
            Err(LayoutError::MessageSize(65800))
        );
        assert_eq!(
            RingLayout::new(0, 8128),
            Err(LayoutError::TooFewSlots {
                order: 0,
                message_size: 8128,
                slots: 0
            })
        );
    }
}
