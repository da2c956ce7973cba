//! Bus addresses: what stands in SET_VQUEUE and in every descriptor (binding section 5).

use core::fmt;

use crate::{GrantRef, PAGE_SIZE};

/// Bit that tells a grant address from an area address.
const GRANT_FORM: u64 = 1 << 63;
/// Lowest bit of the area id.
const AREA_SHIFT: u32 = 48;
/// Bits of an offset inside an area.
const OFFSET_MASK: u64 = (1 << AREA_SHIFT) - 1;
/// Lowest bit of the grant reference.
const GRANT_SHIFT: u32 = 12;
/// Bits 62..44 of a grant address are zero.
const GRANT_RESERVED: u64 = 0x0007_ffff << 44;

/// The id of a shared area: 1 to 32,767. 0 is no area, so that no address is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AreaId(u16);

impl AreaId {
    /// The highest id.
    pub const MAX: u16 = 0x7fff;

    /// `None` for 0 and for what does not fit into 15 bits.
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        if id == 0 || id > Self::MAX {
            None
        } else {
            Some(Self(id))
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for AreaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A 64-bit address on the bus, not yet looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddr(pub u64);

/// The two forms of a bus address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A byte in a shared area.
    Area {
        /// The area.
        id: AreaId,
        /// Byte offset, below 2^48.
        offset: u64,
    },
    /// A byte in a granted page; a range goes on in the next reference.
    Grant {
        /// The page.
        gref: GrantRef,
        /// Byte offset, below 4,096.
        offset: u16,
    },
}

impl BusAddr {
    /// The address of `offset` in area `id`; `None` if the offset needs more than 48 bits.
    #[must_use]
    pub const fn in_area(id: AreaId, offset: u64) -> Option<Self> {
        if offset > OFFSET_MASK {
            None
        } else {
            Some(Self(((id.0 as u64) << AREA_SHIFT) | offset))
        }
    }

    /// The address of byte `offset` of a granted page; `None` if the page has no such byte.
    #[must_use]
    pub const fn in_grant(gref: GrantRef, offset: u16) -> Option<Self> {
        if offset as usize >= PAGE_SIZE {
            None
        } else {
            Some(Self(
                GRANT_FORM | ((gref.0 as u64) << GRANT_SHIFT) | offset as u64,
            ))
        }
    }

    /// Takes the address apart; `None` if it is of neither form.
    #[must_use]
    pub fn form(self) -> Option<Form> {
        if self.0 & GRANT_FORM == 0 {
            let id = AreaId::new(u16::try_from(self.0 >> AREA_SHIFT).ok()?)?;
            Some(Form::Area {
                id,
                offset: self.0 & OFFSET_MASK,
            })
        } else if self.0 & GRANT_RESERVED == 0 {
            let gref = GrantRef(u32::try_from((self.0 & !GRANT_FORM) >> GRANT_SHIFT).ok()?);
            let offset = u16::try_from(self.0 & ((1 << GRANT_SHIFT) - 1)).ok()?;
            Some(Form::Grant { gref, offset })
        } else {
            None
        }
    }
}

impl fmt::LowerHex for BusAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_addresses_go_there_and_back() {
        for id in [1, 2, AreaId::MAX] {
            let id = AreaId::new(id).unwrap();
            for offset in [0, 1, 4095, OFFSET_MASK] {
                let address = BusAddr::in_area(id, offset).unwrap();
                assert_ne!(address.0, 0);
                assert_eq!(address.form(), Some(Form::Area { id, offset }));
            }
            assert_eq!(BusAddr::in_area(id, OFFSET_MASK + 1), None);
        }
    }

    #[test]
    fn area_zero_and_reserved_bits_are_no_address() {
        assert_eq!(BusAddr(0).form(), None);
        assert_eq!(BusAddr(OFFSET_MASK).form(), None);
        for bit in 44..63 {
            assert_eq!(BusAddr(GRANT_FORM | 1 << bit).form(), None, "bit {bit}");
        }
    }

    #[test]
    fn grant_addresses_go_there_and_back() {
        for gref in [0, 1, 0x1234_5678, u32::MAX].map(GrantRef) {
            for offset in [0, 1, 0xfff] {
                let address = BusAddr::in_grant(gref, offset).unwrap();
                assert_eq!(address.form(), Some(Form::Grant { gref, offset }));
            }
            assert_eq!(BusAddr::in_grant(gref, 0x1000), None);
        }
        assert_eq!(
            BusAddr::in_grant(GrantRef(8), 16).unwrap().0,
            0x8000_0000_0000_8010
        );
    }
}
