//! The image: opening it, and what it says of itself.
//!
//! Two devices or processes that write to one image destroy it. A regular file is locked as QEMU
//! locks it (see `lock`). A block device that is written to is opened exclusively, which the kernel
//! keeps up against everybody: mounts, volume managers and QEMU.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_setfl, ioctl_blkpbszget, ioctl_blksszget};
use rustix::io::Errno;

use super::direct::{Alignment, Direct};
use super::error::BlkError;
use super::lock::{self, Lock};

/// Bytes of a sector: the unit of the protocol, whatever the block size.
pub(super) const SECTOR: u64 = 512;

/// Bytes that a file is best written in: a page of the cache, as no file system is finer.
const FILE_PHYSICAL: u32 = 4096;

/// The largest block that is shown to a driver: Linux takes none that is larger than a page.
pub(super) const BLOCK_MAX: u32 = 4096;

/// How an image is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Capacity in sectors, a whole number of logical blocks.
    pub(super) sectors: u64,
    /// Bytes that can be addressed: a power of two from 512 to 4096.
    pub(super) logical: u32,
    /// Bytes that can be written without reading around them: `logical` or a larger power of two.
    pub(super) physical: u32,
}

impl Geometry {
    /// A regular file of so many bytes, in the page cache.
    #[cfg(test)]
    pub(super) fn of_file(bytes: u64) -> Self {
        Self::new(bytes, 512, FILE_PHYSICAL)
    }

    /// The capacity in sectors of the same image when it has so many bytes.
    pub(super) fn sectors_of(self, bytes: u64) -> u64 {
        let block = u64::from(self.logical);
        bytes / block * (block / SECTOR)
    }

    /// Sizes that a driver could not use become usable ones.
    fn new(bytes: u64, logical: u32, physical: u32) -> Self {
        let usable = |size: u32| size.is_power_of_two() && u64::from(size) >= SECTOR;
        let logical = if usable(logical) {
            logical.min(BLOCK_MAX)
        } else {
            512
        };
        let physical = if usable(physical) { physical } else { logical };
        let geometry = Self {
            sectors: 0,
            logical,
            physical: physical.max(logical),
        };
        Self {
            sectors: geometry.sectors_of(bytes),
            ..geometry
        }
    }
}

/// An image that is open.
#[derive(Debug)]
pub(super) struct Image {
    /// The one descriptor, which holds the lock.
    pub(super) file: File,
    /// Not a regular file.
    pub(super) is_block_device: bool,
    /// It is used past the page cache.
    pub(super) direct: Option<Direct>,
}

impl Image {
    /// Bytes that it has at this moment.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        // The end tells the size of a block device too, which its metadata does not. All I/O
        // names its offset, so that nobody minds the position.
        (&self.file).seek(SeekFrom::End(0))
    }

    fn geometry(&self, bytes: u64) -> Result<Geometry, Errno> {
        let (logical, physical) = match self.is_block_device {
            true => (ioctl_blksszget(&self.file)?, ioctl_blkpbszget(&self.file)?),
            false => (512, FILE_PHYSICAL),
        };
        // Direct I/O takes whole blocks only, so the driver is to send whole ones.
        let least = self
            .direct
            .as_ref()
            .map_or(0, |direct| direct.alignment.block);
        Ok(Geometry::new(bytes, logical.max(least), physical))
    }
}

/// Opens and locks an image. Waits for no other process; for a disk or a network file system that
/// does not answer, the kernel offers no way not to.
pub(super) fn open(
    path: &Path,
    read_only: bool,
    direct: bool,
) -> Result<(Image, Geometry), BlkError> {
    let named = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => BlkError::Missing { path: path.into() },
        io::ErrorKind::PermissionDenied => BlkError::Denied {
            path: path.into(),
            read_only,
        },
        io::ErrorKind::ResourceBusy => BlkError::InUse {
            path: path.into(),
            read_only,
            holder: None,
        },
        io::ErrorKind::WouldBlock => BlkError::Leased { path: path.into() },
        _ => BlkError::Open {
            path: path.into(),
            error,
        },
    };
    // Before it is opened: opening a pipe waits, opening a tape rewinds it.
    let kind = fs::metadata(path).map_err(named)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(BlkError::Kind {
            path: path.into(),
            found: describe(kind),
        });
    }
    let mut options = File::options();
    options.read(true).write(!read_only);
    let mut flags = OFlags::empty();
    flags.set(OFlags::EXCL, kind.is_block_device() && !read_only);
    flags.set(OFlags::DIRECT, direct);
    // A lease of another process is waited for otherwise, up to 45 s.
    flags.set(OFlags::NONBLOCK, kind.is_file());
    options.custom_flags(flags.bits().cast_signed());
    let no_direct = || BlkError::NoDirect { path: path.into() };
    let file = options.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput if direct => no_direct(),
        _ => named(error),
    })?;
    if kind.is_file() {
        // For opening only: whoever reads and writes later may wait, io_uring would not.
        fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|errno| named(errno.into()))?;
        match lock::take(&file, read_only) {
            Ok(Lock::Taken) => {}
            Ok(Lock::InUse { holder }) => {
                return Err(BlkError::InUse {
                    path: path.into(),
                    read_only,
                    holder,
                });
            }
            // A network file system without locks is not useless.
            Ok(Lock::Unsupported(error)) => {
                tracing::warn!(path = %path.display(), %error, "the image cannot be locked");
            }
            Err(error) => return Err(named(error)),
        }
    }
    let is_block_device = kind.is_block_device();
    let direct = match direct {
        true => {
            let alignment = Alignment::of(&file, is_block_device).map_err(named)?;
            Some(Direct::new(alignment.ok_or_else(no_direct)?))
        }
        false => None,
    };
    let image = Image {
        file,
        is_block_device,
        direct,
    };
    let bytes = image.bytes().map_err(named)?;
    let geometry = image.geometry(bytes).map_err(|errno| named(errno.into()))?;
    if geometry.sectors == 0 {
        return Err(BlkError::TooSmall {
            path: path.into(),
            bytes,
        });
    }
    if bytes != geometry.sectors * SECTOR {
        return Err(BlkError::Truncated {
            path: path.into(),
            bytes,
            block: geometry.logical,
        });
    }
    Ok((image, geometry))
}

fn describe(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "something else"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, fcntl_getfl, mknodat};

    #[test]
    fn an_image_is_a_file_of_whole_sectors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let said = |path: &Path| open(path, false, false).unwrap_err().to_string();

        assert!(matches!(
            open(&path, true, false),
            Err(BlkError::Missing { .. })
        ));
        assert!(said(&path).contains("disk.img: there is no such image"));
        assert!(said(dir.path()).contains("is a directory, not"));
        for bytes in [0, 1, 511] {
            fs::write(&path, vec![0; bytes]).unwrap();
            assert!(said(&path).contains(&format!("holds {bytes} bytes")));
        }
        for bytes in [513, 1023, 10_000] {
            fs::write(&path, vec![0; bytes]).unwrap();
            assert!(said(&path).contains(&format!("has {bytes} bytes, which is no whole number")));
        }
        for (bytes, sectors) in [(512, 1), (1024, 2)] {
            fs::write(&path, vec![0; bytes]).unwrap();
            for read_only in [true, false] {
                let (_, geometry) = open(&path, read_only, false).unwrap();
                assert_eq!(geometry, Geometry::of_file(sectors * 512));
                assert_eq!(geometry.sectors, sectors);
            }
        }
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_other_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(
            open(&path, true, false),
            Err(BlkError::Kind {
                found: "a pipe",
                ..
            })
        ));
    }

    #[test]
    fn a_read_only_image_is_not_opened_for_writing() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(512).unwrap();
        let (opened, _) = open(image.path(), true, false).unwrap();
        assert!(rustix::io::write(&opened.file, b"x").is_err());
    }

    #[test]
    fn an_image_that_is_open_may_be_waited_for() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        for direct in [false, true] {
            let opened = match open(image.path(), false, direct) {
                Err(BlkError::NoDirect { .. }) if direct => {
                    eprintln!("\n*** NOT TESTED: direct I/O, which this file system has not ***\n");
                    continue;
                }
                opened => opened.unwrap().0,
            };
            let flags = fcntl_getfl(&opened.file).unwrap();
            assert!(!flags.contains(OFlags::NONBLOCK));
            assert_eq!(flags.contains(OFlags::DIRECT), direct);
        }
    }

    #[test]
    fn readers_share_an_image_and_a_writer_is_alone() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(512).unwrap();
        let path = image.path();
        let said = |read_only| open(path, read_only, false).unwrap_err().to_string();
        let name = path.display();

        let readers = [0, 1].map(|_| open(path, true, false).unwrap());
        let hint = format!("`fuser -v {name}` lists who has it open");
        let in_use = format!("{name}: is in use by another process or device");
        assert_eq!(said(false), format!("{in_use}; {hint}"));
        drop(readers);
        let writer = open(path, false, false).unwrap();
        assert_eq!(said(false), format!("{in_use}; {hint}"));
        assert_eq!(said(true), format!("{in_use} that writes to it; {hint}"));
        drop(writer);
        open(path, false, false).unwrap();
    }

    #[test]
    fn block_sizes_are_usable_whatever_the_device_says() {
        let of = |bytes, logical, physical| {
            let geometry = Geometry::new(bytes, logical, physical);
            (geometry.sectors, geometry.logical, geometry.physical)
        };
        assert_eq!(of(10_000, 512, 512), (19, 512, 512));
        assert_eq!(of(10_000, 512, 4096), (19, 512, 4096));
        assert_eq!(of(10_000, 4096, 4096), (16, 4096, 4096));
        assert_eq!(of(4095, 4096, 4096), (0, 4096, 4096));
        // Nonsense.
        assert_eq!(of(10_000, 0, 0), (19, 512, 512));
        assert_eq!(of(10_000, 256, 513), (19, 512, 512));
        assert_eq!(of(10_000, 4096, 512), (16, 4096, 4096));
        assert_eq!(of(u64::MAX, 512, 1 << 31), (u64::MAX / 512, 512, 1 << 31));
    }
}
