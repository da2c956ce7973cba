//! Feature bits: the 128-bit set, its 32-bit blocks, and the rules that hold for every device on this transport.
//!
//! Sources: virtio-msg sections 5.2, 5.3 and 5.16; prerequisites from virtio-devices.md. Which device bits exist is
//! the device's business.

use core::fmt;
use core::ops::{BitAnd, BitOr, Not};

/// A set of up to 128 feature bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u128);

impl Features {
    /// Indirect descriptors.
    pub const INDIRECT_DESC: Features = Features::bit(28);
    /// `used_event` and `avail_event` in the rings.
    pub const EVENT_IDX: Features = Features::bit(29);
    /// A device of virtio 1.0 or later.
    pub const VERSION_1: Features = Features::bit(32);
    /// Ring and buffer addresses are bus addresses.
    pub const ACCESS_PLATFORM: Features = Features::bit(33);
    /// Buffers are used in the order in which they were made available.
    pub const IN_ORDER: Features = Features::bit(35);
    /// Memory accesses are ordered by the platform.
    pub const ORDER_PLATFORM: Features = Features::bit(36);
    /// EVENT_AVAIL says how far the ring was filled.
    pub const NOTIFICATION_DATA: Features = Features::bit(38);
    /// RESET_VQUEUE works.
    pub const RING_RESET: Features = Features::bit(40);

    /// What a driver on this transport must accept, so what a device must offer: addresses in messages and rings are
    /// bus addresses, never guest-physical ones.
    pub const REQUIRED: Features = Features(Self::VERSION_1.0 | Self::ACCESS_PLATFORM.0);

    /// The bits that belong to core and transport; all others are the device type's.
    const CORE: Features = Features(((1 << 50) - 1) & !((1 << 24) - 1));

    /// The core bits that mean something here. Left out: packed rings (34), for which there is no queue; SR_IOV (37) and
    /// ADMIN_VQ (41), bound to PCI; NOTIF_CONFIG_DATA (39), which the chapter forbids; SUSPEND (43); everything reserved.
    const CORE_SUPPORTED: Features = Features(
        Self::INDIRECT_DESC.0
            | Self::EVENT_IDX.0
            | Self::VERSION_1.0
            | Self::ACCESS_PLATFORM.0
            | Self::IN_ORDER.0
            | Self::ORDER_PLATFORM.0
            | Self::NOTIFICATION_DATA.0
            | Self::RING_RESET.0,
    );

    /// Every bit that may be offered or accepted on this transport.
    pub const NEGOTIABLE: Features = Features(!Self::CORE.0 | Self::CORE_SUPPORTED.0);

    /// 32-bit blocks of the largest set.
    pub const MAX_BLOCKS: u32 = 4;

    /// The set of one bit.
    ///
    /// # Panics
    /// In constant evaluation, when `bit` is above 127.
    #[must_use]
    pub const fn bit(bit: u32) -> Features {
        Features(1 << bit)
    }

    /// Whether every bit of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no bit is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Block `index`: bits 32·index to 32·index + 31, zero past the end.
    #[must_use]
    pub fn block(self, index: u32) -> u32 {
        match Self::shift(index) {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the low 32 bits are what is wanted"
            )]
            Some(shift) => (self.0 >> shift) as u32,
            None => 0,
        }
    }

    /// Replaces block `index`. Says whether the set could hold it: false for a bit past the end.
    pub fn set_block(&mut self, index: u32, block: u32) -> bool {
        match Self::shift(index) {
            Some(shift) => {
                self.0 = self.0 & !(u128::from(u32::MAX) << shift) | u128::from(block) << shift;
                true
            }
            None => block == 0,
        }
    }

    /// Blocks needed to cover every bit of the set.
    #[must_use]
    pub fn blocks(self) -> u32 {
        (u128::BITS - self.0.leading_zeros()).div_ceil(32)
    }

    const fn shift(index: u32) -> Option<u32> {
        if index < Self::MAX_BLOCKS {
            Some(index * 32)
        } else {
            None
        }
    }
}

impl BitAnd for Features {
    type Output = Features;
    fn bitand(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

impl BitOr for Features {
    type Output = Features;
    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl Not for Features {
    type Output = Features;
    fn not(self) -> Features {
        Features(!self.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
