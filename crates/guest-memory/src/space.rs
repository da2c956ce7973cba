//! What a bus address means at this moment (binding section 5).

use std::io;
use std::sync::Arc;

#[cfg(doc)]
use crate::Cursor;
use crate::{Access, Area, GuestRange, Lease, LeasedRange, RangeError, Surroundings, Transient};

/// Looks bus addresses up. Usable as `&dyn AddressSpace`.
pub trait AddressSpace {
    /// The `len` bytes at `addr`, for `access`, for the length of the borrow.
    ///
    /// # Errors
    /// The bytes are not all shared at this moment, or not for this access.
    fn translate(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'_>, TranslateError>;

    /// As [`AddressSpace::translate`], for what outlives the borrow.
    ///
    /// # Errors
    /// As [`AddressSpace::translate`].
    fn translate_leased(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<LeasedRange, TranslateError>;

    /// All that is shared in one piece around `addr`, for a [`Cursor`] to remember. `None`: nothing
    /// is, or it is not known cheaply; then [`AddressSpace::translate`] is asked each time.
    fn surroundings(&self, addr: u64) -> Option<Surroundings<'_>> {
        let _ = addr;
        None
    }

    /// Copies the bytes at `addr` once.
    ///
    /// # Errors
    /// As [`AddressSpace::translate`] for reading.
    #[inline]
    fn fetch(&self, addr: u64, into: &mut [u8]) -> Result<(), TranslateError> {
        let len = u32::try_from(into.len()).map_err(|_| TranslateError::Unknown { addr })?;
        self.translate(addr, len, Access::Read)?
            .read(0, into)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    /// Who lends memory for addresses that this address space does not translate, if anybody does.
    fn transient(&self) -> Option<&Arc<dyn Transient>> {
        None
    }
}

/// Why bytes at a bus address cannot be used. All but [`TranslateError::Host`] are the peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// Nothing is shared at the address, or it is of no known form.
    #[error("nothing is shared at address {addr:#x}")]
    Unknown {
        /// The address.
        addr: u64,
    },
    /// The first byte is shared, the last is not, or the range wraps around.
    #[error("{len} bytes at address {addr:#x} go beyond the end of what is shared there")]
    Beyond {
        /// The address.
        addr: u64,
        /// Bytes asked for.
        len: u32,
    },
    /// Shared, but not for writing.
    #[error("{len} bytes at address {addr:#x} are to be written, but shared for reading only")]
    ReadOnly {
        /// The address.
        addr: u64,
        /// Bytes asked for.
        len: u32,
    },
    /// The peer shared it, but this host could not map it.
    #[error("the host could not map {len} bytes at address {addr:#x}: {kind}")]
    Host {
        /// The address.
        addr: u64,
        /// Bytes asked for.
        len: u32,
        /// What the host said.
        kind: io::ErrorKind,
    },
}

impl TranslateError {
    /// The error of the range of an area, told in terms of the bus address that led there.
    #[must_use]
    pub fn from_range(error: RangeError, addr: u64, len: u32) -> Self {
        match error {
            RangeError::ReadOnly => Self::ReadOnly { addr, len },
            RangeError::OutOfBounds { offset, size, .. } if offset >= size as u64 => {
                Self::Unknown { addr }
            }
            RangeError::OutOfBounds { .. } | RangeError::Misaligned { .. } => {
                Self::Beyond { addr, len }
            }
        }
    }
}

/// One area at one address: the address space of a frontend, which shares what it owns, and of
/// tests.
#[derive(Clone, Debug)]
pub struct FlatSpace {
    base: u64,
    lease: Lease,
}

impl FlatSpace {
    /// Puts `area` at the address `base`, and holds a lease of it.
    #[must_use]
    pub fn new(base: u64, area: &Area) -> Self {
        Self {
            base,
            lease: area.lease(),
        }
    }

    fn offset(&self, addr: u64) -> Result<u64, TranslateError> {
        addr.checked_sub(self.base)
            .ok_or(TranslateError::Unknown { addr })
    }
}

impl AddressSpace for FlatSpace {
    #[inline]
    fn translate(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'_>, TranslateError> {
        self.lease
            .range(self.offset(addr)?, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    #[inline]
    fn translate_leased(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<LeasedRange, TranslateError> {
        self.lease
            .window(self.offset(addr)?, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    fn surroundings(&self, _: u64) -> Option<Surroundings<'_>> {
        Some(Surroundings {
            first: self.base,
            memory: self.lease.whole(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 1 << 48;

    #[test]
    fn addresses_are_looked_up_with_bounds_and_rights() {
        let area = Area::anonymous(4096).unwrap();
        let flat = FlatSpace::new(BASE, &area);
        let space: &dyn AddressSpace = &flat;
        let written = space.translate(BASE + 8, 4, Access::Write).unwrap();
        written.write(0, b"word").unwrap();
        let leased = space.translate_leased(BASE + 8, 4, Access::Read).unwrap();
        assert_eq!(leased.range().read_array(0), Ok(*b"word"));
        assert_eq!(leased.range().write(0, b"x"), Err(RangeError::ReadOnly));

        space.translate(BASE + 4095, 1, Access::Read).unwrap();
        space.translate(BASE + 4096, 0, Access::Read).unwrap();
        for (addr, len, error) in [
            (BASE - 1, 1, TranslateError::Unknown { addr: BASE - 1 }),
            (0, 0, TranslateError::Unknown { addr: 0 }),
            (
                BASE + 4096,
                1,
                TranslateError::Unknown { addr: BASE + 4096 },
            ),
            (
                BASE + 4095,
                2,
                TranslateError::Beyond {
                    addr: BASE + 4095,
                    len: 2,
                },
            ),
            (
                u64::MAX,
                u32::MAX,
                TranslateError::Unknown { addr: u64::MAX },
            ),
        ] {
            assert_eq!(space.translate(addr, len, Access::Read).unwrap_err(), error);
            assert_eq!(
                space.translate_leased(addr, len, Access::Read).unwrap_err(),
                error
            );
        }
    }

    #[test]
    fn a_range_that_wraps_is_beyond() {
        let area = Area::anonymous(4096).unwrap();
        let space = FlatSpace::new(u64::MAX - 15, &area);
        assert!(space.translate(u64::MAX, 1, Access::Read).is_ok());
        assert!(space.translate(u64::MAX, 4096, Access::Read).is_err());
    }

    #[test]
    fn read_only_memory_is_not_for_writing() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let file = std::os::fd::AsFd::as_fd(&file);
        let area = Area::shared_file(file, 0, 4096, Access::Read).unwrap();
        let space = FlatSpace::new(BASE, &area);
        assert!(space.translate(BASE, 16, Access::Read).is_ok());
        assert_eq!(
            space.translate(BASE, 16, Access::Write).unwrap_err(),
            TranslateError::ReadOnly {
                addr: BASE,
                len: 16
            }
        );
    }
}
