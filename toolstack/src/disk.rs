//! `vmsg frontend blk`: copies between a file and a block device of the bus, serves it, or loads it.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use frontend_shim::{Disk, DiskOptions, Frontend, FrontendError};
use xen_hal::PlatformSpec;

use crate::frontend::{connect, leave};
use crate::interrupt::Interrupt;
use crate::{Usage, export, load, output, progress, transfer};

/// Use a block device.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Copy a device into a file, or a file onto a device.
    ///
    /// One of FROM and TO is a device number, the other a file. (A file whose name is a number:
    /// write it with a directory, ./5.)
    #[command(after_help = "Examples:
  vmsg frontend blk copy 0 backup.img    read all of device 0
  vmsg frontend blk copy new.img 0       write device 0, and flush")]
    Copy {
        /// Device number or file.
        from: Place,
        /// Device number or file.
        to: Place,
        #[command(flatten)]
        way: Way,
        /// Print figures for programs.
        #[arg(long)]
        json: bool,
    },
    /// Serve a device to NBD clients of this machine, as qemu-img, nbdcopy or nbd-client, until
    /// Ctrl-C.
    ///
    /// Eight clients at a time; one more is refused, and one that does not say within five seconds
    /// what it wants is let go. Trim and write-zeroes are offered if the device has them.
    #[command(
        after_help = "Example: vmsg frontend blk export --nbd unix:/run/disk.nbd 0\n         \
                      qemu-img convert -n image.qcow2 'nbd+unix:///?socket=/run/disk.nbd'"
    )]
    Export {
        /// Where to listen: a socket that only its owner may use.
        #[arg(long, value_name = "unix:PATH")]
        nbd: export::Address,
        /// Device number.
        #[arg(value_name = "DEV")]
        device: u16,
        /// The bus.
        #[arg(long, value_name = "HANDLE", default_value_t = 0)]
        bus: u32,
    },
    /// Load a device with single requests, and say what each cost.
    ///
    /// The words are fio's. Reads leave the device as it is; writes overwrite it.
    #[command(after_help = "Examples:
  vmsg frontend blk bench 0                                  4 KiB random reads, one in flight
  vmsg frontend blk bench 0 --iodepth 32 --json
  vmsg frontend blk bench 0 --rw write --bs 64k --iodepth 8")]
    Bench {
        /// Device number.
        #[arg(value_name = "DEV")]
        device: u16,
        #[command(flatten)]
        load: load::Load,
        #[command(flatten)]
        way: Way,
        /// Print figures for programs.
        #[arg(long)]
        json: bool,
    },
    /// Compare a file with the start of a device, byte by byte.
    Verify {
        /// The file.
        file: PathBuf,
        /// Device number.
        #[arg(value_name = "DEV")]
        device: u16,
        #[command(flatten)]
        way: Way,
        /// Print figures for programs.
        #[arg(long)]
        json: bool,
    },
}

/// How a device is reached.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Way {
    /// The bus.
    #[arg(long, value_name = "HANDLE", default_value_t = 0)]
    bus: u32,
    /// Name each page of data by its grant, for the backend to copy, instead of sharing all of it
    /// beforehand.
    #[arg(long)]
    grants: bool,
}

/// One end of a copy.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Device(u16),
    File(PathBuf),
}

impl std::str::FromStr for Place {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            text.parse().map(Self::Device)
        } else {
            Ok(Self::File(text.into()))
        }
    }
}

pub(crate) fn run(spec: &PlatformSpec, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Copy {
            from: Place::Device(device),
            to: Place::File(file),
            way,
            json,
        } => with_disk(spec, *way, *device, *json, |frontend, disk, interrupt| {
            copy_out(frontend, disk, file, interrupt)
        }),
        Command::Copy {
            from: Place::File(file),
            to: Place::Device(device),
            way,
            json,
        } => with_disk(spec, *way, *device, *json, |frontend, disk, interrupt| {
            copy_in(frontend, disk, file, interrupt)
        }),
        Command::Copy { .. } => {
            Err(Usage::new("one of FROM and TO must be a device number, the other a file").into())
        }
        Command::Export { nbd, device, bus } => use_disk(
            spec,
            Way {
                bus: *bus,
                grants: false,
            },
            *device,
            DiskOptions::default(),
            |frontend, disk, _| export::serve(frontend, disk, nbd),
        ),
        Command::Bench {
            device,
            load,
            way,
            json,
        } => {
            let options = DiskOptions {
                requests: load.iodepth.into(),
                request_bytes: load.bs,
            };
            let report = use_disk(spec, *way, *device, options, |frontend, disk, interrupt| {
                load::run(frontend, disk, *load, interrupt)
            })?;
            load::print(&report, *json)
        }
        Command::Verify {
            file,
            device,
            way,
            json,
        } => with_disk(spec, *way, *device, *json, |frontend, disk, interrupt| {
            verify(frontend, disk, file, interrupt)
        }),
    }
}

fn with_disk(
    spec: &PlatformSpec,
    way: Way,
    device: u16,
    json: bool,
    work: impl FnOnce(&mut Frontend, &mut Disk, &Interrupt) -> anyhow::Result<transfer::Figures>,
) -> anyhow::Result<()> {
    let figures = use_disk(spec, way, device, DiskOptions::default(), work)?;
    if json {
        return output::print_json(&figures);
    }
    Ok(output::print(format_args!(
        "{} bytes in {:.2} s, {:.0} MiB/s, {} requests",
        figures.bytes,
        figures.seconds,
        figures.mib_per_second(),
        figures.requests
    ))?)
}

/// Connects for `work` on a device, and gives everything back, also after Ctrl-C.
fn use_disk<T>(
    spec: &PlatformSpec,
    way: Way,
    device: u16,
    options: DiskOptions,
    work: impl FnOnce(&mut Frontend, &mut Disk, &Interrupt) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut frontend = connect(spec, way.bus, way.grants)?;
    let interrupt = Interrupt::catch()?;
    let result = on_disk(&mut frontend, device, options, |frontend, disk| {
        work(frontend, disk, &interrupt)
    });
    // In order also after a failure: the backend is to let go of this process's memory.
    let left = leave(frontend);
    let value = result.map_err(|error| placed(error, way.bus, device))?;
    left?;
    Ok(value)
}

/// Says where an error happened, unless it does so itself.
fn placed(error: anyhow::Error, bus: u32, device: u16) -> anyhow::Error {
    match error.downcast_ref::<FrontendError>() {
        Some(
            FrontendError::Device { .. }
            | FrontendError::OtherKind { .. }
            | FrontendError::Leaving { .. }
            | FrontendError::Disconnected { .. }
            | FrontendError::Timeout { .. }
            | FrontendError::AreaRefused { .. }
            | FrontendError::Grant { .. },
        ) => error,
        _ => error.context(format!("bus {bus} device {device}")),
    }
}

/// Brings a disk up, works on it, and resets it, also after a failure.
fn on_disk<T>(
    frontend: &mut Frontend,
    device: u16,
    options: DiskOptions,
    work: impl FnOnce(&mut Frontend, &mut Disk) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut disk = Disk::open_with(frontend, device, options)?;
    let result = work(frontend, &mut disk);
    let closed = disk.close(frontend);
    let value = result?;
    closed?;
    Ok(value)
}

fn copy_out(
    frontend: &mut Frontend,
    disk: &mut Disk,
    file: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<transfer::Figures> {
    let bytes = disk.bytes();
    let bar = progress::bar("reading", bytes);
    let mut out = Target::new(file);
    let copied = transfer::read_all(frontend, disk, bytes, |data| {
        interrupt.check()?;
        bar.inc(data.len() as u64);
        Ok(out.write_all(data)?)
    });
    let copied = copied.and_then(|figures| out.flush().map(|()| figures).map_err(Into::into));
    bar.finish_and_clear();
    copied.map_err(|error| match out.written() {
        Some(written) => error.context(format!(
            "{} is incomplete ({written} of {bytes} bytes)",
            file.display()
        )),
        None => error,
    })
}

/// The file of a copy. What it held is kept until there is something to put in its place.
struct Target<'a> {
    path: &'a Path,
    open: Option<BufWriter<File>>,
    /// Bytes taken.
    taken: u64,
}

impl<'a> Target<'a> {
    fn new(path: &'a Path) -> Self {
        Self {
            path,
            open: None,
            taken: 0,
        }
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.with_file(|file| file.write_all(data))?;
        self.taken += data.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with_file(BufWriter::flush)
    }

    /// How much the file holds by now, if there is one.
    fn written(mut self) -> Option<u64> {
        let file = self.open.as_mut()?;
        // What does not get through is not counted.
        let _ = file.flush();
        Some(self.taken - file.buffer().len() as u64)
    }

    fn with_file(
        &mut self,
        work: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> io::Result<()> {
        let file = match &mut self.open {
            Some(file) => Ok(file),
            none => File::create(self.path).map(|file| none.insert(BufWriter::new(file))),
        };
        let shown = self.path.display();
        file.and_then(work)
            .map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))
    }
}

fn copy_in(
    frontend: &mut Frontend,
    disk: &mut Disk,
    file: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<transfer::Figures> {
    if disk.is_read_only() {
        bail!("the device is read-only");
    }
    let (source, bytes) = open_source(disk, file)?;
    let bar = progress::bar("writing", bytes);
    let mut asked = 0;
    let copied = transfer::write_all(frontend, disk, bytes, source, |at| {
        asked = at;
        bar.set_position(at);
        Ok(interrupt.check()?)
    });
    bar.finish_and_clear();
    copied.map_err(|error| match asked {
        0 => error,
        _ => error.context(format!(
            "the device was overwritten in part (up to {asked} of {bytes} bytes)"
        )),
    })
}

fn verify(
    frontend: &mut Frontend,
    disk: &mut Disk,
    file: &Path,
    interrupt: &Interrupt,
) -> anyhow::Result<transfer::Figures> {
    let (source, bytes) = open_source(disk, file)?;
    let bar = progress::bar("verifying", bytes);
    let figures = transfer::compare(frontend, disk, bytes, source, |at| {
        bar.set_position(at);
        Ok(interrupt.check()?)
    })?;
    bar.finish_and_clear();
    Ok(figures)
}

/// A file, or a block device, that fits onto the disk.
fn open_source(disk: &Disk, file: &Path) -> anyhow::Result<(BufReader<File>, u64)> {
    let shown = file.display();
    let kind = fs::metadata(file)
        .with_context(|| format!("{shown}"))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        bail!("{shown} is neither a regular file nor a block device");
    }
    let mut source = File::open(file).with_context(|| format!("{shown}"))?;
    // The end tells the size of a block device too, which its metadata does not.
    let bytes = source
        .seek(SeekFrom::End(0))
        .with_context(|| format!("{shown}"))?;
    source.rewind()?;
    if bytes == 0 {
        bail!("{shown} is empty");
    }
    if bytes > disk.bytes() {
        bail!("{shown} has {bytes} bytes, the device {}", disk.bytes());
    }
    Ok((BufReader::new(source), bytes))
}
