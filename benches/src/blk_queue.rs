//! A virtio-blk driver's queue, and how it is driven: the same code before every transport, so
//! that only the transport differs (virtio 1.4 section 5.2).
//!
//! The driver works as Linux's does: it looks at the used ring when it was interrupted, and only
//! then; it takes what is there, asks for the next interrupt, and makes new requests available in
//! one batch with one notification.

use anyhow::{Context as _, bail};
use guest_memory::{Access, AddressSpace};
use virtio_msg::QueueSetup;
use virtqueue::{DriverQueue, QueueLayout, RingFeatures, Segment};
use xen_types::PAGE_SIZE;

use crate::rounds::{Took, Watch};

/// Descriptors of each queue: one for each request in flight, as requests have tables of their own.
pub(crate) const QUEUE_SIZE: u16 = 128;
/// Header, data, status; a power of two.
const TABLE_ENTRIES: u16 = 4;
const HEADER: u32 = 16;
/// A header and behind it a status byte, apart from the next request's.
const CONTROL: u64 = 64;
/// What stands in the status byte before the device writes it.
const NO_STATUS: u8 = 0xff;
/// Bytes of the answer to GET_ID.
const ID_BYTES: u32 = 20;
pub(crate) const SECTOR: u64 = 512;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// So many bytes from a sector on.
    Read {
        sector: u64,
        bytes: u32,
    },
    Write {
        sector: u64,
        bytes: u32,
    },
    Flush,
    /// The cheapest request that there is: no file is touched. The benchmarks' null I/O.
    GetId,
}

/// A device with one queue, whatever is between.
pub(crate) trait Disk {
    /// The queue, and the memory that it lies in.
    fn parts(&mut self) -> anyhow::Result<(&mut BlkQueue, &dyn AddressSpace)>;
    /// Tells the device that there are requests.
    fn kick(&mut self) -> anyhow::Result<()>;
    /// Sleeps until the device says that it used some.
    fn wait(&mut self) -> anyhow::Result<()>;
}

/// Keeps `depth` requests in flight until `requests` are done; how long that took.
pub(crate) fn drive(
    disk: &mut (impl Disk + ?Sized),
    depth: u16,
    requests: u64,
    next: &mut dyn FnMut() -> Operation,
) -> anyhow::Result<Took> {
    let watch = Watch::start();
    let (mut submitted, mut done) = (0, 0);
    while done < requests {
        let (queue, space) = disk.parts()?;
        while submitted < requests && queue.in_flight() < depth {
            queue.submit(space, next())?;
            submitted += 1;
        }
        if queue.queue.publish() {
            disk.kick()?;
        }
        disk.wait()?;
        let (queue, space) = disk.parts()?;
        loop {
            while queue.reap(space)? {
                done += 1;
            }
            if !queue.queue.rearm() {
                break;
            }
        }
    }
    Ok(watch.took())
}

/// One queue and the memory of its requests.
#[derive(Debug)]
pub(crate) struct BlkQueue {
    queue: DriverQueue,
    layout: QueueLayout,
    /// First byte of the controls.
    controls: u64,
    /// First byte of the data, page by page.
    data: u64,
    request_bytes: u32,
    free: Vec<u16>,
    /// The slot of each head in flight.
    slots: Vec<u16>,
}

impl BlkQueue {
    /// Bytes that a queue with requests of `request_bytes` takes.
    pub(crate) fn bytes(depth: u16, request_bytes: u32) -> usize {
        let [.., end] = places(0, depth, request_bytes);
        usize::try_from(end).unwrap_or(usize::MAX)
    }

    /// Puts a queue at `base`, the beginning of a page.
    pub(crate) fn new(
        space: &dyn AddressSpace,
        base: u64,
        depth: u16,
        request_bytes: u32,
        features: RingFeatures,
    ) -> anyhow::Result<Self> {
        let [tables, controls, data, _] = places(base, depth, request_bytes);
        let layout = QueueLayout::contiguous(base, QUEUE_SIZE);
        let queue = DriverQueue::new(space, layout, features)?.with_indirect_tables(
            space,
            tables,
            TABLE_ENTRIES,
        )?;
        Ok(Self {
            queue,
            layout,
            controls,
            data,
            request_bytes,
            free: (0..depth).rev().collect(),
            slots: vec![0; QUEUE_SIZE.into()],
        })
    }

    /// Where its rings are.
    pub(crate) fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// The same, as the bus says it.
    pub(crate) fn setup(&self) -> QueueSetup {
        QueueSetup {
            size: self.layout.size,
            desc: self.layout.desc,
            driver: self.layout.avail,
            device: self.layout.used,
        }
    }

    /// Requests offered and not yet reaped.
    pub(crate) fn in_flight(&self) -> u16 {
        self.queue.offered()
    }

    fn submit(&mut self, space: &dyn AddressSpace, operation: Operation) -> anyhow::Result<()> {
        let slot = self.free.pop().context("every slot is in flight")?;
        let control = self.controls + u64::from(slot) * CONTROL;
        let (kind, sector, len) = match operation {
            Operation::Read { sector, bytes } => (0_u32, sector, bytes),
            Operation::Write { sector, bytes } => (1, sector, bytes),
            Operation::Flush => (4, 0, 0),
            Operation::GetId => (8, 0, ID_BYTES),
        };
        let mut header = [NO_STATUS; HEADER as usize + 1];
        header[..8].copy_from_slice(&u64::from(kind).to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        space
            .translate(control, HEADER + 1, Access::Write)?
            .write(0, &header)?;
        let segment = |addr, len| Segment { addr, len };
        let header = segment(control, HEADER);
        let status = segment(control + u64::from(HEADER), 1);
        let data = segment(
            self.data + u64::from(slot) * stride(self.request_bytes),
            len,
        );
        let head = match operation {
            Operation::Flush => self.queue.add(&[header], &[status])?,
            Operation::Write { .. } => self.queue.add(&[header, data], &[status])?,
            Operation::Read { .. } | Operation::GetId => {
                self.queue.add(&[header], &[data, status])?
            }
        };
        self.slots[usize::from(head)] = slot;
        Ok(())
    }

    /// Takes one request back, if there is one.
    fn reap(&mut self, space: &dyn AddressSpace) -> anyhow::Result<bool> {
        let Some(used) = self.queue.pop_used()? else {
            return Ok(false);
        };
        let slot = self.slots[usize::from(used.head)];
        let status = self.controls + u64::from(slot) * CONTROL + u64::from(HEADER);
        let status = space.translate(status, 1, Access::Read)?.read_array(0)?;
        if status != [0] {
            bail!("a request ended with status {status:?}");
        }
        self.free.push(slot);
        Ok(true)
    }
}

/// Where tables, controls and data begin, and the end of all.
fn places(base: u64, depth: u16, request_bytes: u32) -> [u64; 4] {
    let rings = u64::from(QueueLayout::contiguous_bytes(QUEUE_SIZE));
    let tables = (base + rings).next_multiple_of(CONTROL);
    let table_bytes = DriverQueue::indirect_table_bytes(QUEUE_SIZE, TABLE_ENTRIES);
    let controls = tables + u64::from(table_bytes);
    let data = (controls + u64::from(depth) * CONTROL).next_multiple_of(PAGE_SIZE as u64);
    let end = data + u64::from(depth) * stride(request_bytes);
    [tables, controls, data, end]
}

fn stride(request_bytes: u32) -> u64 {
    u64::from(request_bytes).next_multiple_of(PAGE_SIZE as u64)
}
