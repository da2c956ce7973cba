//! `vmsg frontend blk bench`: a load of single requests on a block device, and what each of them cost.
//!
//! The words are fio's. Data is copied between the shared area and private memory, as an application's would be.

use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::value_parser;
use frontend_shim::{Disk, Frontend, Operation, SECTOR};
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::latency::{Latencies, percentile};
use crate::{Usage, output, progress};

/// Visits all parts of a disk before it comes back: prime, and far from any stride of a cache.
const RANDOM_STRIDE: u64 = 1_000_003;
/// Bytes of a request at most: half of what a frontend shares with its backend. Rings take of the
/// rest, with --grants more of it.
const MAX_BLOCK: usize = 1 << 20;

/// What is asked of the device, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pattern {
    /// Reads, one block after the other
    Read,
    /// Reads all over the device
    Randread,
    /// Writes, one block after the other: overwrites the device
    Write,
    /// Writes all over the device: overwrites it
    Randwrite,
}

impl Pattern {
    const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Randwrite)
    }

    const fn stride(self) -> u64 {
        match self {
            Self::Read | Self::Write => 1,
            Self::Randread | Self::Randwrite => RANDOM_STRIDE,
        }
    }
}

/// The load.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Load {
    /// What each request does.
    #[arg(long, value_enum, default_value = "randread")]
    pub(crate) rw: Pattern,
    /// Bytes of each request, a multiple of 512 up to 1m; k and m stand for KiB and MiB.
    #[arg(long, value_name = "BYTES", default_value = "4k", value_parser = block_size)]
    pub(crate) bs: usize,
    /// Requests in flight.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..))]
    pub(crate) iodepth: u16,
    /// Requests in all.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
    pub(crate) requests: u64,
}

/// As fio reads it: a number, with `k` or `m` behind it for KiB or MiB.
fn block_size(text: &str) -> Result<usize, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match (lower.strip_suffix('k'), lower.strip_suffix('m')) {
        (Some(digits), _) => (digits, 1 << 10),
        (_, Some(digits)) => (digits, 1 << 20),
        _ => (&*lower, 1),
    };
    let bytes = digits.parse().ok().and_then(|n: usize| n.checked_mul(unit));
    let bytes = bytes.ok_or("expected a number of bytes, as 4096, 4k or 1m")?;
    if bytes == 0 || !(bytes as u64).is_multiple_of(SECTOR) {
        return Err(format!("{bytes} bytes are no multiple of {SECTOR}"));
    }
    if bytes > MAX_BLOCK {
        return Err(format!(
            "{bytes} bytes are more than the {MAX_BLOCK} that a request can move"
        ));
    }
    Ok(bytes)
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rw: Pattern,
    bs: usize,
    iodepth: u16,
    requests: u64,
    seconds: f64,
    iops: f64,
    mib_per_second: f64,
    latency_us_p50: f64,
    latency_us_p99: f64,
    /// Event-channel notifications that the guest sent.
    sends_per_request: f64,
    /// Messages that the guest received.
    messages_per_request: f64,
}

pub(crate) fn run(
    frontend: &mut Frontend,
    disk: &mut Disk,
    load: Load,
    interrupt: &Interrupt,
) -> anyhow::Result<Report> {
    let Load {
        rw,
        bs,
        iodepth,
        requests,
    } = load;
    let sectors = bs as u64 / SECTOR;
    let blocks = (disk.bytes() / SECTOR).checked_div(sectors).unwrap_or(0);
    if blocks == 0 {
        let bytes = disk.bytes();
        return Err(Usage::new(format!("--bs {bs}: the disk has {bytes} bytes")).into());
    }
    let depth = usize::from(iodepth);
    if disk.slots() < depth {
        let room = disk.slots();
        let why =
            format!("--iodepth {iodepth} with --bs {bs}: the shared memory has room for {room}");
        return Err(Usage::new(why).into());
    }
    if rw.writes() && disk.is_read_only() {
        bail!("the device is read-only");
    }
    let mut data = vec![0x5a; bs];
    let mut latencies = Latencies::new(disk.slots());
    let mut ended = Vec::with_capacity(depth);
    let bar = progress::bar("bench", requests * bs as u64);
    let is_shown = !bar.is_hidden();
    let before = frontend.link()?.counters();
    let start = Instant::now();
    let mut asked = 0;
    while (latencies.len() as u64) < requests {
        interrupt.check()?;
        while asked < requests && disk.in_flight() < depth {
            let slot = disk.free_slot().context("no slot is free")?;
            let sector = asked.wrapping_mul(rw.stride()) % blocks * sectors;
            let operation = if rw.writes() {
                disk.fill(frontend, slot, &data)?;
                Operation::Write { sector, len: bs }
            } else {
                Operation::Read { sector, len: bs }
            };
            disk.submit(frontend, slot, operation)?;
            latencies.begin(slot);
            asked += 1;
        }
        let mut found = Some(disk.finish(frontend)?);
        ended.clear();
        while let Some(finished) = found {
            if !rw.writes() {
                disk.take(frontend, finished.slot, &mut data)?;
            }
            ended.push(finished.slot);
            found = match disk.in_flight() {
                0 => None,
                _ => disk.finished(frontend)?,
            };
        }
        latencies.look(&ended);
        // A bar that nobody sees looks at the clock, too.
        if is_shown {
            bar.inc((ended.len() * bs) as u64);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let after = frontend.link()?.counters();
    let latencies = latencies.sorted();
    // Exact below 2^53 requests.
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    let per_request = |count: u64| count as f64 / requests as f64;
    let iops = per_request(1).recip() / seconds;
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    let mib_per_second = iops * bs as f64 / f64::from(1 << 20);
    Ok(Report {
        rw,
        bs,
        iodepth,
        requests,
        seconds,
        iops,
        mib_per_second,
        latency_us_p50: percentile(&latencies, 50),
        latency_us_p99: percentile(&latencies, 99),
        sends_per_request: per_request(after.notifications - before.notifications),
        messages_per_request: per_request(after.received - before.received),
    })
}

pub(crate) fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        return output::print_json(report);
    }
    Ok(output::print(format_args!(
        "{} requests in {:.2} s: {:.0} IOPS, {:.1} MiB/s, latency {:.1} us (median), {:.1} us (p99), {:.3} sends and {:.3} messages received per request",
        report.requests,
        report.seconds,
        report.iops,
        report.mib_per_second,
        report.latency_us_p50,
        report.latency_us_p99,
        report.sends_per_request,
        report.messages_per_request,
    ))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_read_as_fio_reads_them() {
        for (text, bytes) in [("512", 512), ("4k", 4096), ("64K", 65_536), ("1m", 1 << 20)] {
            assert_eq!(block_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "0",
            "513",
            "2m",
            "",
            "k",
            "-4k",
            "4kb",
            "99999999999999999999m",
        ] {
            assert!(block_size(text).is_err(), "{text}");
        }
    }
}
