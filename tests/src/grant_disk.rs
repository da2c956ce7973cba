//! A block device that a raw guest drives at grant addresses alone: the ring and every buffer lie
//! in granted pages that are no area (binding section 5).

use guest_memory::{Access, Area, FlatSpace};
use virtio_msg::{Features, Status};
use virtqueue::{DriverQueue, QueueLayout, RingFeatures, Segment, Used};
use xen_hal::GrantedPages;
use xen_types::{BusAddr, GrantRef, PAGE_SIZE};

use crate::{Pool, RawDisk, RawGuest, Rig};

/// Bytes of a request's header; its status byte stands behind it.
const HEADER: u32 = 16;
/// What stands in the status byte before the device writes it.
const NO_STATUS: u8 = 0xff;

/// A block device with one queue.
#[derive(Debug)]
pub struct GrantDisk {
    dev_num: u16,
    queue: DriverQueue,
    layout: QueueLayout,
    ring: GrantedPages,
}

/// A request, in pages of its own: its header and status byte, and its data.
#[derive(Debug)]
pub struct GrantRequest {
    /// Header, then status byte.
    pub control: GrantedPages,
    /// Data, page by page.
    pub data: GrantedPages,
    device_writes: bool,
}

impl GrantDisk {
    /// Descriptors of the queue: with all its parts it fits into a page.
    pub const SIZE: u16 = 64;

    /// Brings the device up, with these features and the required ones.
    #[track_caller]
    pub fn bring_up(rig: &mut Rig, guest: &mut RawGuest, dev_num: u16, features: Features) -> Self {
        let ring = guest.grant(1, Access::Write);
        let layout = Self::layout(ring.refs[0]);
        let rings = RingFeatures {
            indirect: features.contains(Features::INDIRECT_DESC),
            event_idx: features.contains(Features::EVENT_IDX),
        };
        let space = FlatSpace::new(layout.desc, &ring.area);
        let queue = DriverQueue::new(&space, layout, rings).expect("queue");
        RawDisk::negotiate_with(rig, guest, dev_num, features);
        RawDisk::set_queue(rig, guest, dev_num, layout);
        assert!(guest.is_enabled(rig, dev_num, 0));
        let all = RawDisk::negotiated() | Status::DRIVER_OK;
        assert_eq!(guest.set_status(rig, dev_num, all), all);
        Self {
            dev_num,
            queue,
            layout,
            ring,
        }
    }

    /// A ring in one granted page.
    #[must_use]
    pub fn layout(page: GrantRef) -> QueueLayout {
        QueueLayout::contiguous(address(page, 0), Self::SIZE)
    }

    /// Where the parts of the ring are.
    #[must_use]
    pub fn ring_layout(&self) -> QueueLayout {
        self.layout
    }

    /// Puts indirect tables of up to `entries` descriptors into memory of an area.
    #[must_use]
    pub fn with_tables_in(self, pool: &mut Pool, entries: u16) -> Self {
        let bytes = DriverQueue::indirect_table_bytes(Self::SIZE, entries);
        let block = pool.take(bytes as usize).expect("room for tables");
        let addr = pool.address(block, 0);
        let queue = self.queue.with_indirect_tables(pool, addr, entries);
        Self {
            queue: queue.expect("tables"),
            ..self
        }
    }

    /// Puts indirect tables of four descriptors into `area`, which the bus knows at `addr`.
    #[must_use]
    pub fn with_tables_at(self, addr: u64, area: &Area) -> Self {
        let space = FlatSpace::new(addr, area);
        let queue = self.queue.with_indirect_tables(&space, addr, 4);
        Self {
            queue: queue.expect("tables"),
            ..self
        }
    }

    /// Makes a request available; the device does not know yet.
    pub fn add(&mut self, request: &GrantRequest) -> u16 {
        let (readable, writable) = request.segments();
        self.add_raw(&readable, &writable)
    }

    /// As [`GrantDisk::add`], of any segments.
    pub fn add_raw(&mut self, readable: &[Segment], writable: &[Segment]) -> u16 {
        self.queue
            .add(readable, writable)
            .expect("room in the queue")
    }

    /// Tells the device of what was added.
    pub fn kick(&mut self, guest: &mut RawGuest) {
        self.queue.publish();
        RawDisk::kick_queue(guest, self.dev_num);
    }

    /// The next request that the device has returned.
    pub fn used(&mut self) -> Option<Used> {
        self.queue.pop_used().expect("a sound ring")
    }

    /// Waits for the next request that the device returns.
    #[track_caller]
    pub fn finish(&mut self, rig: &mut Rig) -> Used {
        rig.until("a used buffer", |_| self.used())
    }

    /// Runs one request alone; the length of its used element.
    #[track_caller]
    pub fn run(&mut self, rig: &mut Rig, guest: &mut RawGuest, request: &GrantRequest) -> u32 {
        let head = self.add(request);
        self.kick(guest);
        let used = self.finish(rig);
        assert_eq!(used.head, head);
        used.len
    }

    /// The ring's page, for a guest that takes it back.
    #[must_use]
    pub fn into_ring(self) -> GrantedPages {
        self.ring
    }
}

impl GrantRequest {
    /// A read of `pages` pages from `sector` on.
    #[must_use]
    pub fn read(guest: &RawGuest, sector: u64, pages: usize) -> Self {
        Self::new(guest, 0, sector, pages, true)
    }

    /// A write of `pages` pages from `sector` on.
    #[must_use]
    pub fn write(guest: &RawGuest, sector: u64, pages: usize) -> Self {
        Self::new(guest, 1, sector, pages, false)
    }

    /// Asks for the serial, which takes no I/O.
    #[must_use]
    pub fn get_id(guest: &RawGuest) -> Self {
        Self::new(guest, 8, 0, 1, true)
    }

    /// With data and control pages that the device may only read.
    #[must_use]
    pub fn with_data(self, data: GrantedPages) -> Self {
        Self { data, ..self }
    }

    fn new(guest: &RawGuest, kind: u32, sector: u64, pages: usize, device_writes: bool) -> Self {
        let control = guest.grant(1, Access::Write);
        let access = if device_writes {
            Access::Write
        } else {
            Access::Read
        };
        let mut header = [0; HEADER as usize + 1];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        header[16] = NO_STATUS;
        put(&control.area, 0, &header);
        Self {
            control,
            data: guest.grant(pages, access),
            device_writes,
        }
    }

    /// What the device reads and what it writes: a segment for each page.
    #[must_use]
    pub fn segments(&self) -> (Vec<Segment>, Vec<Segment>) {
        let control = self.control.refs[0];
        let segment = |gref, offset, len| Segment {
            addr: address(gref, offset),
            len,
        };
        let page = u32::try_from(PAGE_SIZE).expect("page size");
        let data = self.data.refs.iter().map(|gref| segment(*gref, 0, page));
        let mut readable = vec![segment(control, 0, HEADER)];
        let mut writable = Vec::new();
        if self.device_writes {
            writable.extend(data);
        } else {
            readable.extend(data);
        }
        writable.push(segment(control, 16, 1));
        (readable, writable)
    }

    /// The status byte.
    #[must_use]
    pub fn status(&self) -> u8 {
        get(&self.control.area, HEADER.into(), 1)[0]
    }

    /// All data.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        get(&self.data.area, 0, self.data.area.len())
    }

    /// Overwrites the data from the front.
    pub fn fill(&self, bytes: &[u8]) {
        put(&self.data.area, 0, bytes);
    }
}

/// A byte of a granted page, as the bus names it.
#[must_use]
pub fn address(page: GrantRef, offset: u16) -> u64 {
    BusAddr::in_grant(page, offset).expect("inside the page").0
}

fn put(area: &Area, offset: u64, bytes: &[u8]) {
    let range = area.range(offset, bytes.len() as u64, Access::Write);
    range.expect("range").write(0, bytes).expect("all of it");
}

fn get(area: &Area, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let range = area.range(offset, len as u64, Access::Read);
    range
        .expect("range")
        .read(0, &mut bytes)
        .expect("all of it");
    bytes
}
