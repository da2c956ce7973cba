//! A guest that keeps the backend busy takes nothing from its neighbour (architecture: one thread,
//! bounded turns, round robin). Everything is counted in turns of the service, nothing is timed.

use std::time::Duration;

use tests::{Bus, RawDisk, RawGuest, Rig};
use virtio_msg::wire::{DevNum, Event, EventAvail, Frame};
use xen_bus::areas::PAGES_PER_TURN;
use xen_bus::messages::{AreaUnshare, PrivateMessage};
use xen_types::DomId;

/// Turns of the service that are counted.
const TURNS: u64 = 200;
/// Pages of the memory of a guest's queue.
const POOL: usize = 16;
/// Chains that the victim has available at the start of every turn.
const CHAINS: u16 = RawDisk::SIZE;
/// Descriptor flag.
const DEVICE_WRITES: u16 = 2;
/// Frames that the backend may take from one ring in one turn; the attacker's ring holds four times
/// as many.
const FRAMES_PER_TURN: u64 = 64;
/// Requests to XenStore that one turn may take: one look at the nodes of one guest.
const REQUESTS_PER_TURN: u64 = 8;

/// A busy guest and its hostile neighbour, each with an entropy device: it serves within the turn,
/// so that what a turn gives is a number and not a matter of threads.
struct Neighbours {
    rig: Rig,
    victim: RawGuest,
    queue: RawDisk,
    attacker: RawGuest,
    /// The attacker's device, which is up: its events are work.
    _target: RawDisk,
}

impl Neighbours {
    fn new() -> Self {
        let mut rig = Rig::start();
        // The attacker's session is the older one, and has its turn first.
        let mut attacker = guest(&mut rig, "attacker");
        attacker.connect_over_most_slots(&mut rig);
        let target = bring_up(&mut rig, &mut attacker);
        let mut victim = guest(&mut rig, "victim");
        victim.connect(&mut rig);
        let mut queue = bring_up(&mut rig, &mut victim);
        let (_, data) = queue.take(CHAINS.into());
        for index in 0..CHAINS {
            queue.describe(index, data + u64::from(index), 1, DEVICE_WRITES, 0);
        }
        for index in 0..CHAINS {
            queue.offer(&mut victim, index);
        }
        Self {
            rig,
            victim,
            queue,
            attacker,
            _target: target,
        }
    }

    /// One turn of the service, with every event of both guests delivered; chains of the victim that
    /// it served. The victim makes as many available again.
    fn turn(&mut self) -> u64 {
        let before = self.queue.used();
        self.rig.machine.barrier();
        self.rig.service().turn(Some(Duration::ZERO)).unwrap();
        let served = self.queue.used().wrapping_sub(before);
        self.victim.receive();
        // The device serves in order: used chains are `before`, `before` + 1 and so on.
        for chain in 0..served {
            let head = before.wrapping_add(chain) % CHAINS;
            self.queue.offer(&mut self.victim, head);
        }
        served.into()
    }

    /// What the backend has done so far that costs a turn time.
    fn work(&mut self) -> Work {
        let frontend = self.attacker.bus.guest.0;
        let pages = self.rig.machine.counters(DomId::DOM0).grant_map_pages;
        let service = self.rig.service();
        let requests = service.host().store.requests().total();
        let mut instances = service.gauges().instances.into_iter();
        let instance = instances.find(|instance| instance.frontend == frontend);
        let link = instance.and_then(|instance| instance.link);
        let link = link.expect("the attacker is connected");
        Work {
            frames: link.messages_received,
            spurious_events: link.spurious_events,
            pages,
            requests,
        }
    }
}

/// What a turn did, or all of them.
#[derive(Clone, Copy, Debug)]
struct Work {
    /// Frames that the backend took from the attacker.
    frames: u64,
    /// Events of the attacker that had no reason.
    spurious_events: u64,
    /// Pages that the backend mapped, of anybody's.
    pages: u64,
    /// What it asked of XenStore.
    requests: u64,
}

impl Work {
    fn since(&self, before: &Self) -> Self {
        Self {
            frames: self.frames - before.frames,
            spurious_events: self.spurious_events - before.spurious_events,
            pages: self.pages - before.pages,
            requests: self.requests - before.requests,
        }
    }
}

fn guest(rig: &mut Rig, name: &str) -> RawGuest {
    let bus = Bus::of(rig.machine.create_domain(name));
    rig.toolstack.make_bus(bus);
    rig.toolstack.make_device(bus, 0, "type=rng");
    rig.until_node(&bus.device(0, "status"), "ready");
    RawGuest::new(rig, bus)
}

fn bring_up(rig: &mut Rig, guest: &mut RawGuest) -> RawDisk {
    let pool = guest.share_pool(rig, 1, POOL);
    RawDisk::bring_up(rig, guest, 0, pool)
}

/// Runs `attack` before every turn. The victim must get at least 0.9 of what it gets alone, every
/// turn must be bounded, and the attacker must still be connected. Gives what all turns did.
#[track_caller]
fn withstands(mut attack: impl FnMut(&mut RawGuest)) -> Work {
    let mut alone = Neighbours::new();
    let undisturbed: u64 = (0..TURNS).map(|_| alone.turn()).sum();
    assert_eq!(undisturbed, TURNS * u64::from(CHAINS), "the victim is busy");
    drop(alone);

    let mut both = Neighbours::new();
    let first = both.work();
    let mut served = 0;
    for turn in 0..TURNS {
        attack(&mut both.attacker);
        let before = both.work();
        served += both.turn();
        let work = both.work().since(&before);
        assert!(work.frames <= FRAMES_PER_TURN, "turn {turn}: {work:?}");
        assert!(work.pages <= PAGES_PER_TURN.into(), "turn {turn}: {work:?}");
        assert!(work.requests <= REQUESTS_PER_TURN, "turn {turn}: {work:?}");
    }
    let work = both.work().since(&first);
    assert!(
        served * 10 >= undisturbed * 9,
        "{served} chains, {undisturbed} without the attacker; {work:?}"
    );
    work
}

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
fn events_without_a_reason_take_nothing_from_the_neighbour() {
    let work = withstands(RawGuest::notify);
    assert_eq!(work.frames, 0);
    assert_ne!(work.spurious_events, 0);
    assert!(work.spurious_events <= TURNS, "{work:?}");
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

#[test]
fn a_guest_that_writes_its_nodes_without_end_takes_nothing_from_the_neighbour() {
    /// Writes between two turns; each is an event of a watch of the backend.
    const WRITES: usize = 70;
    let work = withstands(|attacker| {
        for _ in 0..WRITES {
            attacker.write("state", "4");
        }
    });
    assert!(work.requests >= TURNS, "the backend looks: {work:?}");
}
