//! What the laboratory of tests/xen measures beside whole programs: single steps of a guest on this
//! bus, and virtio-mmio before an ioreq server on the same Xen.
//!
//! Every function counts what it did; the machine's clock, which counts instructions there, says
//! what that took.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use virtio_devices::Engine;
use virtio_devices::blk::{Blk, BlkConfig};
use xen_hal::{DomainKind, Platform, PlatformSpec};
use xen_types::DomId;

use crate::blk_queue::{Operation, SECTOR, drive};
use crate::guest::Guest;
use crate::mmio::xen::{Driver, XenMmioDisk};

/// The bus that is measured, and its first device.
const HANDLE: u32 = 0;
/// A queue that is only brought up.
const DEPTH: u16 = 1;
const BYTES: u32 = 4096;
/// Longer than anything takes on an emulated machine.
const LIMIT: Duration = Duration::from_secs(60);

/// What some operations cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// What all of them took, by the machine's clock.
    pub time: Duration,
    /// What all of them asked of the other side: register accesses, or events sent.
    pub asked: u64,
}

/// Reads of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Reads {
    /// Bytes of a read.
    pub bytes: u32,
    /// Blocks from one read to the next, modulo the size of the disk.
    pub stride: u64,
    /// Reads in flight.
    pub depth: u16,
    /// Reads; a tenth more goes before, unmeasured.
    pub count: u64,
}

/// Serves the file or block device at `path` as a virtio-mmio disk to `guest`, which must be PVH,
/// until a signal ends the process.
///
/// # Errors
/// This is no dom0 of a Xen, there is no such guest, or its driver breaks the queue.
pub fn serve_mmio(guest: DomId, path: &Path) -> anyhow::Result<()> {
    let config = BlkConfig {
        path: path.to_owned(),
        read_only: true,
        serial: String::new(),
        queues: 1,
        // Linux cannot pin what is mapped from a guest without grants.
        direct: false,
    };
    let platform = Platform::open(&PlatformSpec::Xen)?;
    let engine = Engine::choose(platform.guest_kind() == DomainKind::Pv)?;
    crate::mmio::xen::serve(guest, Box::new(Blk::open(&config, &engine)?))
}

/// Brings the virtio-mmio disk of this guest up so many times, with one queue.
///
/// # Errors
/// There is none.
pub fn mmio_bring_ups(count: u64) -> anyhow::Result<Cost> {
    let mut driver = Driver::open()?;
    each(count, || {
        let before = driver.traps();
        let start = Instant::now();
        driver.probe(DEPTH, BYTES)?;
        let time = start.elapsed();
        let asked = driver.traps() - before;
        driver.reset()?;
        Ok((time, asked))
    })
}

/// Reads the virtio-mmio disk of this guest.
///
/// # Errors
/// There is none, or a read fails.
pub fn mmio_reads(reads: Reads) -> anyhow::Result<Cost> {
    let mut driver = Driver::open()?;
    let queue = driver.probe(reads.depth, reads.bytes)?;
    let sectors = u64::from(reads.bytes) / SECTOR;
    let blocks = driver.sectors()?.checked_div(sectors).unwrap_or(0);
    ensure!(blocks > 0, "the disk is smaller than one read");
    let mut disk = XenMmioDisk {
        driver: &mut driver,
        queue,
    };
    let mut number = 0_u64;
    let mut next = || {
        let sector = number.wrapping_mul(reads.stride) % blocks * sectors;
        number += 1;
        Operation::Read {
            sector,
            bytes: reads.bytes,
        }
    };
    drive(&mut disk, reads.depth, reads.count / 10, &mut next)?;
    let before = disk.driver.traps();
    let start = Instant::now();
    drive(&mut disk, reads.depth, reads.count, &mut next)?;
    let cost = Cost {
        time: start.elapsed(),
        asked: disk.driver.traps() - before,
    };
    driver.reset()?;
    Ok(cost)
}

/// Connects the bus of this guest so many times: XenStore, the ring, shared memory, the list of
/// devices.
///
/// # Errors
/// There is no bus, or no backend.
pub fn bus_connections(count: u64) -> anyhow::Result<Cost> {
    each(count, || {
        let start = Instant::now();
        let mut guest = Guest::open(&PlatformSpec::Xen, HANDLE)?;
        let time = start.elapsed();
        let asked = guest.sends()?;
        guest.frontend.leave(LIMIT)?;
        Ok((time, asked))
    })
}

/// Brings the first device of this guest's bus up so many times, with one queue.
///
/// # Errors
/// There is no bus, or no such disk.
pub fn bus_bring_ups(count: u64) -> anyhow::Result<Cost> {
    let mut guest = Guest::open(&PlatformSpec::Xen, HANDLE)?;
    let base = guest.base()?;
    each(count, || {
        let before = guest.sends()?;
        let start = Instant::now();
        guest.bring_up(base, 1, DEPTH, BYTES)?;
        let time = start.elapsed();
        let asked = guest.sends()? - before;
        guest.reset()?;
        Ok((time, asked))
    })
}

/// Asks the bus of this guest for its devices so many times: a message each way.
///
/// # Errors
/// There is no bus, or no backend.
pub fn bus_messages(count: u64) -> anyhow::Result<Cost> {
    let mut guest = Guest::open(&PlatformSpec::Xen, HANDLE)?;
    each(count, || {
        let before = guest.sends()?;
        let start = Instant::now();
        guest.frontend.devices()?;
        Ok((start.elapsed(), guest.sends()? - before))
    })
}

/// Once unmeasured, then `count` times.
fn each(
    count: u64,
    mut once: impl FnMut() -> anyhow::Result<(Duration, u64)>,
) -> anyhow::Result<Cost> {
    once().context("the first time")?;
    let mut cost = Cost {
        time: Duration::ZERO,
        asked: 0,
    };
    for _ in 0..count {
        let (time, asked) = once()?;
        cost.time += time;
        cost.asked += asked;
    }
    Ok(cost)
}
