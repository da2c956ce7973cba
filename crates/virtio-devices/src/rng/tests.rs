//! A driver and an entropy device over one piece of memory.

use std::time::Duration;

use guest_memory::{Access, AddressSpace, Area, FlatSpace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtqueue::{DeviceQueue, DriverQueue, QueueLayout, RingFeatures, Segment, Used};

use super::Rng;
use super::device::BYTES_MAX;
use crate::{ConfigWrite, DeviceEvent, DeviceModel, Progress};

const BASE: u64 = 1 << 48;
const BUFFERS: u64 = BASE + 4096;
const GUARD: u8 = 0xa5;
const FEATURES: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: false,
};

/// Longer than any test.
const AN_HOUR: Duration = Duration::from_secs(3600);

struct Rig {
    rng: Rng,
    area: Area,
    space: FlatSpace,
    driver: DriverQueue,
    events: Vec<DeviceEvent>,
}

impl Rig {
    fn new(period: Duration) -> Self {
        let area = Area::anonymous(1 << 20).unwrap();
        let all = area.range(0, 1 << 20, Access::Write).unwrap();
        all.write(0, &vec![GUARD; 1 << 20]).unwrap();
        let space = FlatSpace::new(BASE, &area);
        let layout = QueueLayout::contiguous(BASE, 16);
        let driver = DriverQueue::new(&space, layout, FEATURES).unwrap();
        let mut rng = Rng::with_period(period).unwrap();
        let ring = DeviceQueue::new(&space, layout, FEATURES).unwrap();
        rng.start_queue(0, ring, 0);
        Self {
            rng,
            area,
            space,
            driver,
            events: Vec::new(),
        }
    }

    fn offer(&mut self, readable: &[Segment], writable: &[Segment]) -> u16 {
        let head = self.driver.add(readable, writable).unwrap();
        self.driver.publish();
        self.rng.kick(0);
        head
    }

    fn poll(&mut self) -> (Progress, Vec<Used>) {
        self.poll_with(64)
    }

    fn poll_with(&mut self, budget: usize) -> (Progress, Vec<Used>) {
        let progress = self.rng.poll(&self.space, budget, &mut self.events);
        let mut used = Vec::new();
        while let Some(entry) = self.driver.pop_used().unwrap() {
            used.push(entry);
        }
        (progress, used)
    }

    /// Runs one chain; answers the length of its used entry.
    fn ask(&mut self, readable: &[Segment], writable: &[Segment]) -> u32 {
        let head = self.offer(readable, writable);
        let (progress, used) = self.poll();
        assert_eq!(progress, Progress::Idle);
        let [used] = used[..] else {
            panic!("{} used entries", used.len())
        };
        assert_eq!(used.head, head);
        used.len
    }

    fn get(&self, at: Segment) -> Vec<u8> {
        let mut bytes = vec![0; at.len as usize];
        let range = self.space.translate(at.addr, at.len, Access::Read).unwrap();
        range.read(0, &mut bytes).unwrap();
        bytes
    }

    /// Whether the device asks for a poll within this time.
    fn wakes(&self, limit: Timespec) -> bool {
        let fd = self.rng.wake_fd().unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() == 1
    }
}

/// The `len` bytes from here on, in the area.
fn at(offset: u64, len: u32) -> Segment {
    Segment {
        addr: BUFFERS + offset,
        len,
    }
}

#[test]
fn it_is_an_entropy_device_with_one_queue_and_no_configuration() {
    let mut rng = Rng::open().unwrap();
    let description = rng.describe();
    assert_eq!(description.device_id, 4);
    assert_eq!(
        description.features,
        1 << 28 | 1 << 29 | 1 << 32 | 1 << 33 | 1 << 40
    );
    assert_eq!(description.config, []);
    assert_eq!(description.queue_max, [16]);
    assert_eq!(rng.write_config(0, &[0], u128::MAX), ConfigWrite::Refused);
}

#[test]
fn every_writable_element_is_filled_and_nothing_else() {
    let mut rig = Rig::new(AN_HOUR);
    let (one, two) = (at(100, 64), at(1000, 3000));
    assert_eq!(rig.ask(&[], &[one, two]), 3064);
    let first = rig.get(one);
    assert_ne!(first, vec![GUARD; 64]);
    for piece in rig.get(two).chunks(100) {
        assert_ne!(piece, [GUARD; 100]);
    }
    for around in [at(0, 100), at(164, 836), at(4000, 1000)] {
        assert_eq!(rig.get(around), vec![GUARD; around.len as usize]);
    }
    assert_eq!(rig.ask(&[], &[one]), 64);
    assert_ne!(rig.get(one), first);
    assert!(matches!(
        rig.events[..],
        [DeviceEvent::Used(0), DeviceEvent::Used(0)]
    ));
}

#[test]
fn readable_elements_are_skipped_and_nothing_writable_gives_nothing() {
    let mut rig = Rig::new(AN_HOUR);
    let (readable, writable) = (at(0, 64), at(64, 64));
    assert_eq!(rig.ask(&[readable], &[writable]), 64);
    assert_eq!(rig.get(readable), [GUARD; 64]);
    assert_eq!(rig.ask(&[readable], &[]), 0);
    assert_eq!(rig.get(readable), [GUARD; 64]);
    // Not even looked at.
    let nowhere = Segment { addr: 1, len: 64 };
    assert_eq!(rig.ask(&[nowhere], &[writable]), 64);
}

#[test]
fn a_bad_address_gives_nothing_and_the_queue_goes_on() {
    let mut rig = Rig::new(AN_HOUR);
    let good = at(0, 64);
    for addr in [0, BASE - 64, BASE + (1 << 20) - 63, u64::MAX - 10] {
        let bad = Segment { addr, len: 64 };
        assert_eq!(rig.ask(&[], &[good, bad]), 0);
        assert_eq!(rig.get(good), [GUARD; 64]);
    }
    assert_eq!(rig.ask(&[], &[good]), 64);
}

#[test]
fn a_period_gives_so_many_bytes_and_no_more() {
    let mut rig = Rig::new(AN_HOUR);
    let most = u32::try_from(BYTES_MAX).unwrap();
    assert_eq!(rig.ask(&[], &[at(0, 1000)]), 1000);
    // One request has what is left, however much it asks for.
    assert_eq!(rig.ask(&[], &[at(1000, 4 * most)]), most - 1000);
    let beyond = at(u64::from(most), 3 * most);
    assert!(rig.get(beyond).iter().all(|byte| *byte == GUARD));

    // The next waits in the ring, and the loop is free meanwhile.
    rig.offer(&[], &[at(0, 64)]);
    for _ in 0..3 {
        rig.rng.kick(0);
        let (progress, used) = rig.poll();
        assert_eq!((progress, used.len()), (Progress::Idle, 0));
    }
    assert!(!rig.wakes(Timespec::default()));

    // It does not hold up a stop.
    rig.rng.stop_queue(0);
    rig.poll();
    assert!(matches!(
        rig.events.last(),
        Some(DeviceEvent::Stopped(0, state)) if state.next_avail == 2 && state.next_used == 2
    ));
    let leases = rig.area.leases();
    drop(rig.driver);
    drop(rig.space);
    assert!(leases > rig.area.leases());
    rig.area.unmap().unwrap();
}

#[test]
fn the_end_of_a_period_wakes_who_waits_and_nobody_else() {
    let minute = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut rig = Rig::new(Duration::from_millis(1));
    assert!(!rig.wakes(Timespec::default()));
    let most = u32::try_from(BYTES_MAX).unwrap();
    for _ in 0..8 {
        rig.offer(&[], &[at(0, most)]);
    }
    let mut served = 0;
    while served < 8 {
        for used in rig.poll().1 {
            assert_eq!(used.len, most);
            served += 1;
        }
        assert!(rig.wakes(minute), "{served} are served, then nothing");
    }
    rig.poll();
    assert!(!rig.wakes(Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000
    }));
}

#[test]
fn a_budget_is_kept() {
    let mut rig = Rig::new(AN_HOUR);
    for _ in 0..10 {
        rig.offer(&[], &[at(0, 8)]);
    }
    let (progress, used) = rig.poll_with(3);
    assert_eq!((progress, used.len()), (Progress::More, 3));
    let (progress, used) = rig.poll_with(64);
    assert_eq!((progress, used.len()), (Progress::Idle, 7));
}

#[test]
fn a_broken_ring_is_told_once() {
    let mut rig = Rig::new(AN_HOUR);
    let layout = QueueLayout::contiguous(BASE, 16);
    let index = rig.space.translate(layout.avail + 2, 2, Access::Write);
    index.unwrap().write(0, &1000u16.to_le_bytes()).unwrap();
    for _ in 0..3 {
        rig.rng.kick(0);
        assert_eq!(
            rig.rng.poll(&rig.space, 64, &mut rig.events),
            Progress::Idle
        );
    }
    assert!(matches!(rig.events[..], [DeviceEvent::NeedsReset(_)]));
}
