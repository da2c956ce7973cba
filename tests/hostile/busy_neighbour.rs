//! A guest that keeps the backend busy beside one that works.
//!
//! Attack: Before every turn of the backend it fills its ring, with the most slots there are, with
//! kicks or with nonsense, keeps an area of 900 pages being mapped and unmapped, or keeps the queues
//! of several disks full.
//!
//! Outcome: One turn takes 64 frames and 256 pages of an instance and 64 buffers of each of its
//! devices, then the next instance has its turn (binding sections 4 and 6). The victim has at least
//! 0.9 of the chains per turn that it has alone.
//!
//! Line: none; IN of `vmsg stat` grows.
//!
//! Class: 6 (XSA-332), 5 (XSA-392)

use guest_memory::{Access, AddressSpace as _};
use tests::{RawDisk, RawGuest, Rig};
use virtio_msg::wire::{DevNum, Event, EventAvail, Frame};
use virtio_msg::{Features, Status};
use virtqueue::{DriverQueue, QueueLayout, RingFeatures, Segment};
use xen_bus::areas::PAGES_PER_TURN;
use xen_bus::messages::{AreaUnshare, PrivateMessage};

use crate::rig::neighbours::{FRAMES_PER_TURN, TURNS, withstands, withstands_with};

/// Buffers that the backend may serve of one device in one turn; a disk's queue holds more.
const BUFFERS_PER_TURN: usize = 64;

#[test]
fn a_ring_that_is_always_full_of_event_avail_takes_nothing_from_the_neighbour() {
    let event = Event::Avail(EventAvail {
        index: 0,
        next_offset: 0,
    });
    let dev_num = DevNum(0);
    let mut bytes = [0; 52];
    let len = Frame::Event { dev_num, event }.emit(&mut bytes).unwrap();
    let work = withstands(|attacker| {
        attacker.flood(&bytes[..len]);
    });
    assert_eq!(work.frames, TURNS * FRAMES_PER_TURN, "the ring was full");
}

#[test]
fn a_ring_that_is_always_full_of_malformed_frames_takes_nothing_from_the_neighbour() {
    let work = withstands(|attacker| {
        attacker.flood(&[0xff; 52]);
    });
    assert_eq!(work.frames, TURNS * FRAMES_PER_TURN, "the ring was full");
}

#[test]
fn an_area_that_is_shared_and_unshared_without_end_takes_nothing_from_the_neighbour() {
    /// As many as a domain can grant beside its rings, roughly.
    const PAGES: usize = 900;
    let mut granted = None;
    let (mut requests, mut answers) = (0, 0);
    let work = withstands(|attacker| {
        answers += attacker.receive().len() as u64;
        let (_, _, share) = granted.get_or_insert_with(|| attacker.grant_area(7, PAGES));
        // One of each at a time: there is always one to do, and no bound is broken.
        if answers == requests {
            let area_id = share.area_id;
            attacker.send_private(&PrivateMessage::AreaShare(*share));
            attacker.send_private(&PrivateMessage::AreaUnshare(AreaUnshare { area_id }));
            requests += 2;
        }
    });
    assert_eq!(work.frames, requests);
    assert!(
        work.pages > TURNS * u64::from(PAGES_PER_TURN) / 4,
        "{work:?}"
    );
}

/// A disk whose queue holds more requests than one turn serves.
struct Disk {
    dev_num: u16,
    queue: DriverQueue,
    /// Header and status byte, and the data of a request.
    parts: (Vec<Segment>, Vec<Segment>),
}

impl Disk {
    /// Descriptors: with indirect tables, as many requests.
    const SIZE: u16 = 256;
    /// Pages of its area: the rings, the tables and the request.
    const PAGES: usize = 10;
    /// Asks for the serial, which is served within the turn: what a turn gives is a number and not a
    /// matter of threads.
    const GET_ID: u8 = 8;

    fn bring_up(rig: &mut Rig, guest: &mut RawGuest, dev_num: u16) -> Self {
        let line = rig.disk_line(&format!("{dev_num}.img"), 64 << 10);
        rig.toolstack.make_device(guest.bus, dev_num, &line);
        rig.until_node(&guest.bus.device(dev_num, "status"), "ready");
        let mut pool = guest.share_pool(rig, 1 + dev_num, Self::PAGES);
        let mut take = |len: u32| {
            let block = pool.take(len as usize).unwrap();
            pool.address(block, 0)
        };
        let ring = take(QueueLayout::contiguous_bytes(Self::SIZE));
        let tables = take(DriverQueue::indirect_table_bytes(Self::SIZE, 4));
        let request = take(64);
        let header = pool.translate(request, 1, Access::Write).unwrap();
        header.write(0, &[Self::GET_ID]).unwrap();
        let layout = QueueLayout::contiguous(ring, Self::SIZE);
        let features = RingFeatures {
            indirect: true,
            event_idx: false,
        };
        let queue = DriverQueue::new(&pool, layout, features).unwrap();
        let queue = queue.with_indirect_tables(&pool, tables, 4).unwrap();
        RawDisk::negotiate_with(rig, guest, dev_num, Features::INDIRECT_DESC);
        RawDisk::set_queue(rig, guest, dev_num, layout);
        let status = RawDisk::negotiated() | Status::DRIVER_OK;
        assert_eq!(guest.set_status(rig, dev_num, status), status);
        let segment = |offset, len| Segment {
            addr: request + offset,
            len,
        };
        Self {
            dev_num,
            queue,
            parts: (vec![segment(0, 16)], vec![segment(16, 20), segment(36, 1)]),
        }
    }

    /// Takes back what was served since the last call, and fills the queue; how much that was.
    fn refill(&mut self, guest: &mut RawGuest) -> usize {
        let mut served = 0;
        while self.queue.pop_used().unwrap().is_some() {
            served += 1;
        }
        while self.queue.add(&self.parts.0, &self.parts.1).is_ok() {}
        self.queue.publish();
        RawDisk::kick_queue(guest, self.dev_num);
        served
    }
}

#[test]
fn disks_whose_queues_are_always_full_take_nothing_from_the_neighbour() {
    const DISKS: u16 = 4;
    let mut most = 0;
    withstands_with(
        |rig, attacker| {
            (1..=DISKS)
                .map(|dev_num| Disk::bring_up(rig, attacker, dev_num))
                .collect::<Vec<_>>()
        },
        |attacker, disks| {
            attacker.receive();
            for disk in disks {
                let served = disk.refill(attacker);
                assert!(
                    served <= BUFFERS_PER_TURN,
                    "{served} buffers of a disk in one turn"
                );
                most = most.max(served);
            }
        },
    );
    assert_eq!(most, BUFFERS_PER_TURN, "the disks were busy");
}
