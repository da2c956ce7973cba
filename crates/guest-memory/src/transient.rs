//! Memory that stands at no place of its own: it is lent for one buffer, filled before the buffer
//! is looked at and taken back when it is returned (binding section 5, "transient").
//!
//! [`Transient`] is the seam between a queue, which knows when a buffer comes and goes, and
//! whoever can reach the peer's pages. A [`Loan`] is all that one buffer names; it is an address
//! space of its own, so who serves the buffer sees ranges and leases as ever.

use std::fmt;

use crate::{Access, AddressSpace, GuestRange, LeasedRange, TranslateError};

/// Brings transient memory and takes it back. How is its own affair: by copies or by mappings.
pub trait Transient: Send + Sync + fmt::Debug {
    /// Whether `addr` is of the form that names transient memory.
    fn names(&self, addr: u64) -> bool;

    /// Copies `tables`, each an address and a length, with one call, for the next
    /// [`AddressSpace::fetch`] of each. Forgets what was copied before. A hint: what cannot be
    /// copied now is left to that call.
    fn prefetch(&self, tables: &mut dyn Iterator<Item = (u64, u32)>);

    /// Finds memory for every part of `loan`; what is not transient is looked up in `standing`.
    /// A part that is out of reach stays without; so does all but the last part of a loan that is
    /// larger than all the room there is. Nothing is filled yet.
    ///
    /// # Errors
    /// There is no room now. The loan holds nothing then.
    fn lend(&self, standing: &dyn AddressSpace, loan: &mut Loan) -> Result<(), NoRoom>;

    /// Fills the parts to be read of the loans in `fetch`, and stores the written bytes of those
    /// in `store`: all together in one step. A part that fails loses its memory.
    fn exchange(&self, fetch: &mut [&mut Loan], store: &mut [Return<'_>]);

    /// Takes the memory of a loan back. A loan that is dropped instead keeps its memory for as long
    /// as this object lives, because something may still be using it.
    fn end(&self, loan: &mut Loan);
}

/// There is no room for another loan until one ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for another buffer's transient memory until one is returned")]
pub struct NoRoom;

/// A buffer that goes back, and what is to be stored of it.
#[derive(Debug)]
pub struct Return<'a> {
    /// What it was lent.
    pub loan: &'a mut Loan,
    /// So many bytes from the front of the parts to be written.
    pub written: u64,
    /// The very last byte too: where a status stands.
    pub status: bool,
}

/// Everything that one buffer names, part by part.
#[derive(Debug, Default)]
pub struct Loan {
    parts: Vec<Part>,
}

/// Bytes that are contiguous on the bus.
#[derive(Debug)]
pub struct Part {
    /// Bus address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// What the device may do.
    pub access: Access,
    /// Where the bytes are; `None`: out of reach.
    pub memory: Option<LeasedRange>,
    /// What the lender has to take back; `None` for memory that stands anyway.
    pub ticket: Option<usize>,
}

/// The parts' own addresses lie so far apart: none is longer.
const PART_SHIFT: u32 = 32;

impl Loan {
    /// Forgets all parts; none may hold a ticket.
    pub fn clear(&mut self) {
        self.parts.clear();
    }

    /// Adds a part, and gives the address that it has in this loan.
    pub fn add(&mut self, addr: u64, len: u32, access: Access) -> u64 {
        let own = (self.parts.len() as u64) << PART_SHIFT;
        self.parts.push(Part {
            addr,
            len,
            access,
            memory: None,
            ticket: None,
        });
        own
    }

    /// The parts, in the order in which they were added.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// As [`Loan::parts`].
    pub fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts
    }

    /// How many parts are without memory.
    #[must_use]
    pub fn missing(&self) -> usize {
        let missing = |part: &&Part| part.memory.is_none();
        self.parts.iter().filter(missing).count()
    }

    /// Writes the very last byte; false: it has no memory, or may not be written.
    #[must_use]
    pub fn put_last(&self, byte: u8) -> bool {
        let Some((last, part)) = (0_u64..).zip(&self.parts).last() else {
            return false;
        };
        let own = (last << PART_SHIFT) + u64::from(part.len.saturating_sub(1));
        self.translate(own, 1, Access::Write)
            .is_ok_and(|range| range.write(0, &[byte]).is_ok())
    }

    fn part(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<(&LeasedRange, u64), TranslateError> {
        let index = usize::try_from(addr >> PART_SHIFT).unwrap_or(usize::MAX);
        let offset = addr & ((1 << PART_SHIFT) - 1);
        let unknown = TranslateError::Unknown { addr };
        let part = self.parts.get(index).ok_or(unknown)?;
        if !part.access.allows(access) {
            return Err(TranslateError::ReadOnly { addr, len });
        }
        part.memory
            .as_ref()
            .map(|memory| (memory, offset))
            .ok_or(unknown)
    }
}

impl AddressSpace for Loan {
    fn translate(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'_>, TranslateError> {
        let (memory, offset) = self.part(addr, len, access)?;
        memory
            .range()
            .narrow(offset, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    fn translate_leased(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<LeasedRange, TranslateError> {
        let (memory, offset) = self.part(addr, len, access)?;
        memory
            .window(offset, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Area;

    fn window(area: &Area, offset: u64, len: u64, access: Access) -> Option<LeasedRange> {
        Some(area.lease().window(offset, len, access).unwrap())
    }

    #[test]
    fn a_part_is_found_under_the_address_that_it_was_given() {
        let area = Area::anonymous(8192).unwrap();
        let mut loan = Loan::default();
        let head = loan.add(1 << 63, 16, Access::Read);
        let data = loan.add(1 << 63, 4096, Access::Write);
        assert_eq!(loan.missing(), 2);
        assert!(!loan.put_last(1));
        loan.parts_mut()[0].memory = window(&area, 0, 16, Access::Read);
        loan.parts_mut()[1].memory = window(&area, 4096, 4096, Access::Write);
        assert_eq!(loan.missing(), 0);
        assert!(loan.put_last(7));
        let last = area.range(8191, 1, Access::Read).unwrap();
        assert_eq!(last.read_array(0), Ok([7]));

        let written = loan.translate(data + 4, 4, Access::Write).unwrap();
        written.write(0, b"data").unwrap();
        let seen = area.range(4100, 4, Access::Read).unwrap();
        assert_eq!(seen.read_array(0), Ok(*b"data"));
        let leased = loan.translate_leased(head, 16, Access::Read).unwrap();
        assert_eq!((leased.len(), area.leases()), (16, 3));
        let read_only = TranslateError::ReadOnly { addr: head, len: 1 };
        assert_eq!(
            loan.translate(head, 1, Access::Write).unwrap_err(),
            read_only
        );
        for (addr, len) in [
            (head, 17),
            (data, 4097),
            (data + 4095, 2),
            (2 << 32, 1),
            (1 << 63, 1),
        ] {
            assert!(
                loan.translate(addr, len, Access::Read).is_err(),
                "{addr:#x}"
            );
            assert!(
                loan.translate_leased(addr, len, Access::Read).is_err(),
                "{addr:#x}"
            );
        }
    }

    #[test]
    fn a_part_without_memory_is_out_of_reach() {
        let mut loan = Loan::default();
        let addr = loan.add(1 << 63, 16, Access::Read);
        let error = TranslateError::Unknown { addr };
        assert_eq!(loan.translate(addr, 16, Access::Read).unwrap_err(), error);
    }
}
