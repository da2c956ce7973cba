//! The disk image of a demo: a copy of the one that was named, or one made on the spot with a
//! file system in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use super::interrupt;
use crate::progress;
use anyhow::{Context as _, bail};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

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

/// Copies a file, until Ctrl-C.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<u64> {
    let mut source = File::open(from)?;
    let mut target = File::create_new(to)?;
    let bar = progress::bar("preparing", source.metadata()?.len());
    let mut bytes = 0;
    loop {
        interrupt::check()?;
        let copied = io::copy(&mut (&mut source).take(COPY_STEP), &mut target)?;
        if copied == 0 {
            bar.finish_and_clear();
            return Ok(bytes);
        }
        bytes += copied;
        bar.set_position(bytes);
    }
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
