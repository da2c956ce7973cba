//! What `tests/limits.rs` counts: the device's side of chains, of ring messages and of block reads, and
//! the driver's side of reads, so many rounds of a batch. Only what is below `measured` counts; the
//! peer's side is outside, and so is the kernel.
//!
//!     instruction-probe ROUNDS chain|collected DESCRIPTORS direct|indirect AREAS PAGES
//!     instruction-probe ROUNDS message BYTES
//!     instruction-probe ROUNDS read
//!     instruction-probe ROUNDS drive DEPTH

#![forbid(unsafe_code)]

mod drive;

use std::hint::black_box;

use guest_memory::{Access, AddressSpace, Area};
use instructions::BATCH;
use virtio_devices::blk::{Blk, BlkConfig};
use virtio_devices::{DeviceModel, Engine};
use virtqueue::{Chain, DeviceQueue, DriverQueue, QueueLayout, RingFeatures, Segment};
use xen_bus::areas::{AreaLimits, AreaTable};
use xen_bus::layout::RingLayout;
use xen_bus::messages::{AreaShare, ShareFlags};
use xen_bus::ring::MessageRing;
use xen_types::{AreaId, BusAddr, GrantRef, PAGE_SIZE, Session};

/// Entries of the queue, and descriptors of an indirect table.
const QUEUE: u16 = 256;
const TABLE: u16 = 4;

/// Pages of a ring that has room for a batch of the longest messages.
const RING_ORDER: u32 = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u32>().expect("a number");
    match arguments[..] {
        [
            rounds,
            what @ ("chain" | "collected"),
            descriptors,
            form,
            areas,
            pages,
        ] => {
            let how = if what == "chain" {
                How::Passing
            } else {
                How::Collected
            };
            Chains::new(
                number(descriptors),
                form == "indirect",
                u16::try_from(number(areas)).expect("an area id"),
                number(pages),
            )
            .run(how, number(rounds));
        }
        [rounds, "message", bytes] => messages(number(bytes), number(rounds)),
        [rounds, "read"] => reads(number(rounds)),
        [rounds, "drive", depth] => drive::drive(number(depth), number(rounds)),
        _ => panic!("see the top of this program"),
    }
}

/// When the segments of a chain are looked up.
#[derive(Clone, Copy)]
enum How {
    /// As they are found.
    Passing,
    /// When the chain is complete.
    Collected,
}

/// A driver that fills a queue, and the device's end of it.
struct Chains {
    table: AreaTable,
    areas: u16,
    bytes: u64,
    descriptors: u32,
    driver: DriverQueue,
    device: DeviceQueue,
    next: u64,
}

impl Chains {
    /// So many areas of so many pages. The queue is at the front of the first.
    fn new(descriptors: u32, indirect: bool, areas: u16, pages: u32) -> Self {
        let mut table = AreaTable::new(AreaLimits {
            max_areas: areas.into(),
            max_area_pages: pages * u32::from(areas),
        });
        for area_id in 1..=areas {
            let request = AreaShare {
                area_id,
                flags: ShareFlags::DEVICE_WRITE | ShareFlags::CONSECUTIVE,
                page_count: pages,
                first: GrantRef(8),
            };
            let job = table.begin_share(request).expect("a legal request");
            let area = Area::anonymous(pages as usize * PAGE_SIZE).expect("memory");
            table.finish_share(job, area);
        }
        let layout = QueueLayout::contiguous(address(1, 0), QUEUE);
        let features = RingFeatures {
            indirect,
            event_idx: true,
        };
        let tables =
            layout.desc + u64::from(QueueLayout::contiguous_bytes(QUEUE)).next_multiple_of(16);
        let driver = DriverQueue::new(&table, layout, features)
            .and_then(|queue| queue.with_indirect_tables(&table, tables, TABLE))
            .expect("room for a queue");
        let device = DeviceQueue::new(&table, layout, features).expect("the driver's queue");
        Self {
            table,
            areas,
            bytes: u64::from(pages) * PAGE_SIZE as u64,
            descriptors,
            driver,
            device,
            next: 0,
        }
    }

    fn run(mut self, how: How, rounds: u32) {
        let mut chain = Chain::new();
        for _ in 0..rounds {
            for _ in 0..BATCH {
                self.offer();
            }
            self.driver.publish();
            let space: &dyn AddressSpace = black_box(&self.table);
            let notify = match how {
                How::Passing => measured::chains(&mut self.device, space),
                How::Collected => measured::collected_chains(&mut self.device, space, &mut chain),
            };
            black_box(notify);
            for _ in 0..BATCH {
                self.driver
                    .pop_used()
                    .expect("a good device")
                    .expect("its return");
            }
        }
    }

    /// One segment to write, or one to read with all others to write, as a block read has them.
    fn offer(&mut self) {
        let segments: Vec<Segment> = (0..self.descriptors).map(|_| self.segment()).collect();
        let readable = usize::from(segments.len() > 1);
        let (readable, writable) = segments.split_at(readable);
        self.driver.add(readable, writable).expect("room");
    }

    /// Somewhere behind the queue: another page each time, and another area.
    fn segment(&mut self) -> Segment {
        self.next += 1;
        let area = u16::try_from(self.next % u64::from(self.areas)).expect("an area") + 1;
        let offset = self.next * PAGE_SIZE as u64 % (self.bytes / 2) + self.bytes / 2;
        Segment {
            addr: address(area, offset),
            len: 512,
        }
    }
}

fn address(area: u16, offset: u64) -> u64 {
    let id = AreaId::new(area).expect("an area id");
    BusAddr::in_area(id, offset).expect("an offset").0
}

/// Messages of `bytes` from one end of a ring to the other, a batch at a time.
fn messages(bytes: u32, rounds: u32) {
    let layout = RingLayout::new(RING_ORDER, bytes).expect("a layout");
    let len = usize::try_from(layout.bytes()).expect("a few pages");
    let area = Area::anonymous(len).expect("memory");
    let window = || {
        area.lease()
            .window(0, layout.bytes(), Access::Write)
            .expect("all of it")
    };
    let mut frontend = MessageRing::create(window(), layout, Session(1)).expect("a ring");
    let mut backend = MessageRing::attach(window(), layout, Session(1)).expect("the same ring");
    let mut frame = vec![0; bytes as usize];
    frame[6..8].copy_from_slice(&u16::try_from(bytes).expect("a size").to_le_bytes());
    let mut buffer = vec![0; bytes as usize];
    for _ in 0..rounds {
        measured::messages(&mut frontend, &mut backend, &frame, &mut buffer);
    }
}

/// Reads of 4 KiB from the page cache, a batch at a time.
fn reads(rounds: u32) {
    const BLOCK: u32 = 4096;
    let image = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(image.path(), vec![0x5a; (BATCH * BLOCK) as usize]).expect("its contents");
    let config = BlkConfig {
        path: image.path().into(),
        read_only: true,
        serial: String::new(),
        queues: 1,
        direct: false,
    };
    let engine = Engine::new().expect("a thread");
    let mut blk = Blk::open(&config, &engine).expect("an image");
    // The queue and the requests' headers are at the front, the blocks behind them.
    let mut chains = Chains::new(3, false, 1, 2 * BATCH + 16);
    blk.start_queue(0, chains.device, 0);
    let requests = 8 * PAGE_SIZE as u64;
    let data = 16 * PAGE_SIZE as u64;
    let header = chains
        .table
        .translate(address(1, requests), 16, Access::Write)
        .expect("shared");
    header.write(0, &[0; 16]).expect("its bytes");
    let mut events = Vec::new();
    for _ in 0..rounds {
        for n in 0..BATCH {
            let at = |offset, len| Segment {
                addr: address(1, offset),
                len,
            };
            let status = at(requests + 64 + u64::from(n), 1);
            let block = at(data + u64::from(n) * u64::from(BLOCK), BLOCK);
            chains
                .driver
                .add(&[at(requests, 16)], &[block, status])
                .expect("room");
        }
        chains.driver.publish();
        blk.kick(0);
        measured::reads(&mut blk, black_box(&chains.table), &mut events);
        events.clear();
        for _ in 0..BATCH {
            let used = chains.driver.pop_used().expect("a good device");
            assert_eq!(used.expect("its return").len, BLOCK + 1);
        }
    }
}

/// What callgrind counts. Not inlined, so that it finds their beginning and end.
mod measured {
    use std::hint::black_box;

    use guest_memory::{Access, AddressSpace, Cursor};
    use instructions::BATCH;
    use virtio_devices::blk::Blk;
    use virtio_devices::{DeviceEvent, DeviceModel, Progress};
    use virtqueue::{Chain, DeviceQueue};
    use xen_bus::ring::MessageRing;

    /// Serves all requests, and publishes that they are.
    #[inline(never)]
    pub(super) fn reads(blk: &mut Blk, space: &dyn AddressSpace, events: &mut Vec<DeviceEvent>) {
        let progress = blk.poll(space, 64, events);
        assert_eq!(progress, Progress::Idle);
    }

    /// Takes all chains, looks their segments up, returns them, publishes, and looks whether the
    /// driver wants to know.
    #[inline(never)]
    pub(super) fn chains(queue: &mut DeviceQueue, space: &dyn AddressSpace) -> bool {
        let mut memory = Cursor::new(space);
        loop {
            let chain = queue.pop_each(space, |access, segment| {
                let range = memory.translate(segment.addr, segment.len, access);
                black_box(range.expect("shared").base());
            });
            let Some(chain) = chain.expect("a good driver") else {
                return queue.publish();
            };
            assert!(chain.refusal().is_none());
            queue.push_used(chain.head(), 1).expect("in flight");
        }
    }

    /// As [`chains`], but collects the segments of a chain before they are looked up.
    #[inline(never)]
    pub(super) fn collected_chains(
        queue: &mut DeviceQueue,
        space: &dyn AddressSpace,
        chain: &mut Chain,
    ) -> bool {
        let mut memory = Cursor::new(space);
        while queue.pop(space, chain).expect("a good driver") {
            assert!(chain.refusal().is_none());
            for segment in chain.readable() {
                let range = memory.translate(segment.addr, segment.len, Access::Read);
                black_box(range.expect("shared").base());
            }
            for segment in chain.writable() {
                let range = memory.translate(segment.addr, segment.len, Access::Write);
                black_box(range.expect("shared").base());
            }
            queue.push_used(chain.head(), 1).expect("in flight");
        }
        queue.publish()
    }

    /// Sends a batch, publishes it, takes it out at the other end, and gives the slots back.
    #[inline(never)]
    pub(super) fn messages(
        from: &mut MessageRing,
        to: &mut MessageRing,
        frame: &[u8],
        buffer: &mut [u8],
    ) {
        for _ in 0..BATCH {
            from.try_send(frame).expect("room");
        }
        black_box(from.flush());
        for _ in 0..BATCH {
            let len = to.try_recv(buffer).expect("a good peer");
            assert_eq!(len, Some(frame.len()));
        }
        black_box(to.consume());
    }
}
