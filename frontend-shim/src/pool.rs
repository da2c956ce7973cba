//! Memory that the frontend shares as one area, and hands out in blocks
//! (binding sections 4 and 5: one area, ring address 0 is never handed out).

use guest_memory::{Access, AddressSpace, GuestRange, LeasedRange, TranslateError};
use xen_hal::GrantedPages;
use xen_types::{AreaId, BusAddr, Form};

use crate::runs::Runs;

/// Blocks begin at multiples of this, which suits every part of a virtqueue.
const ALIGN: usize = 64;

/// A piece of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    offset: usize,
    len: usize,
}

impl Block {
    /// Bytes that were asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the block has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The pool is full: it has no run of `wanted` free bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shared area of {pool} bytes has no {wanted} bytes left")]
pub struct PoolFull {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes of the whole pool.
    pub pool: usize,
}

/// The shared area, cut into blocks.
#[derive(Debug)]
pub struct Pool {
    pages: GrantedPages,
    id: AreaId,
    free: Runs,
}

impl Pool {
    /// A pool of all of `pages`, which the device side knows as area `id`.
    #[must_use]
    pub fn new(pages: GrantedPages, id: AreaId) -> Self {
        let free = Runs::new(pages.area.len());
        Self { pages, id, free }
    }

    /// Cuts off a zeroed block of `len` bytes.
    ///
    /// # Errors
    /// The pool is full.
    pub fn take(&mut self, len: usize) -> Result<Block, PoolFull> {
        self.take_aligned(len, ALIGN)
    }

    /// As [`Pool::take`], at a multiple of `align`, a power of two up to the size of a page.
    ///
    /// # Errors
    /// The pool is full.
    pub fn take_aligned(&mut self, len: usize, align: usize) -> Result<Block, PoolFull> {
        let area = &self.pages.area;
        let full = PoolFull {
            wanted: len,
            pool: area.len(),
        };
        let offset = self.free.take(len, align).ok_or(full)?;
        area.range(offset as u64, len as u64, Access::Write)
            .and_then(|range| range.zero(0, len as u64))
            .map_err(|_| full)?;
        Ok(Block { offset, len })
    }

    /// Takes back a block that nobody will touch any more, the device side included.
    pub fn give_back(&mut self, block: Block) {
        self.free.give_back(block.offset, block.len);
    }

    /// Bytes that are still free, not all in one run.
    #[must_use]
    pub fn left(&self) -> usize {
        self.free.left()
    }

    /// The bus address of the byte `at` of `block`.
    #[must_use]
    pub fn address(&self, block: Block, at: usize) -> u64 {
        let offset = block.offset.saturating_add(at) as u64;
        BusAddr::in_area(self.id, offset).map_or(0, |address| address.0)
    }

    /// The pages, to be revoked.
    #[must_use]
    pub fn into_pages(self) -> GrantedPages {
        self.pages
    }

    /// The byte in the area that a bus address names.
    fn offset(&self, addr: u64) -> Result<u64, TranslateError> {
        match BusAddr(addr).form() {
            Some(Form::Area { id, offset }) if id == self.id => Ok(offset),
            _ => Err(TranslateError::Unknown { addr }),
        }
    }
}

impl AddressSpace for Pool {
    fn translate(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'_>, TranslateError> {
        self.pages
            .area
            .range(self.offset(addr)?, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    fn translate_leased(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<LeasedRange, TranslateError> {
        self.pages
            .area
            .lease()
            .window(self.offset(addr)?, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::Area;

    /// 8,192 bytes that are not zero.
    fn pool() -> Pool {
        let area = Area::anonymous(8192).unwrap();
        area.range(0, 8192, Access::Write)
            .unwrap()
            .write(0, &[0xaa; 8192])
            .unwrap();
        let refs = Vec::new();
        Pool::new(GrantedPages { area, refs }, AreaId::new(1).unwrap())
    }

    #[test]
    fn blocks_come_back_in_any_order_and_make_one_run_again() {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut pool = pool();
            let blocks = [1, 64, 1000].map(|len| pool.take(len).unwrap());
            assert_eq!(pool.left(), 8192 - 64 - 64 - 1024);
            for index in order {
                pool.give_back(blocks[index]);
            }
            let all = pool.take(8192).unwrap();
            assert_eq!((pool.address(all, 0), pool.left()), (1 << 48, 0));
        }
    }

    #[test]
    fn blocks_are_aligned_apart_zeroed_and_never_at_address_zero() {
        let mut pool = pool();
        let first = pool.take(100).unwrap();
        let second = pool.take(8192 - 128).unwrap();
        assert_eq!(pool.address(first, 0), 1 << 48);
        assert_eq!(pool.address(second, 5), (1 << 48) + 128 + 5);
        let mut bytes = [1; 100];
        pool.translate(pool.address(first, 0), 100, Access::Read)
            .unwrap()
            .read(0, &mut bytes)
            .unwrap();
        assert_eq!(bytes, [0; 100]);
        assert_eq!(pool.left(), 0);
        assert_eq!(
            pool.take(1),
            Err(PoolFull {
                wanted: 1,
                pool: 8192
            })
        );
    }
}
