//! Moves a whole disk over the bus, several requests in flight.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use frontend_shim::{Disk, Frontend, MAX_REQUEST, Operation, SECTOR};

use crate::latency::Latencies;

/// Bytes of a sector.
const SECTOR_BYTES: usize = 512;

/// What a transfer moved, and how fast.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Figures {
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Requests made.
    pub(crate) requests: u64,
    /// Time that it took, in seconds.
    pub(crate) seconds: f64,
}

impl Figures {
    /// Mebibytes per second.
    pub(crate) fn mib_per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            // Display only: 2^52 bytes are far off.
            #[expect(clippy::cast_precision_loss, reason = "for display")]
            let mib = self.bytes as f64 / f64::from(1 << 20);
            mib / self.seconds
        } else {
            0.0
        }
    }
}

/// Hands `bytes` bytes from the start of the disk to `sink`, in order; an error of it ends all.
pub(crate) fn read_all(
    frontend: &mut Frontend,
    disk: &mut Disk,
    bytes: u64,
    mut sink: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Figures> {
    let start = Instant::now();
    let mut window = Window::new(bytes, disk.slots());
    let mut buffer = vec![0; MAX_REQUEST];
    let mut count = 0;
    loop {
        while let Some(Read { slot, offset, len }) = window.next_read() {
            let sector = offset / SECTOR;
            let len = len.next_multiple_of(SECTOR_BYTES);
            disk.submit(frontend, slot, Operation::Read { sector, len })?;
            count += 1;
        }
        if window.is_empty() {
            return Ok(figures(bytes, count, start));
        }
        window.finished(disk.finish(frontend)?.slot);
        while let Some(Read { slot, len, .. }) = window.next_data() {
            let data = &mut buffer[..len];
            disk.take(frontend, slot, data)?;
            sink(data)?;
        }
    }
}

/// Writes all that `source` gives, `bytes` bytes, to the start of the disk, and flushes; an error of
/// `progress` ends it.
pub(crate) fn write_all(
    frontend: &mut Frontend,
    disk: &mut Disk,
    bytes: u64,
    mut source: impl io::Read,
    mut progress: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<Figures> {
    let start = Instant::now();
    let mut buffer = vec![0; MAX_REQUEST];
    let mut count = 0;
    for (offset, len) in Chunks::new(bytes) {
        if disk.free_slot().is_none() {
            disk.finish(frontend)?;
        }
        let Some(slot) = disk.free_slot() else {
            bail!("no slot is free");
        };
        let padded = len.next_multiple_of(SECTOR_BYTES);
        source.read_exact(&mut buffer[..len]).context("source")?;
        buffer[len..padded].fill(0);
        disk.fill(frontend, slot, &buffer[..padded])?;
        let sector = offset / SECTOR;
        disk.submit(
            frontend,
            slot,
            Operation::Write {
                sector,
                len: padded,
            },
        )?;
        progress(offset + len as u64)?;
        count += 1;
    }
    while disk.in_flight() > 0 {
        disk.finish(frontend)?;
    }
    if disk.can_flush() {
        disk.run(frontend, Operation::Flush)?;
    }
    Ok(figures(bytes, count, start))
}

/// Compares `bytes` bytes of the disk with `expected`; an error names the first that differs.
pub(crate) fn compare(
    frontend: &mut Frontend,
    disk: &mut Disk,
    bytes: u64,
    mut expected: impl io::Read,
    mut progress: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<Figures> {
    let mut wanted = vec![0; MAX_REQUEST];
    let mut at = 0;
    let mut differs = None;
    let figures = read_all(frontend, disk, bytes, |data| {
        let wanted = &mut wanted[..data.len()];
        expected.read_exact(wanted)?;
        if differs.is_none()
            && let Some(byte) = data.iter().zip(wanted.iter()).position(|(a, b)| a != b)
        {
            differs = Some(at + byte as u64);
        }
        at += data.len() as u64;
        progress(at)
    })?;
    match differs {
        None => Ok(figures),
        Some(byte) => bail!("byte {byte} (sector {}) differs", byte / SECTOR),
    }
}

/// Reads single blocks one after the other: latencies of `count` requests, in ascending order.
pub(crate) fn latencies(
    frontend: &mut Frontend,
    disk: &mut Disk,
    count: usize,
    block: usize,
) -> anyhow::Result<Vec<Duration>> {
    let block = block.min(usize::try_from(disk.bytes()).unwrap_or(usize::MAX));
    let blocks = (disk.bytes() / block as u64).max(1);
    let mut latencies = Latencies::new(1);
    for step in 0..count as u64 {
        // A stride that visits blocks all over the disk.
        let at = step.wrapping_mul(7919) % blocks;
        let sector = at * (block as u64 / SECTOR);
        disk.run(frontend, Operation::Read { sector, len: block })?;
        latencies.look(&[0]);
        latencies.begin(0);
    }
    Ok(latencies.sorted())
}

/// A read of a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Read {
    slot: usize,
    offset: u64,
    len: usize,
}

/// The reads whose data has not been handed on: in flight, or done before an earlier one. Data goes
/// out in the order of the disk, whatever the order of the answers.
#[derive(Debug)]
struct Window {
    chunks: Chunks,
    /// How many reads there may be.
    slots: usize,
    /// In the order of the disk, each with whether its data stands in its slot.
    reads: VecDeque<(Read, bool)>,
}

impl Window {
    fn new(bytes: u64, slots: usize) -> Self {
        Self {
            chunks: Chunks::new(bytes),
            slots,
            reads: VecDeque::new(),
        }
    }

    /// The next read to submit, if a slot is free for it.
    fn next_read(&mut self) -> Option<Read> {
        let taken = |slot| self.reads.iter().any(|(read, _)| read.slot == slot);
        let slot = (0..self.slots).find(|slot| !taken(*slot))?;
        let (offset, len) = self.chunks.next()?;
        let read = Read { slot, offset, len };
        self.reads.push_back((read, false));
        Some(read)
    }

    /// The data of a slot is there.
    fn finished(&mut self, slot: usize) {
        for (read, done) in &mut self.reads {
            *done |= read.slot == slot;
        }
    }

    /// The next read whose data can be handed on; its slot is free afterwards.
    fn next_data(&mut self) -> Option<Read> {
        self.reads
            .pop_front_if(|(_, done)| *done)
            .map(|(read, _)| read)
    }

    fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }
}

fn figures(bytes: u64, requests: u64, start: Instant) -> Figures {
    Figures {
        bytes,
        requests,
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// Cuts a length into requests: offset and bytes of each.
#[derive(Debug)]
struct Chunks {
    at: u64,
    end: u64,
}

impl Chunks {
    fn new(bytes: u64) -> Self {
        Self { at: 0, end: bytes }
    }
}

impl Iterator for Chunks {
    type Item = (u64, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.at;
        let left = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
        let len = left.min(MAX_REQUEST);
        self.at += len as u64;
        (len > 0).then_some((offset, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: usize = 8;

    /// Reads all of `bytes` from a device that answers what `pick` chooses of the reads in flight;
    /// gives what came out.
    fn read_out(bytes: u64, mut pick: impl FnMut(usize) -> usize) -> Vec<(u64, usize)> {
        let mut window = Window::new(bytes, SLOTS);
        let mut in_flight = Vec::new();
        let mut out = Vec::new();
        loop {
            in_flight.extend(std::iter::from_fn(|| window.next_read()));
            if window.is_empty() {
                return out;
            }
            let answered: Read = in_flight.remove(pick(in_flight.len()));
            window.finished(answered.slot);
            while let Some(read) = window.next_data() {
                out.push((read.offset, read.len));
            }
        }
    }

    #[test]
    fn all_data_comes_out_in_order_whatever_the_order_of_the_answers() {
        let request = MAX_REQUEST as u64;
        for bytes in [0, 1, request, request + 512, 33 * request + 7] {
            let expected: Vec<_> = Chunks::new(bytes).collect();
            assert_eq!(read_out(bytes, |_| 0), expected, "oldest first");
            // All in flight complete before the first of them can be handed on.
            assert_eq!(read_out(bytes, |len| len - 1), expected, "newest first");
            let mut seed: usize = 1;
            let any = |len| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % len
            };
            assert_eq!(read_out(bytes, any), expected, "any");
        }
    }

    #[test]
    fn a_slot_is_not_used_again_before_its_data_was_handed_on() {
        let mut window = Window::new(2 * (SLOTS * MAX_REQUEST) as u64, SLOTS);
        let first: Vec<Read> = std::iter::from_fn(|| window.next_read()).collect();
        assert_eq!(first.len(), SLOTS);
        for read in &first[1..] {
            window.finished(read.slot);
        }
        assert_eq!(window.next_data(), None);
        assert_eq!(window.next_read(), None);
        window.finished(first[0].slot);
        assert_eq!(window.next_data(), Some(first[0]));
        assert_eq!(window.next_read().unwrap().slot, first[0].slot);
    }
}
