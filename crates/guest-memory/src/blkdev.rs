//! The ioctl of Linux's block devices that no safe library of ours offers, and that a system call
//! on files does not replace: fallocate zeroes what it punches, a discard need not.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(0x12, 119)` of linux/fs.h; the argument is two 64-bit numbers, offset and length.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Tells a block device that `len` bytes at `offset` hold nothing that is needed: their contents
/// are undefined afterwards. Whole logical blocks only. Waits for the device.
///
/// # Errors
/// What the kernel says: `EOPNOTSUPP` if the device cannot, `EINVAL` for parts of blocks.
pub fn discard_blocks(device: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the request reads two 64-bit numbers, which `range` holds for the call, and changes
    // no memory of this process.
    match unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_no_block_device_refuses() {
        let file = tempfile::tempfile().unwrap();
        let error = discard_blocks(file.as_fd(), 0, 512).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
