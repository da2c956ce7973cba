//! Looking addresses up one after the other: what every buffer of every queue goes through.

use std::fmt;

use crate::{Access, AddressSpace, GuestRange, TranslateError};

/// A piece of an address space that is one piece of memory, too.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Bus address of its first byte.
    pub first: u64,
    /// The memory, with the right that it is shared with.
    pub memory: GuestRange<'a>,
}

/// Looks addresses up, and remembers the piece that the last one lay in. Where a driver puts
/// everything into one area, all look-ups but the first are two comparisons and an addition.
///
/// It borrows the address space, so what it remembers is still shared.
pub struct Cursor<'a> {
    space: &'a dyn AddressSpace,
    near: Surroundings<'a>,
    /// Bytes of it that may be written: all or none.
    writable: u64,
}

impl<'a> Cursor<'a> {
    /// A cursor that remembers nothing yet.
    #[inline]
    #[must_use]
    pub fn new(space: &'a dyn AddressSpace) -> Self {
        Self {
            space,
            near: Surroundings {
                first: 0,
                memory: GuestRange::empty(),
            },
            writable: 0,
        }
    }

    /// The address space.
    #[must_use]
    pub fn space(&self) -> &'a dyn AddressSpace {
        self.space
    }

    /// As [`AddressSpace::translate`].
    ///
    /// # Errors
    /// As [`AddressSpace::translate`].
    #[inline]
    pub fn translate(
        &mut self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'a>, TranslateError> {
        if self.is_near(addr, len, access) {
            Ok(self.near(addr, len, access))
        } else {
            self.far(addr, len, access)
        }
    }

    /// Whether the bytes, one at least, are in the remembered piece, and may be used so. An address
    /// before its first byte comes out as an offset beyond the last.
    #[inline]
    fn is_near(&self, addr: u64, len: u32, access: Access) -> bool {
        let size = match access {
            Access::Read => self.near.memory.len() as u64,
            Access::Write => self.writable,
        };
        let offset = addr.wrapping_sub(self.near.first);
        offset < size && u64::from(len).wrapping_sub(1) < size - offset
    }

    /// The bytes, of which [`Cursor::is_near`] has said yes.
    #[inline]
    fn near(&self, addr: u64, len: u32, access: Access) -> GuestRange<'a> {
        let offset = addr.wrapping_sub(self.near.first);
        // SAFETY: these bytes and this right were checked just now, against what is remembered.
        unsafe { self.near.memory.part(offset, len, access) }
    }

    /// Remembers the piece around an address, if there is one. Out of line, so that the usual case
    /// stays small.
    #[cold]
    #[inline(never)]
    fn far(
        &mut self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'a>, TranslateError> {
        if let Some(near) = self.space.surroundings(addr) {
            self.writable = match near.memory.access() {
                Access::Read => 0,
                Access::Write => near.memory.len() as u64,
            };
            self.near = near;
            if self.is_near(addr, len, access) {
                return Ok(self.near(addr, len, access));
            }
        }
        self.ask(addr, len, access)
    }

    /// Looks up what is in no piece. An address space is safe code: that it answers with what it
    /// was asked for is checked.
    #[inline(never)]
    fn ask(&self, addr: u64, len: u32, access: Access) -> Result<GuestRange<'a>, TranslateError> {
        self.space
            .translate(addr, len, access)?
            .narrow(0, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }
}

impl fmt::Debug for Cursor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("near", &self.near)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{Area, LeasedRange};
    use proptest::prelude::*;

    /// Two areas of one page, 1 at 1 << 48 and 2 at 2 << 48. Counts how often it is asked.
    struct Two {
        areas: [Area; 2],
        asked: Cell<u32>,
    }

    impl Two {
        fn new() -> Self {
            Self {
                areas: [(); 2].map(|()| Area::anonymous(4096).unwrap()),
                asked: Cell::new(0),
            }
        }

        fn area(&self, addr: u64) -> Option<&Area> {
            self.areas
                .get(usize::try_from(addr >> 48).unwrap().wrapping_sub(1))
        }
    }

    impl AddressSpace for Two {
        fn translate(
            &self,
            addr: u64,
            len: u32,
            access: Access,
        ) -> Result<GuestRange<'_>, TranslateError> {
            let area = self.area(addr).ok_or(TranslateError::Unknown { addr })?;
            area.range(addr & ((1 << 48) - 1), len.into(), access)
                .map_err(|error| TranslateError::from_range(error, addr, len))
        }

        fn translate_leased(
            &self,
            _: u64,
            _: u32,
            _: Access,
        ) -> Result<LeasedRange, TranslateError> {
            unreachable!("a cursor looks up what is borrowed")
        }

        fn surroundings(&self, addr: u64) -> Option<Surroundings<'_>> {
            self.asked.set(self.asked.get() + 1);
            Some(Surroundings {
                first: addr & !((1 << 48) - 1),
                memory: self.area(addr)?.whole(),
            })
        }
    }

    #[test]
    fn the_space_is_asked_when_the_piece_changes() {
        let space = Two::new();
        let mut cursor = Cursor::new(&space);
        for (addr, asked) in [
            (1 << 48, 1),
            (1 << 48 | 4080, 1),
            (2 << 48, 2),
            (2 << 48 | 16, 2),
            (1 << 48, 3),
        ] {
            cursor.translate(addr, 16, Access::Write).unwrap();
            assert_eq!(space.asked.get(), asked, "{addr:#x}");
        }
    }

    #[test]
    fn nothing_is_remembered_that_was_not_looked_up() {
        let space = Two::new();
        let mut cursor = Cursor::new(&space);
        for (addr, len) in [(0, 0), (0, 1), (u64::MAX, 1)] {
            let error = cursor.translate(addr, len, Access::Read).unwrap_err();
            assert_eq!(error, TranslateError::Unknown { addr });
        }
    }

    /// Answers with the same bytes whatever it is asked for.
    struct Wrong<'a>(GuestRange<'a>);

    impl AddressSpace for Wrong<'_> {
        fn translate(&self, _: u64, _: u32, _: Access) -> Result<GuestRange<'_>, TranslateError> {
            Ok(self.0)
        }

        fn translate_leased(
            &self,
            _: u64,
            _: u32,
            _: Access,
        ) -> Result<LeasedRange, TranslateError> {
            unreachable!("a cursor looks up what is borrowed")
        }
    }

    #[test]
    fn an_address_space_that_answers_with_less_than_was_asked_for_is_not_believed() {
        let area = Area::anonymous(4096).unwrap();
        let (addr, len) = (8, 64 << 20);
        for (bytes, error) in [
            (16, TranslateError::Beyond { addr, len }),
            (0, TranslateError::Unknown { addr }),
        ] {
            let space = Wrong(area.range(0, bytes, Access::Write).unwrap());
            let mut cursor = Cursor::new(&space);
            assert_eq!(
                cursor.translate(addr, len, Access::Write).unwrap_err(),
                error
            );
        }
        let space = Wrong(area.range(0, 16, Access::Read).unwrap());
        assert_eq!(
            Cursor::new(&space)
                .translate(addr, 16, Access::Write)
                .unwrap_err(),
            TranslateError::ReadOnly { addr, len: 16 }
        );
        // More than was asked for is cut.
        let range = Cursor::new(&space).translate(addr, 4, Access::Read);
        assert_eq!(range.unwrap().len(), 4);
    }

    proptest! {
        #[test]
        fn it_answers_as_the_space_does(
            asked in prop::collection::vec(
                (0u64..4, prop_oneof![0..20u64, 4080..4100u64, (1u64 << 48) - 5..1u64 << 48],
                 prop_oneof![0..20u32, 4090..4100u32, Just(u32::MAX)], any::<bool>()),
                1..40,
            ),
        ) {
            let space = Two::new();
            let mut cursor = Cursor::new(&space);
            for (area, offset, len, write) in asked {
                let addr = area << 48 | offset;
                let access = if write { Access::Write } else { Access::Read };
                let place = |range: GuestRange<'_>| (range.base(), range.len(), range.access());
                prop_assert_eq!(
                    cursor.translate(addr, len, access).map(place),
                    space.translate(addr, len, access).map(place)
                );
            }
        }
    }
}
