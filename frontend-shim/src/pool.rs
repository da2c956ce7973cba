//! Memory that the frontend shares as one area, and hands out in blocks
//! (binding sections 4 and 5: one area, ring address 0 is never handed out).

use guest_memory::{Access, AddressSpace, GuestRange, LeasedRange, TranslateError};
use virtqueue::Segment;
use xen_hal::GrantedPages;
use xen_types::{AreaId, BusAddr, Form, PAGE_SIZE};

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
    /// Buffers are named by their grants.
    names_grants: bool,
}

impl Pool {
    /// A pool of all of `pages`, which the device side knows as area `id`.
    #[must_use]
    pub fn new(pages: GrantedPages, id: AreaId) -> Self {
        let free = Runs::new(pages.area.len());
        Self {
            pages,
            id,
            free,
            names_grants: false,
        }
    }

    /// Whether [`Pool::buffer`] names the pages by their grants.
    #[must_use]
    pub fn naming_grants(self, names_grants: bool) -> Self {
        Self {
            names_grants,
            ..self
        }
    }

    /// Segments that [`Pool::buffer`] gives for so many bytes, at most.
    #[must_use]
    pub fn segments(&self, len: usize) -> usize {
        if self.names_grants {
            len.div_ceil(PAGE_SIZE) + 1
        } else {
            1
        }
    }

    /// The segments of the first `len` bytes of `block`: one, or one for each granted page.
    pub fn buffer(&self, block: Block, len: u32) -> impl Iterator<Item = Segment> {
        let mut offset = block.offset;
        let mut left = len;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let (addr, len) = self.segment(offset, left);
            offset = offset.saturating_add(len as usize);
            left = left.saturating_sub(len);
            Some(Segment { addr, len })
        })
    }

    /// The segment of `len` bytes at `at` of `block`, which cross no page.
    #[must_use]
    pub fn within_page(&self, block: Block, at: usize, len: u32) -> Segment {
        let (addr, len) = self.segment(block.offset.saturating_add(at), len);
        Segment { addr, len }
    }

    /// The address of a byte of the area, and how many of `len` bytes follow it there.
    fn segment(&self, offset: usize, len: u32) -> (u64, u32) {
        let page = self.pages.refs.get(offset / PAGE_SIZE).copied();
        let (in_page, room) = (offset % PAGE_SIZE, PAGE_SIZE - offset % PAGE_SIZE);
        let granted = page.zip(u16::try_from(in_page).ok());
        match granted.and_then(|(gref, at)| BusAddr::in_grant(gref, at)) {
            Some(address) if self.names_grants => {
                (address.0, len.min(u32::try_from(room).unwrap_or(len)))
            }
            _ => {
                let address = BusAddr::in_area(self.id, offset as u64);
                (address.map_or(0, |address| address.0), len)
            }
        }
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
    use xen_types::GrantRef;

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
    fn a_buffer_is_one_segment_of_the_area_or_one_for_each_granted_page() {
        let mut pool = pool();
        pool.pages.refs = [70, 9].map(GrantRef).to_vec();
        let _before = pool.take(64).unwrap();
        let block = pool.take(8000).unwrap();
        let segments = |pool: &Pool, len| -> Vec<(u64, u32)> {
            let buffer = pool.buffer(block, len);
            buffer.map(|segment| (segment.addr, segment.len)).collect()
        };
        let within_page = |pool: &Pool, at, len| {
            let Segment { addr, len } = pool.within_page(block, at, len);
            (addr, len)
        };
        assert_eq!(segments(&pool, 7000), [((1 << 48) + 64, 7000)]);
        assert_eq!(within_page(&pool, 8, 16), ((1 << 48) + 72, 16));
        let pool = pool.naming_grants(true);
        let granted = |gref: u64, offset| 1 << 63 | gref << 12 | offset;
        let expected = [(granted(70, 64), 4032), (granted(9, 0), 2968)];
        assert_eq!(segments(&pool, 7000), expected);
        assert_eq!(segments(&pool, 0), []);
        assert_eq!(within_page(&pool, 4096, 1), (granted(9, 64), 1));
        assert!(pool.segments(7000) >= 2);
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
