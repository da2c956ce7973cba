//! blk_null, blk_read4k, blk_write4k: requests of a block device on a file in the page cache.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use tempfile::TempDir;
use virtio_devices::blk::{Blk, BlkConfig};
use virtio_devices::{DeviceModel, Engine};

use super::Context;
use crate::blk_queue::{Operation, SECTOR, drive};
use crate::guest::MsgDisk;
use crate::machine::Machine;
use crate::mmio::{MmioDisk, Notify};
use crate::peers::{Aio, QsdDisk, Uring};
use crate::random::Random;
use crate::report::Target;
use crate::rounds::{Took, Watch};

pub(super) const BLOCK: u32 = 4096;
/// The deepest that any benchmark goes.
pub(super) const DEPTH: u16 = 128;

/// A disk image that is all in the page cache.
#[derive(Debug)]
pub(super) struct Image {
    _dir: TempDir,
    path: PathBuf,
    bytes: u64,
    /// Only then two may use it at a time.
    read_only: bool,
}

impl Image {
    pub(super) fn make(bytes: u64, read_only: bool) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("vmsg-bench-").tempdir()?;
        let path = dir.path().join("disk.img");
        let mut file = File::create(&path)?;
        let mut random = Random::new();
        let piece: Vec<u8> = (0..1 << 20)
            .map(|_| u8::try_from(random.below(256)).unwrap_or_default())
            .collect();
        for _ in 0..bytes >> 20 {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        Ok(Self {
            _dir: dir,
            path,
            bytes,
            read_only,
        })
    }

    /// The toolstack's line for a device of it.
    pub(super) fn line(&self, queues: u16) -> String {
        let mode = match self.read_only {
            true => "ro",
            false => "rw",
        };
        format!(
            "type=blk,mode={mode},queues={queues},path={}",
            self.path.display()
        )
    }

    /// Sectors at which random blocks begin, the same each time.
    pub(super) fn sectors(&self) -> impl FnMut() -> u64 + use<> {
        let blocks = self.bytes / u64::from(BLOCK);
        let mut random = Random::new();
        move || random.below(blocks) * (u64::from(BLOCK) / SECTOR)
    }
}

/// The product's device model on an image, for the peers' transports.
pub(super) fn model(
    image: &Image,
    queues: u16,
    engine: &Engine,
) -> anyhow::Result<Box<dyn DeviceModel>> {
    let config = BlkConfig {
        path: image.path.clone(),
        read_only: image.read_only,
        serial: String::new(),
        queues,
        direct: false,
    };
    Ok(Box::new(Blk::open(&config, engine)?))
}

pub(super) fn null(context: &mut Context<'_>) -> anyhow::Result<()> {
    let image = Image::make(1 << 20, true)?;
    let engine = Engine::new()?;
    let mut machine = Machine::start()?;
    let (_, mut ours) = MsgDisk::start(&mut machine, &image.line(1), DEPTH, BLOCK)?;
    for (notify, peer) in [
        (Notify::Trap, "virtio-mmio"),
        (Notify::Ioeventfd, "virtio-mmio + ioeventfd"),
    ] {
        let model = model(&image, 1, &engine)?;
        let mut mmio = MmioDisk::start(&machine, model, notify, DEPTH, BLOCK)?;
        let trap = context.trap(&mut mmio.mmio)?;
        for depth in [1, 8, 32] {
            let target = (depth == 1 && notify == Notify::Trap).then_some(Target::AtMost(0.36));
            let name = match notify {
                Notify::Trap => format!("blk_null QD{depth}"),
                Notify::Ioeventfd => format!("blk_null QD{depth} ioeventfd"),
            };
            let mut next = || Operation::GetId;
            let mut next_too = || Operation::GetId;
            context.time(
                name,
                peer,
                target,
                &mut |count| drive(&mut ours, depth, count, &mut next),
                &mut |count| drive(&mut mmio, depth, count, &mut next_too),
            )?;
            context.note(&trap);
        }
    }
    Ok(())
}

pub(super) fn read(context: &mut Context<'_>) -> anyhow::Result<()> {
    let image = Image::make(context.image_bytes(), true)?;
    let engine = Engine::new()?;
    let mut machine = Machine::start()?;
    let (_, mut ours) = MsgDisk::start(&mut machine, &image.line(1), DEPTH, BLOCK)?;
    let mut mmio = MmioDisk::start(
        &machine,
        model(&image, 1, &engine)?,
        Notify::Trap,
        DEPTH,
        BLOCK,
    )?;
    let trap = context.trap(&mut mmio.mmio)?;
    let file = File::open(&image.path)?;
    let targets = [
        (1, None),
        (8, Some(0.85)),
        (32, Some(0.95)),
        (128, Some(0.98)),
    ];
    for (depth, target) in targets {
        let mut sectors = image.sectors();
        let mut next = || Operation::Read {
            sector: sectors(),
            bytes: BLOCK,
        };
        let mut raw = image.sectors();
        let mut pages = vec![[0; BLOCK as usize]; depth.into()];
        context.rate(
            format!("blk_read4k QD{depth}"),
            "pread",
            target.map(Target::AtLeast),
            &mut |count| drive(&mut ours, depth, count, &mut next),
            &mut |count| {
                let watch = Watch::start();
                for page in 0..count {
                    let at = usize::try_from(page)? % pages.len();
                    file.read_exact_at(&mut pages[at], raw() * SECTOR)?;
                }
                Ok(watch.took())
            },
        )?;
        let mut sectors = image.sectors();
        let mut next_too = || Operation::Read {
            sector: sectors(),
            bytes: BLOCK,
        };
        context.rate(
            format!("blk_read4k QD{depth} mmio"),
            "virtio-mmio",
            None,
            &mut |count| drive(&mut ours, depth, count, &mut next),
            &mut |count| drive(&mut mmio, depth, count, &mut next_too),
        )?;
        context.note(&trap);
        let mut sectors = image.sectors();
        let mut offset = || sectors() * SECTOR;
        match Uring::new(file.try_clone()?, depth, BLOCK) {
            Ok(mut uring) => {
                context.rate(
                    format!("blk_read4k QD{depth} io_uring"),
                    "io_uring",
                    None,
                    &mut |count| drive(&mut ours, depth, count, &mut next),
                    &mut |count| uring.read(depth, count, &mut offset),
                )?;
            }
            Err(error) => context.skip(format!("io_uring: {error:#}")),
        }
    }
    for (aio, target) in [(Aio::IoUring, 2.5), (Aio::Threads, 3.5)] {
        context.rounds.check()?;
        let mut qsd = match QsdDisk::start(&image.path, aio, DEPTH, BLOCK) {
            Ok(disk) => disk,
            Err(error) => {
                let aio = aio.name();
                context.skip(format!("qemu-storage-daemon with {aio}: {error:#}"));
                continue;
            }
        };
        let mut reads = [image.sectors(), image.sectors()].map(|mut sectors| {
            move || Operation::Read {
                sector: sectors(),
                bytes: BLOCK,
            }
        });
        let [next, next_too] = &mut reads;
        context.rate(
            format!("blk_read4k QD32 qsd {}", aio.name()),
            "qemu-storage-daemon",
            Some(Target::AtLeast(target)),
            &mut |count| drive(&mut ours, 32, count, next).map(Took::without_processor),
            &mut |count| drive(&mut qsd, 32, count, next_too).map(Took::without_processor),
        )?;
    }
    Ok(())
}

/// Large reads, eight at a time, beside the same system call without a guest.
pub(super) fn sequential(context: &mut Context<'_>) -> anyhow::Result<()> {
    const BYTES: u32 = 128 << 10;
    const DEPTH: u16 = 8;
    let image = Image::make(context.image_bytes(), true)?;
    let mut machine = Machine::start()?;
    let (_, mut ours) = MsgDisk::start(&mut machine, &image.line(1), DEPTH, BYTES)?;
    let file = File::open(&image.path)?;
    let pieces = image.bytes / u64::from(BYTES);
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % pieces;
        Operation::Read {
            sector: at * (u64::from(BYTES) / SECTOR),
            bytes: BYTES,
        }
    };
    let mut buffers = vec![vec![0; usize::try_from(BYTES)?]; DEPTH.into()];
    context.rate(
        "blk_seq 128 KiB QD8",
        "pread",
        None,
        &mut |count| drive(&mut ours, DEPTH, count, &mut next),
        &mut |count| {
            let watch = Watch::start();
            for piece in 0..count {
                let buffer = usize::try_from(piece)? % buffers.len();
                file.read_exact_at(&mut buffers[buffer], piece % pieces * u64::from(BYTES))?;
            }
            Ok(watch.took())
        },
    )?;
    Ok(())
}

pub(super) fn write(context: &mut Context<'_>) -> anyhow::Result<()> {
    let image = Image::make(context.image_bytes(), false)?;
    let mut machine = Machine::start()?;
    let (_, mut ours) = MsgDisk::start(&mut machine, &image.line(1), DEPTH, BLOCK)?;
    let file = File::options().write(true).open(&image.path)?;
    for (depth, target) in [(1, 0.8), (32, 0.9)] {
        for flush in [false, true] {
            // A flush after each write: both wait for the disk.
            let mut sectors = image.sectors();
            let mut is_write = false;
            let mut next = || {
                is_write = !(is_write && flush);
                match is_write {
                    true => Operation::Write {
                        sector: sectors(),
                        bytes: BLOCK,
                    },
                    false => Operation::Flush,
                }
            };
            let mut raw = image.sectors();
            let page = [0x5a; BLOCK as usize];
            let requests = 1 + u64::from(flush);
            let (name, peer) = match flush {
                false => (format!("blk_write4k QD{depth}"), "pwrite"),
                true => (format!("blk_write4k QD{depth} flush"), "pwrite + fdatasync"),
            };
            context.rate(
                name,
                peer,
                Some(Target::AtLeast(target)),
                &mut |count| {
                    let took = drive(&mut ours, depth, count * requests, &mut next)?;
                    Ok(match flush {
                        true => took.without_processor(),
                        false => took,
                    })
                },
                &mut |count| {
                    let watch = Watch::start();
                    for _ in 0..count {
                        file.write_all_at(&page, raw() * SECTOR)?;
                        if flush {
                            file.sync_data()?;
                        }
                    }
                    Ok(watch.took())
                },
            )?;
        }
    }
    Ok(())
}
