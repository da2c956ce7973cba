//! Areas over ordinary mappings of this process: anonymous memory and shared files (memfd).
//!
//! Grants are mapped by `xen-hal`, which brings its own backing.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::mm::{self, MapFlags, ProtFlags};

use crate::{Access, Area, Backing};

impl Area {
    /// Private zeroed memory with the same interface, for both ends of a ring in one process.
    /// Its size is rounded up to whole pages by the kernel, [`Area::len`] is `len`.
    ///
    /// # Errors
    /// `len` is 0 or the host has no memory.
    pub fn anonymous(len: usize) -> io::Result<Area> {
        // SAFETY: no address is asked for, so the kernel picks one that is free.
        let base = unsafe {
            mm::mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        Ok(own(base, len, Access::Write))
    }

    /// `len` bytes at `offset` of a file, shared with everybody else who maps it.
    ///
    /// A file that is shorter, or is cut later, kills the process with SIGBUS on access: seal a
    /// memfd against shrinking, or own the file.
    ///
    /// # Errors
    /// `len` is 0, `offset` is not page-aligned, or the file cannot be mapped for `access`.
    pub fn shared_file(
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: Access,
    ) -> io::Result<Area> {
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: no address is asked for, so the kernel picks one that is free.
        let base = unsafe {
            mm::mmap(
                ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        Ok(own(base, len, access))
    }
}

/// The area of a fresh mapping.
fn own(base: *mut c_void, len: usize, access: Access) -> Area {
    let Some(base) = NonNull::new(base.cast::<u8>()) else {
        unreachable!("mmap maps page 0 only where it is asked to")
    };
    // SAFETY: the mapping is fresh, page-aligned, has `len` bytes with this right, nobody else
    // knows its address, and only `Mmap::unmap` ends it.
    unsafe { Area::from_raw(base, len, access, Box::new(Mmap)) }
}

/// A plain mapping, undone by munmap.
#[derive(Debug)]
struct Mmap;

impl Backing for Mmap {
    fn unmap(&mut self, base: NonNull<u8>, len: usize) -> io::Result<()> {
        // SAFETY: `own` hands over a mapping of its own, and nobody can touch it any more.
        unsafe { mm::munmap(base.as_ptr().cast(), len) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;

    #[test]
    fn two_mappings_of_a_memfd_see_each_other() {
        let memfd = memfd_create("guest-memory-test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, 8192).unwrap();
        let all = Area::shared_file(memfd.as_fd(), 0, 8192, Access::Write).unwrap();
        let second_page = Area::shared_file(memfd.as_fd(), 4096, 4096, Access::Read).unwrap();
        all.range(4096, 5, Access::Write)
            .unwrap()
            .write(0, b"hello")
            .unwrap();
        let seen = second_page.range(0, 5, Access::Read).unwrap();
        assert_eq!(seen.read_array(0), Ok(*b"hello"));
        assert!(second_page.range(0, 5, Access::Write).is_err());
        second_page.unmap().unwrap();
        all.unmap().unwrap();
    }

    /// Looks for the file by name: another thread may map something at the same address.
    #[test]
    fn unmap_really_unmaps() {
        const NAME: &str = "guest-memory-unmap-test";
        let is_mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.contains(NAME)
        };
        let memfd = memfd_create(NAME, MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, 4096).unwrap();
        let area = Area::shared_file(memfd.as_fd(), 0, 4096, Access::Write).unwrap();
        assert!(is_mapped());
        area.unmap().unwrap();
        assert!(!is_mapped());
    }

    #[test]
    fn empty_mappings_are_refused() {
        assert!(Area::anonymous(0).is_err());
    }
}
