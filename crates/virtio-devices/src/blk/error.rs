//! Why a block device cannot be made. For the operator: never show it to a guest, it names paths.

use std::io;
use std::path::PathBuf;

use super::config::{QUEUES_MAX, SERIAL_BYTES};
use super::image::SECTOR;

/// Why a block device cannot be made. For the operator: never show it to a guest, it names paths.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// Number of queues out of range.
    #[error("{0} queues asked for, 1 to {QUEUES_MAX} are possible")]
    Queues(u16),
    /// Serial too long.
    #[error("serial {0:?} is longer than {SERIAL_BYTES} bytes")]
    Serial(String),
    /// No such file.
    #[error("{}: there is no such image", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// The process may not open the image.
    #[error(
        "{}: permission denied to open it {}",
        path.display(),
        if *read_only { "for reading" } else { "for writing; mode=ro only reads" }
    )]
    Denied {
        /// The image.
        path: PathBuf,
        /// Whether writing was asked for.
        read_only: bool,
    },
    /// Somebody else has it open in a way that does not go together with ours.
    #[error(
        "{}: is in use by another process or device{}; {}",
        path.display(),
        if *read_only { " that writes to it" } else { "" },
        match holder {
            Some(pid) => format!("it is process {pid}"),
            None => format!("`fuser -v {}` lists who has it open", path.display()),
        }
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// Whether only reading was asked for.
        read_only: bool,
        /// The other process, where the kernel tells: for POSIX locks. Not for those that QEMU
        /// and we take, nor for block devices.
        holder: Option<u32>,
    },
    /// Another process is to be asked before anybody opens it. The kernel has asked now.
    #[error("{}: is leased by another process, which was asked to give it up; try again", path.display())]
    Leased {
        /// The image.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{}: is {found}, not a regular file or a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What stands there.
        found: &'static str,
    },
    /// Not one whole sector.
    #[error("{}: holds {bytes} bytes, an image has at least {SECTOR}", path.display())]
    TooSmall {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Its last block is not whole: the guest would not see its end.
    #[error(
        "{}: has {bytes} bytes, which is no whole number of {block}-byte blocks: is it truncated?",
        path.display()
    )]
    Truncated {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// `direct=1` where there is no direct I/O.
    #[error(
        "{}: its file system has no direct I/O: leave out direct=1",
        path.display()
    )]
    NoDirect {
        /// The image.
        path: PathBuf,
    },
    /// The host failed otherwise to open the image.
    #[error("{}: cannot be opened: {error}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The host has no descriptor left for the device.
    #[error("no event descriptor for the device: {0}")]
    Wake(io::Error),
}
