//! The same driver before two devices: ours and the one of rust-vmm's virtio-queue, each with a
//! ring of its own. Legal chains only: virtio-queue ends a chain quietly where it should fail.

use std::fs::File;
use std::os::fd::AsFd;

use guest_memory::{Access, AddressSpace, Area, FlatSpace};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use virtio_queue::{Queue, QueueT};
use virtqueue::{Chain, DeviceQueue, DriverQueue, QueueLayout, RingFeatures, RingPart, Segment};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

const BASE: u64 = 0x10_0000;
const BYTES: usize = 1 << 18;
const TABLES: u64 = BASE + (1 << 17);
/// Descriptors of an indirect table: virtio-queue allows no more than the queue has.
const TABLE_ENTRIES: u16 = 4;

#[derive(Clone, Debug)]
enum Step {
    Add(Vec<Segment>, Vec<Segment>),
    Publish,
    Take,
    /// Return one of the chains in flight, with a length.
    Return(Index, u32),
    Reap,
    DeviceRearm,
    DriverRearm,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (segments(), segments()).prop_map(|(read, write)| Step::Add(read, write)),
        2 => Just(Step::Publish),
        4 => Just(Step::Take),
        3 => (any::<Index>(), any::<u32>()).prop_map(|(at, len)| Step::Return(at, len)),
        3 => Just(Step::Reap),
        1 => Just(Step::DeviceRearm),
        1 => Just(Step::DriverRearm),
    ];
    prop::collection::vec(step, 1..150)
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let segment = (any::<u64>(), 1..1u32 << 24).prop_map(|(addr, len)| Segment { addr, len });
    prop::collection::vec(segment, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn both_devices_take_and_return_the_same(
        size in select(vec![4u16, 8, 16, 64]),
        indirect: bool,
        event_idx: bool,
        steps in steps(),
    ) {
        let mut pair = Pair::new(size, RingFeatures { indirect, event_idx });
        for step in steps {
            pair.step(step);
        }
    }
}

/// One driver, and the memory that it shares with its device.
struct World {
    space: FlatSpace,
    layout: QueueLayout,
    driver: DriverQueue,
}

impl World {
    fn new(file: &File, size: u16, features: RingFeatures) -> Self {
        let area = Area::shared_file(file.as_fd(), 0, BYTES, Access::Write).unwrap();
        let space = FlatSpace::new(BASE, &area);
        let layout = QueueLayout::contiguous(BASE, size);
        let driver = DriverQueue::new(&space, layout, features)
            .and_then(|driver| driver.with_indirect_tables(&space, TABLES, TABLE_ENTRIES))
            .unwrap();
        Self {
            space,
            layout,
            driver,
        }
    }

    /// Index and elements of the used ring.
    fn used(&self) -> Vec<u8> {
        let len = RingPart::Used.bytes(self.layout.size) - 4;
        let used = self.layout.used + 2;
        let range = self.space.translate(used, len, Access::Read).unwrap();
        let mut bytes = vec![0; range.len()];
        range.read(0, &mut bytes).unwrap();
        bytes
    }
}

struct Pair {
    our_world: World,
    ours: DeviceQueue,
    chain: Chain,
    their_world: World,
    theirs: Queue,
    memory: GuestMemoryMmap,
    in_flight: Vec<u16>,
    /// Both have looked at the driver's wish once.
    told: bool,
}

impl Pair {
    fn new(size: u16, features: RingFeatures) -> Self {
        let our_world = World::new(&file(), size, features);
        let ours = DeviceQueue::new(&our_world.space, our_world.layout, features).unwrap();
        let file = file();
        let their_world = World::new(&file, size, features);
        let region = (GuestAddress(BASE), BYTES, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([region]).unwrap();
        let theirs = their_queue(their_world.layout, features, &memory);
        Self {
            our_world,
            ours,
            chain: Chain::new(),
            their_world,
            theirs,
            memory,
            in_flight: Vec::new(),
            told: !features.event_idx,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(readable, writable) => assert_eq!(
                self.our_world.driver.add(&readable, &writable),
                self.their_world.driver.add(&readable, &writable)
            ),
            Step::Publish => assert_eq!(
                self.our_world.driver.publish(),
                self.their_world.driver.publish()
            ),
            Step::Take => self.take(),
            Step::Return(at, len) if !self.in_flight.is_empty() => {
                let head = self.in_flight.swap_remove(at.index(self.in_flight.len()));
                self.ours.push_used(head, len).unwrap();
                self.theirs.add_used(&self.memory, head, len).unwrap();
            }
            Step::Return(..) => {}
            Step::Reap => {
                self.tell();
                let used = self.our_world.driver.pop_used().unwrap();
                assert_eq!(self.their_world.driver.pop_used(), Ok(used));
            }
            Step::DeviceRearm => assert_eq!(
                self.ours.rearm(),
                self.theirs.enable_notification(&self.memory).unwrap()
            ),
            Step::DriverRearm => {
                self.tell();
                assert_eq!(
                    self.our_world.driver.rearm(),
                    self.their_world.driver.rearm()
                );
            }
        }
    }

    fn take(&mut self) {
        let popped = self
            .ours
            .pop(&self.our_world.space, &mut self.chain)
            .unwrap();
        let Some(theirs) = self.theirs.pop_descriptor_chain(&self.memory) else {
            assert!(!popped);
            return;
        };
        assert!(popped);
        assert_eq!(self.chain.head(), theirs.head_index());
        let readable = self.chain.readable().iter().map(|&part| (false, part));
        let writable = self.chain.writable().iter().map(|&part| (true, part));
        let ours: Vec<_> = readable.chain(writable).collect();
        let theirs: Vec<_> = theirs
            .map(|descriptor| {
                let (addr, len) = (descriptor.addr().0, descriptor.len());
                (descriptor.is_write_only(), Segment { addr, len })
            })
            .collect();
        assert_eq!(ours, theirs);
        self.in_flight.push(self.chain.head());
    }

    /// Publishes what ours has returned; virtio-queue shows each element at once.
    fn tell(&mut self) {
        let before = self.our_world.used();
        let ours = self.ours.publish();
        let theirs = self.theirs.needs_notification(&self.memory).unwrap();
        assert_eq!(self.our_world.used(), self.their_world.used());
        if self.our_world.used()[..2] == before[..2] {
            assert!(!ours, "nothing new");
        } else if self.told {
            assert_eq!(ours, theirs);
        } else {
            // The first check under EVENT_IDX: ours notifies in any case.
            assert!(ours);
            self.told = true;
        }
    }
}

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES as u64).unwrap();
    file
}

fn their_queue(layout: QueueLayout, features: RingFeatures, memory: &GuestMemoryMmap) -> Queue {
    let mut queue = Queue::new(layout.size).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(layout.desc))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(layout.avail))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(layout.used))
        .unwrap();
    queue.set_event_idx(features.event_idx);
    queue.set_ready(true);
    assert!(queue.is_valid(memory));
    queue
}
