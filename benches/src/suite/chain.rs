//! vq_chain: the device's side of a queue alone: take a chain, look its buffers up, return it.
//!
//! What the driver does between is not timed; whole batches are, scaled to what was asked for.
//! Wall-clock here; how many instructions that is, `tests/instructions` counts.

use std::fs::File;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, ensure};
use guest_memory::{Access, AddressSpace, Area, FlatSpace};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_queue::{Queue, QueueT};
use virtqueue::{DeviceQueue, DriverQueue, QueueLayout, RingFeatures, Segment};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};
use xen_bus::areas::{AreaLimits, AreaTable};
use xen_bus::messages::{AreaShare, ShareFlags};
use xen_types::{AreaId, BusAddr, GrantRef, PAGE_SIZE};

use super::Context;
use crate::random::Random;
use crate::report::Target;
use crate::rounds::{Took, Watch};

/// So many chains fit between two looks at the clock that the looks do not count.
const QUEUE_SIZE: u16 = 1024;
const FEATURES: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: true,
};
/// The area that the rings lie in; the data lies in those behind it.
const RING_AREA: u16 = 1;
/// All pages of a session's areas in the growth row.
const PAGES: usize = 16_384;

pub(super) fn run(context: &mut Context<'_>) -> anyhow::Result<()> {
    for (descriptors, areas, target) in [(1, 1, 0.10), (3, 1, 0.10), (1, 256, 0.04), (3, 256, 0.04)]
    {
        let mut ours = Ours::new(areas, 1, descriptors)?;
        let mut theirs = Theirs::new(areas, descriptors)?;
        context.time(
            format!("vq_chain {descriptors} desc, {areas} areas"),
            "virtio-queue",
            Some(Target::AtMost(target)),
            &mut |count| ours.serve(count),
            &mut |count| theirs.serve(count),
        )?;
    }
    let mut large = Ours::new(1, PAGES, 3)?;
    let mut small = Ours::new(1, 1, 3)?;
    context.time(
        format!("vq_chain 3 desc, {PAGES} pages"),
        "itself, 1 page",
        Some(Target::AtMost(1.3)),
        &mut |count| large.serve(count),
        &mut |count| small.serve(count),
    )?;
    Ok(())
}

/// A driver, and the chains that it offers again and again.
struct Driver {
    queue: DriverQueue,
    chains: Vec<[Segment; 3]>,
    descriptors: usize,
}

impl Driver {
    fn new(
        rings: &File,
        areas: u16,
        pages: usize,
        descriptors: usize,
    ) -> anyhow::Result<(Self, QueueLayout)> {
        let layout = QueueLayout::contiguous(address(RING_AREA, 0)?, QUEUE_SIZE);
        let area = Area::shared_file(rings.as_fd(), 0, ring_bytes(), Access::Write)?;
        let space = FlatSpace::new(address(RING_AREA, 0)?, &area);
        let queue = DriverQueue::new(&space, layout, FEATURES)?;
        let mut random = Random::new();
        let chains = (0..usize::from(QUEUE_SIZE) / descriptors)
            .map(|_| {
                let area = RING_AREA + 1 + u16::try_from(random.below(areas.into()))?;
                let page = random.below(pages as u64) * PAGE_SIZE as u64;
                let segment = |offset, len| -> anyhow::Result<Segment> {
                    let addr = address(area, page + offset)?;
                    Ok(Segment { addr, len })
                };
                Ok([segment(0, 16)?, segment(1024, 2048)?, segment(16, 1)?])
            })
            .collect::<anyhow::Result<_>>()?;
        let driver = Self {
            queue,
            chains,
            descriptors,
        };
        Ok((driver, layout))
    }

    fn offer(&mut self) -> anyhow::Result<u64> {
        for [header, data, status] in &self.chains {
            match self.descriptors {
                1 => self.queue.add(&[], &[*data])?,
                _ => self.queue.add(&[*header], &[*data, *status])?,
            };
        }
        self.queue.publish();
        Ok(self.chains.len() as u64)
    }

    fn take_back(&mut self, expected: u64) -> anyhow::Result<()> {
        let mut found = 0;
        while self.queue.pop_used()?.is_some() {
            found += 1;
        }
        self.queue.rearm();
        ensure!(found == expected, "{found} chains came back of {expected}");
        Ok(())
    }
}

/// The product's device side over its table of areas.
struct Ours {
    driver: Driver,
    device: DeviceQueue,
    table: AreaTable,
}

impl Ours {
    fn new(areas: u16, pages: usize, descriptors: usize) -> anyhow::Result<Self> {
        let rings = rings()?;
        let (driver, layout) = Driver::new(&rings, areas, pages, descriptors)?;
        let mut table = AreaTable::new(AreaLimits {
            max_areas: u32::from(areas) + 1,
            max_area_pages: u32::try_from(PAGES + ring_bytes())?,
        });
        let ring_area = Area::shared_file(rings.as_fd(), 0, ring_bytes(), Access::Write)?;
        share(&mut table, RING_AREA, ring_area)?;
        for area in 0..areas {
            let memory = Area::anonymous(pages * PAGE_SIZE)?;
            share(&mut table, RING_AREA + 1 + area, memory)?;
        }
        let device = DeviceQueue::new(&table, layout, FEATURES)?;
        Ok(Self {
            driver,
            device,
            table,
        })
    }

    fn serve(&mut self, count: u64) -> anyhow::Result<Took> {
        let (mut served, mut took) = (0, Took::default());
        while served < count {
            let offered = self.driver.offer()?;
            let watch = Watch::start();
            let (device, table) = (&mut self.device, &self.table);
            let mut unknown = 0;
            while let Some(chain) = device.pop_each(table, |access, segment| {
                match table.translate(segment.addr, segment.len, access) {
                    Ok(range) => _ = std::hint::black_box(range),
                    Err(_) => unknown += 1,
                }
            })? {
                device.push_used(chain.head(), 1)?;
            }
            ensure!(unknown == 0, "{unknown} segments are not shared");
            std::hint::black_box(self.device.publish());
            self.device.rearm();
            took = took + watch.took();
            self.driver.take_back(offered)?;
            served += offered;
        }
        Ok(took.scaled(count as f64 / served as f64))
    }
}

/// rust-vmm's device side over as many regions.
struct Theirs {
    driver: Driver,
    device: Queue,
    memory: GuestMemoryMmap,
}

impl Theirs {
    fn new(areas: u16, descriptors: usize) -> anyhow::Result<Self> {
        let rings = rings()?;
        let (driver, layout) = Driver::new(&rings, areas, 1, descriptors)?;
        let file = FileOffset::new(rings, 0);
        let ring_region = (GuestAddress(layout.desc), ring_bytes(), Some(file));
        let data = (0..areas)
            .map(|area| {
                let at = address(RING_AREA + 1 + area, 0)?;
                Ok((GuestAddress(at), PAGE_SIZE, None))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let regions = std::iter::once(ring_region).chain(data);
        let memory = GuestMemoryMmap::from_ranges_with_files(regions)?;
        let mut device = Queue::new(layout.size)?;
        device.try_set_desc_table_address(GuestAddress(layout.desc))?;
        device.try_set_avail_ring_address(GuestAddress(layout.avail))?;
        device.try_set_used_ring_address(GuestAddress(layout.used))?;
        device.set_event_idx(FEATURES.event_idx);
        device.set_ready(true);
        ensure!(device.is_valid(&memory), "virtio-queue takes no such ring");
        Ok(Self {
            driver,
            device,
            memory,
        })
    }

    fn serve(&mut self, count: u64) -> anyhow::Result<Took> {
        let (mut served, mut took) = (0, Took::default());
        while served < count {
            let offered = self.driver.offer()?;
            let watch = Watch::start();
            while let Some(chain) = self.device.pop_descriptor_chain(&self.memory) {
                let head = chain.head_index();
                for descriptor in chain {
                    let len = usize::try_from(descriptor.len())?;
                    let slice = self.memory.get_slice(descriptor.addr(), len)?;
                    std::hint::black_box(slice.ptr_guard_mut().as_ptr());
                }
                self.device.add_used(&self.memory, head, 1)?;
            }
            std::hint::black_box(self.device.needs_notification(&self.memory)?);
            self.device.enable_notification(&self.memory)?;
            took = took + watch.took();
            self.driver.take_back(offered)?;
            served += offered;
        }
        Ok(took.scaled(count as f64 / served as f64))
    }
}

fn share(table: &mut AreaTable, id: u16, area: Area) -> anyhow::Result<()> {
    let job = table.begin_share(AreaShare {
        area_id: id,
        flags: ShareFlags::DEVICE_WRITE,
        page_count: u32::try_from(area.len() / PAGE_SIZE)?,
        first: GrantRef(1),
    })?;
    table.finish_share(job, area);
    Ok(())
}

fn address(area: u16, offset: u64) -> anyhow::Result<u64> {
    let id = AreaId::new(area).context("no such area id")?;
    Ok(BusAddr::in_area(id, offset).context("no such offset")?.0)
}

fn rings() -> anyhow::Result<File> {
    let file = File::from(memfd_create("rings", MemfdFlags::CLOEXEC)?);
    file.set_len(ring_bytes() as u64)?;
    Ok(file)
}

fn ring_bytes() -> usize {
    let bytes = QueueLayout::contiguous_bytes(QUEUE_SIZE);
    usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .next_multiple_of(PAGE_SIZE)
}
