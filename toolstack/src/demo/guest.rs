//! The guest of the demo: reads the whole disk, writes all of it, and tells its host what it sees
//! by lines of JSON on standard output. A line on standard input lets it go on.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use frontend_shim::Disk;
use serde::{Deserialize, Serialize};
use xen_hal::PlatformSpec;

use crate::frontend::{connect, leave};
use crate::latency::percentile;
use crate::transfer::{self, Figures};

/// Reads that are timed, and counted, one at a time.
pub(super) const SINGLE_READS: usize = 2000;
/// Bytes of each.
const SINGLE_BYTES: usize = 4096;

/// What the guest works with.
#[derive(Debug, clap::Args)]
pub(crate) struct GuestOptions {
    /// What the disk holds.
    #[arg(long)]
    source: PathBuf,
}

/// What the guest says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Line {
    /// The disk is up.
    Up {
        bytes: u64,
        serial: String,
        messages: u64,
    },
    /// So many bytes of the work are done.
    Progress(u64),
    /// Waits for a line on standard input before the single reads, and after them.
    Pause,
    /// All was verified here.
    Done(GuestFigures),
}

/// What the guest measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct GuestFigures {
    /// Reading the whole disk and comparing it.
    pub(super) read: Figures,
    /// Writing it.
    pub(super) write: Figures,
    /// Reading back what was written and comparing it.
    pub(super) read_back: Figures,
    /// Latency of single reads in microseconds: median, and the 99th of 100.
    pub(super) latency_p50_us: f64,
    pub(super) latency_p99_us: f64,
}

pub(crate) fn guest(spec: &PlatformSpec, options: &GuestOptions) -> anyhow::Result<()> {
    let open = || {
        File::open(&options.source)
            .map(BufReader::new)
            .with_context(|| format!("{}", options.source.display()))
    };
    let mut frontend = connect(spec, 0, false)?;
    let mut disk = Disk::open(&mut frontend, 0)?;
    let counters = frontend.link()?.counters();
    let messages = counters.sent + counters.received;
    let serial = disk.serial(&mut frontend)?;
    let bytes = disk.bytes();
    say(&Line::Up {
        bytes,
        serial,
        messages,
    })?;

    pause()?;
    let latencies = transfer::latencies(&mut frontend, &mut disk, SINGLE_READS, SINGLE_BYTES)?;
    pause()?;

    let mut told = 0;
    let mut tell = |at: u64| {
        if at >= told + (4 << 20) || at == 3 * bytes {
            told = at;
            // A host that does not listen ends this process anyway.
            let _ = say(&Line::Progress(at));
        }
        Ok(())
    };
    let read = transfer::compare(&mut frontend, &mut disk, bytes, open()?, &mut tell)
        .context("reading the disk")?;
    let write = transfer::write_all(&mut frontend, &mut disk, bytes, Inverted(open()?), |at| {
        tell(bytes + at)
    })
    .context("writing the disk")?;
    let read_back = transfer::compare(&mut frontend, &mut disk, bytes, Inverted(open()?), |at| {
        tell(2 * bytes + at)
    })
    .context("reading back what was written")?;
    disk.close(&mut frontend)?;
    leave(frontend)?;
    say(&Line::Done(GuestFigures {
        read,
        write,
        read_back,
        latency_p50_us: percentile(&latencies, 50),
        latency_p99_us: percentile(&latencies, 99),
    }))
}

/// What the guest writes onto the disk: each byte of the source, inverted.
pub(super) struct Inverted<R>(pub(super) R);

impl<R: Read> Read for Inverted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buf)?;
        for byte in &mut buf[..len] {
            *byte = !*byte;
        }
        Ok(len)
    }
}

fn say(line: &Line) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn pause() -> anyhow::Result<()> {
    say(&Line::Pause)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(())
}
