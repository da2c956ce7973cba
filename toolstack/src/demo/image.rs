//! The disk image of a demo: a copy of the one that was named, or one made on the spot with a
//! file system in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::interrupt;
use crate::progress;
use anyhow::{Context as _, bail};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use rustix::fs::{SeekFrom as Seek, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes copied between two looks for Ctrl-C.
const COPY_STEP: u64 = 64 << 20;
/// Bytes of an image that is made here.
const IMAGE_BYTES: u64 = 64 << 20;
/// Files in it, and bytes of each.
const FILES: u64 = 6;
const FILE_BYTES: usize = 8 << 20;

/// Makes the image that the backend serves; what was named is only read.
pub(super) fn prepare(named: Option<&Path>, served: &Path) -> anyhow::Result<()> {
    match named {
        Some(disk) => copy_named(disk, served),
        None => make(served).context("cannot make a disk image"),
    }
}

fn copy_named(disk: &Path, served: &Path) -> anyhow::Result<()> {
    let shown = disk.display();
    let about = fs::metadata(disk).with_context(|| format!("--disk {shown}"))?;
    let kind = about.file_type();
    if kind.is_dir() {
        bail!("--disk {shown}: is a directory, expected a disk image");
    }
    if !kind.is_file() && !kind.is_block_device() {
        bail!("--disk {shown}: is neither a regular file nor a block device");
    }
    let bytes = copy(disk, served).with_context(|| format!("--disk {shown}"))?;
    if bytes == 0 {
        bail!("--disk {shown}: is empty");
    }
    if bytes % SECTOR != 0 {
        bail!(
            "--disk {shown}: has {bytes} bytes, which is no whole number of {SECTOR}-byte sectors: is it truncated?"
        );
    }
    Ok(())
}

/// Copies a file and its holes, until Ctrl-C; its length.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<u64> {
    let mut source = File::open(from)?;
    let mut target = File::create_new(to)?;
    // The end tells the size of a block device too, which its metadata does not.
    let bytes = source.seek(SeekFrom::End(0))?;
    // Where the file system shares blocks, nothing is copied.
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(bytes);
    }
    target.set_len(bytes)?;
    let bar = progress::bar("preparing", bytes);
    let mut at = 0;
    while let Some(data) = next_data(&source, at, bytes)? {
        interrupt::check()?;
        source.seek(SeekFrom::Start(data.start))?;
        target.seek(SeekFrom::Start(data.start))?;
        let wanted = (data.end - data.start).min(COPY_STEP);
        let copied = io::copy(&mut (&mut source).take(wanted), &mut target)?;
        if copied == 0 {
            bail!("it is shorter than it said");
        }
        at = data.start + copied;
        bar.set_position(at);
    }
    bar.finish_and_clear();
    Ok(bytes)
}

/// The next stretch of a file of `bytes` bytes that is no hole. Where holes cannot be told, as on a
/// block device, there are none.
fn next_data(file: &File, at: u64, bytes: u64) -> io::Result<Option<Range<u64>>> {
    if at >= bytes {
        return Ok(None);
    }
    let start = match seek(file, Seek::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some(at..bytes)),
        other => other?,
    };
    let end = seek(file, Seek::Hole(start))?;
    Ok(Some(start..end.min(bytes)))
}

fn make(path: &Path) -> anyhow::Result<()> {
    let mut image = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    image.set_len(IMAGE_BYTES)?;
    fatfs::format_volume(
        &mut image,
        FormatVolumeOptions::new().volume_label(*b"VIRTIO-MSG "),
    )?;
    image.rewind()?;
    let volume = FileSystem::new(&mut image, FsOptions::new())?;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut bytes = vec![0; FILE_BYTES];
    for number in 0..FILES {
        noise.fill(&mut bytes);
        volume
            .root_dir()
            .create_file(&format!("file{number}.bin"))?
            .write_all(&bytes)?;
    }
    volume.unmount()?;
    Ok(())
}

/// Bytes that no pattern of zeros could be mistaken for; the same in every run (xorshift64).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        let bytes = 64 << 20;
        let source = File::create_new(&from).unwrap();
        source.set_len(bytes).unwrap();
        for at in [0, 9 << 20, bytes - 5] {
            source.write_all_at(b"bytes", at).unwrap();
        }
        assert_eq!(copy(&from, &to).unwrap(), bytes);
        let copied = fs::read(&to).unwrap();
        assert!(copied == fs::read(&from).unwrap());
        // In blocks of 512 bytes, whatever those of the file system are.
        let allocated = fs::metadata(&to).unwrap().blocks() * 512;
        assert!(allocated < bytes / 8, "{allocated} bytes are filled out");
    }
}
