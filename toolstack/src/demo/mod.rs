//! `vmsg demo`: the whole bus on one machine without Xen, in four processes: this one (the
//! toolstack and the judge), the hosted machine, a backend in its dom0, and a guest.

mod guest;
mod image;
mod interrupt;
mod machine;
mod report;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use xen_bus::config::DeviceConfig;
use xen_types::DomId;

use crate::attach::{self, Answer};
use crate::bus::Bus;
use crate::{logging, output, platform, progress};
use guest::{Inverted, Line};
use machine::{Machine, Process};
use report::{PerRead, Report};

pub(crate) use guest::{GuestOptions, guest};
pub(crate) use interrupt::Interrupted;
pub(crate) use machine::end_with_parent;

/// Show a guest that copies a disk over the bus, on this machine, without Xen.
///
/// A hosted machine, a backend and a guest run as separate processes. The guest reads a whole
/// disk image, writes all of it, reads it back, and every byte is compared at both ends. Takes
/// a few seconds.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The disk image; a copy of it is served [default: an image with a file system, made on the
    /// spot].
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Print the figures for programs.
    #[arg(long)]
    json: bool,
}

/// The guest's name.
const GUEST: &str = "guest1";

pub(crate) fn run(options: &Options, log: logging::Format) -> anyhow::Result<()> {
    interrupt::start()?;
    let dir = tempfile::Builder::new().prefix("vmsg-demo-").tempdir()?;
    let result = show(dir.path(), options, log);
    dir.close()?;
    // What an interruption broke is not worth a message of its own.
    interrupt::check()?;
    let report = result?;
    if options.json {
        output::print_json(&report)
    } else {
        Ok(output::print(report.table())?)
    }
}

fn show(dir: &Path, options: &Options, log: logging::Format) -> anyhow::Result<Report> {
    let served = dir.join("disk.img");
    let source = dir.join("source.img");
    image::prepare(options.disk.as_deref(), &served)?;
    image::copy(&served, &source)?;

    let machine = Machine::start(&dir.join("machine"), log)?;
    let domid = machine.create_domain(GUEST)?;
    let mut backend = machine.start_backend()?;
    attach_disk(&machine, domid, &served)?;
    let mut guest = machine.start_guest(domid, &source)?;
    let report = converse(&machine, domid, &mut guest);
    backend.must_run()?;
    // Its own words on standard error say more than the silence that it left.
    guest.join()?;
    let report = report?;
    backend.stop()?;
    machine.stop()?;
    compare_served(&source, &served)?;
    Ok(Report {
        verified: true,
        ..report
    })
}

fn attach_disk(machine: &Machine, domid: DomId, served: &Path) -> anyhow::Result<()> {
    let mut store = platform::open_store(&machine.dom0()?)?;
    let bus = Bus {
        frontend_id: domid,
        backend_id: DomId::DOM0,
        handle: 0,
    };
    let config: DeviceConfig =
        format!("type=blk,mode=rw,serial=demo,path={}", served.display()).parse()?;
    let number = attach::attach(&mut store, &bus, config)?;
    match attach::answer(&mut store, &bus, number)? {
        Answer::Ready => Ok(()),
        other => bail!("the backend does not serve the disk: {other:?}"),
    }
}

/// Listens to the guest until it has done.
fn converse(machine: &Machine, domid: DomId, guest: &mut Process) -> anyhow::Result<Report> {
    let mut answers = guest.stdin().context("the guest's standard input")?;
    let lines = guest.stdout().context("the guest's standard output")?;
    let mut up = None;
    let mut bar = None;
    let mut marks = Vec::new();
    for line in lines.lines() {
        match serde_json::from_str(&line?).context("the guest's words")? {
            Line::Up {
                bytes,
                serial,
                messages,
            } => {
                bar = Some(progress::bar("copying", 3 * bytes));
                up = Some((bytes, serial, messages));
            }
            Line::Progress(at) => {
                if let Some(bar) = &bar {
                    bar.set_position(at);
                }
            }
            Line::Pause => {
                marks.push((machine.report(DomId::DOM0)?, machine.report(domid)?));
                answers.write_all(b"\n")?;
            }
            Line::Done(figures) => {
                if let Some(bar) = &bar {
                    bar.finish_and_clear();
                }
                let (bytes, serial, bring_up_messages) = up.context("the disk never came up")?;
                let [before, after] = marks.as_slice() else {
                    bail!("the guest paused {} times, expected 2", marks.len());
                };
                let backend = after.0.counters.since(&before.0.counters);
                let frontend = after.1.counters.since(&before.1.counters);
                return Ok(Report {
                    verified: false,
                    bytes,
                    serial,
                    bring_up_messages,
                    guest: figures,
                    single_reads: PerRead::new(&frontend, &backend),
                    mapped_pages: before.0.mapped_pages.into(),
                });
            }
        }
    }
    bail!("the guest ended early")
}

/// The host's own look at what the guest wrote.
fn compare_served(source: &Path, served: &Path) -> anyhow::Result<()> {
    let mut wanted = Inverted(BufReader::new(File::open(source)?));
    let mut found = BufReader::new(File::open(served)?);
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let len = found.read(&mut b)?;
        if len == 0 {
            break;
        }
        wanted.read_exact(&mut a[..len])?;
        if a[..len] != b[..len] {
            bail!(
                "what the guest wrote did not reach the disk: MiB {} differs",
                at >> 20
            );
        }
        at += len as u64;
    }
    if wanted.read(&mut a)? != 0 {
        bail!("the served disk is shorter than its source");
    }
    Ok(())
}
