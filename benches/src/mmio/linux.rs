//! The register accesses of Linux 6.12 for a virtio-blk device: bring-up, request and interrupt,
//! in the order of `virtio_mmio`, `virtio` and `virtio_blk` (facts, traced under QEMU).

use anyhow::ensure;
use guest_memory::AddressSpace;
use virtqueue::RingFeatures;
use xen_types::PAGE_SIZE;

use super::registers::*;
use super::vcpu::Cpu;
use crate::blk_queue::BlkQueue;

/// Every bit of the low word that virtio_blk knows and of the rings; VERSION_1 and ACCESS_PLATFORM.
const FEATURES: [u32; 2] = [1 << 29 | 1 << 28 | 0x7fff, 0b11];
const F_MQ: u32 = 1 << 12;
const EVENT_IDX: u32 = 1 << 29;
const INDIRECT_DESC: u32 = 1 << 28;

/// What virtio_blk reads of configuration space when it has its queues: offset and bytes.
const LIMITS: [(u64, u32); 11] = [
    (12, 4), // seg_max
    (20, 4), // blk_size
    (24, 1), // physical_block_exp
    (25, 1), // alignment_offset
    (26, 2), // min_io_size
    (28, 4), // opt_io_size
    (44, 4), // discard_sector_alignment
    (36, 4), // max_discard_sectors
    (40, 4), // max_discard_seg
    (48, 4), // max_write_zeroes_sectors
    (32, 1), // writeback
];
const NUM_QUEUES: (u64, u32) = (34, 2);

/// Brings the device up with its queues laid out from `base` on.
pub(super) fn probe(
    cpu: &mut dyn Cpu,
    space: &dyn AddressSpace,
    base: u64,
    queues: u16,
    depth: u16,
    request_bytes: u32,
) -> anyhow::Result<Vec<BlkQueue>> {
    ensure!(cpu.read(MAGIC, 4)? == MAGIC_VALUE, "no virtio-mmio device");
    ensure!(cpu.read(VERSION, 4)? == 2, "not version 2");
    cpu.read(DEVICE_ID, 4)?;
    cpu.read(VENDOR_ID, 4)?;

    cpu.write(STATUS, 0)?;
    add_status(cpu, ACKNOWLEDGE)?;
    add_status(cpu, DRIVER)?;
    let accepted = negotiate(cpu)?;
    add_status(cpu, FEATURES_OK)?;
    let status = cpu.read(STATUS, 4)?;
    ensure!(status & FEATURES_OK != 0, "the features were refused");

    let has_many = accepted[0] & F_MQ != 0;
    let queues = match has_many {
        true => queues.min(u16::try_from(config(cpu, NUM_QUEUES)?)?),
        false => 1,
    };
    let ring = RingFeatures {
        indirect: accepted[0] & INDIRECT_DESC != 0,
        event_idx: accepted[0] & EVENT_IDX != 0,
    };
    let stride = BlkQueue::bytes(depth, request_bytes).next_multiple_of(PAGE_SIZE) as u64;
    let mut ready = Vec::new();
    for index in 0..queues {
        let at = base + u64::from(index) * stride;
        let queue = BlkQueue::new(space, at, depth, request_bytes, ring)?;
        set_up_queue(cpu, index, &queue)?;
        ready.push(queue);
    }

    for field in LIMITS {
        config(cpu, field)?;
    }
    read_capacity(cpu)?;
    add_status(cpu, DRIVER_OK)?;
    ensure!(cpu.read(STATUS, 4)? & DRIVER_OK != 0, "it does not run");
    Ok(ready)
}

/// The interrupt handler, up to the queue's own part of it.
pub(super) fn interrupt(cpu: &mut dyn Cpu) -> anyhow::Result<()> {
    let status = cpu.read(INTERRUPT_STATUS, 4)?;
    cpu.write(INTERRUPT_ACK, status)
}

fn add_status(cpu: &mut dyn Cpu, bit: u32) -> anyhow::Result<()> {
    let status = cpu.read(STATUS, 4)?;
    cpu.write(STATUS, status | bit)
}

/// What was accepted.
fn negotiate(cpu: &mut dyn Cpu) -> anyhow::Result<[u32; 2]> {
    let mut accepted = FEATURES;
    for selector in [1, 0] {
        cpu.write(DEVICE_FEATURES_SEL, selector)?;
        accepted[selector as usize] &= cpu.read(DEVICE_FEATURES, 4)?;
    }
    for selector in [1, 0] {
        cpu.write(DRIVER_FEATURES_SEL, selector)?;
        cpu.write(DRIVER_FEATURES, accepted[selector as usize])?;
    }
    Ok(accepted)
}

fn set_up_queue(cpu: &mut dyn Cpu, index: u16, queue: &BlkQueue) -> anyhow::Result<()> {
    cpu.write(QUEUE_SEL, index.into())?;
    ensure!(cpu.read(QUEUE_READY, 4)? == 0, "the queue is in use");
    let layout = queue.layout();
    let max = cpu.read(QUEUE_NUM_MAX, 4)?;
    ensure!(u32::from(layout.size) <= max, "the queue is too small");
    cpu.write(QUEUE_NUM, layout.size.into())?;
    for (low, high, address) in [
        (QUEUE_DESC_LOW, QUEUE_DESC_HIGH, layout.desc),
        (QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH, layout.avail),
        (QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH, layout.used),
    ] {
        cpu.write(low, u32::try_from(address & u64::from(u32::MAX))?)?;
        cpu.write(high, u32::try_from(address >> 32)?)?;
    }
    cpu.write(QUEUE_READY, 1)
}

fn config(cpu: &mut dyn Cpu, (offset, size): (u64, u32)) -> anyhow::Result<u32> {
    cpu.read(CONFIG + offset, size)
}

/// A field of 8 bytes takes two reads, between two looks at the generation.
fn read_capacity(cpu: &mut dyn Cpu) -> anyhow::Result<()> {
    loop {
        let before = cpu.read(CONFIG_GENERATION, 4)?;
        config(cpu, (0, 4))?;
        config(cpu, (4, 4))?;
        if cpu.read(CONFIG_GENERATION, 4)? == before {
            return Ok(());
        }
    }
}
