//! A run of addresses that pages of a peer are mapped into, piece by piece.
//!
//! Measured on Xen 4.17: gntdev maps with `MAP_FIXED` into a `PROT_NONE`
//! reservation, so one area of many calls is one contiguous range.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use guest_memory::Access;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use xen_types::PAGE_SIZE;

/// The one owner of the addresses; unmaps them when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    base: NonNull<u8>,
    pages: usize,
}

// SAFETY: the addresses belong to the process, not to a thread; nothing here reads or writes through them.
unsafe impl Send for Reservation {}
// SAFETY: as above; `&Reservation` only tells numbers.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Addresses for `pages` pages, nothing behind them yet.
    pub(crate) fn new(pages: usize) -> io::Result<Self> {
        let len = bytes(pages)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
        let base =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, pages })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// Pages that can be mapped; less than asked for only after a failed [`Self::place`].
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Maps `pages` pages of `fd` from byte `offset` on as the pages from `at` on.
    pub(crate) fn place(
        &mut self,
        at: usize,
        pages: usize,
        fd: BorrowedFd<'_>,
        offset: u64,
        access: Access,
    ) -> io::Result<()> {
        let end = at.checked_add(pages).filter(|end| *end <= self.pages);
        if pages == 0 || end.is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let prot = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        let address = self.address(at);
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: [at, at + pages) lies inside the reservation, which only we know of: no Rust object lives there.
        let mapped =
            unsafe { rustix::mm::mmap(address, pages * PAGE_SIZE, prot, flags, fd, offset) };
        match mapped {
            Ok(_) => Ok(()),
            Err(error) => {
                self.mend(at, pages);
                Err(error.into())
            }
        }
    }

    /// Keeps pages that are mapped out of children, as a PV domain's kernel does with every grant mapping.
    pub(crate) fn keep_from_children(&self, at: usize, pages: usize) -> io::Result<()> {
        if at.checked_add(pages).is_none_or(|end| end > self.pages) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = pages * PAGE_SIZE;
        // SAFETY: the range is ours; the advice does not change what is mapped.
        unsafe { rustix::mm::madvise(self.address(at), len, Advice::LinuxDontFork) }?;
        Ok(())
    }

    /// Unmaps everything.
    pub(crate) fn release(mut self) -> io::Result<()> {
        unmap(self.address(0), std::mem::take(&mut self.pages))
    }

    /// A failed `MAP_FIXED` may leave a hole, into which another thread's mapping can fall: fill
    /// it again, or end the reservation before it, so that nothing of a stranger's is unmapped later.
    fn mend(&mut self, at: usize, pages: usize) {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        let address = self.address(at);
        // SAFETY: NOREPLACE maps only where nothing is mapped.
        let filled = unsafe {
            rustix::mm::mmap_anonymous(address, pages * PAGE_SIZE, ProtFlags::empty(), flags)
        };
        if filled.is_err() {
            let behind = at + pages;
            if let Err(error) = unmap(self.address(behind), self.pages - behind) {
                tracing::error!(%error, "addresses reserved for granted pages are lost");
            }
            self.pages = at;
        }
    }

    /// The address of page `page`, which is at most `self.pages`.
    fn address(&self, page: usize) -> *mut core::ffi::c_void {
        self.base.as_ptr().wrapping_add(page * PAGE_SIZE).cast()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Err(error) = unmap(self.address(0), self.pages) {
            tracing::error!(%error, pages = self.pages, "granted pages stay mapped");
        }
    }
}

/// Bytes of `pages` pages; refuses what cannot be addressed.
fn bytes(pages: usize) -> io::Result<usize> {
    pages
        .checked_mul(PAGE_SIZE)
        .filter(|len| *len > 0 && isize::try_from(*len).is_ok())
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Unmaps `pages` pages of a reservation that ends here.
fn unmap(address: *mut core::ffi::c_void, pages: usize) -> io::Result<()> {
    if pages > 0 {
        // SAFETY: called only for addresses of a reservation that nobody can name any more.
        unsafe { rustix::mm::munmap(address, pages * PAGE_SIZE) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;
    use std::os::fd::AsFd;

    fn memfd(pages: u64) -> std::os::fd::OwnedFd {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, pages * PAGE_SIZE as u64).unwrap();
        fd
    }

    #[test]
    fn pieces_in_any_order_make_one_range() {
        let fd = memfd(2);
        rustix::io::pwrite(&fd, b"0", 0).unwrap();
        rustix::io::pwrite(&fd, b"1", PAGE_SIZE as u64).unwrap();
        let mut range = Reservation::new(2).unwrap();
        range.place(1, 1, fd.as_fd(), 0, Access::Read).unwrap();
        range
            .place(0, 1, fd.as_fd(), PAGE_SIZE as u64, Access::Read)
            .unwrap();
        // SAFETY: both pages are mapped readable.
        let first = unsafe { range.base().as_ptr().read() };
        let second = range.base().as_ptr().wrapping_add(PAGE_SIZE);
        // SAFETY: as above.
        let second = unsafe { second.read() };
        assert_eq!([first, second], *b"10");
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let fd = memfd(3);
        let mut range = Reservation::new(2).unwrap();
        for (at, pages) in [(0, 3), (1, 2), (2, 1), (0, 0), (usize::MAX, 2)] {
            assert!(range.place(at, pages, fd.as_fd(), 0, Access::Read).is_err());
        }
        assert_eq!(range.pages(), 2);
    }

    /// What a driver that refuses leaves behind: gntdev is asked after the old pages are gone.
    fn hole(range: &Reservation, at: usize) {
        // SAFETY: nobody uses the page.
        unsafe { rustix::mm::munmap(range.address(at), PAGE_SIZE) }.unwrap();
    }

    #[test]
    fn a_hole_is_filled_again() {
        let fd = memfd(1);
        let mut range = Reservation::new(3).unwrap();
        hole(&range, 1);
        range.mend(1, 1);
        assert_eq!(range.pages(), 3);
        range.place(1, 1, fd.as_fd(), 0, Access::Write).unwrap();
    }

    #[test]
    fn a_hole_that_another_mapping_fell_into_is_not_ours_any_more() {
        let fd = memfd(1);
        rustix::io::pwrite(&fd, b"s", 0).unwrap();
        let mut range = Reservation::new(3).unwrap();
        hole(&range, 1);
        let stranger = range.address(1);
        let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
        // SAFETY: nothing is mapped there.
        unsafe { rustix::mm::mmap(stranger, PAGE_SIZE, ProtFlags::READ, flags, &fd, 0) }.unwrap();
        range.mend(1, 1);
        assert_eq!(range.pages(), 1);
        drop(range);
        // SAFETY: mapped above; the point is that it still is.
        assert_eq!(unsafe { stranger.cast::<u8>().read() }, b's');
    }

    #[test]
    fn a_refused_piece_is_an_error_and_unmaps_nothing_else() {
        let fd = memfd(1);
        rustix::io::pwrite(&fd, b"x", 0).unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let mut range = Reservation::new(3).unwrap();
        range.place(0, 1, fd.as_fd(), 0, Access::Read).unwrap();
        let refused = range.place(1, 1, reader.as_fd(), 0, Access::Read);
        refused.unwrap_err();
        // SAFETY: page 0 is mapped readable.
        assert_eq!(unsafe { range.base().as_ptr().read() }, b'x');
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert!(Reservation::new(0).is_err());
        assert!(Reservation::new(usize::MAX / 2).is_err());
    }
}
