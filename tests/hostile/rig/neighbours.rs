//! A busy guest and its hostile neighbour: what the victim gets is counted in turns of the service
//! (one thread, bounded turns, round robin); nothing is timed.

use std::time::Duration;

use tests::{Bus, RawDisk, RawGuest, Rig};
use xen_bus::areas::PAGES_PER_TURN;
use xen_types::DomId;

use super::log::{Log, Text};

/// Turns of the service that are counted.
pub(crate) const TURNS: u64 = 200;
/// Pages of the victim's message ring.
const RING_PAGES: u32 = 4;
/// Pages of the memory of a guest's queue.
const POOL: usize = 16;
/// Chains that the victim has available at the start of every turn.
const CHAINS: u16 = RawDisk::SIZE;
/// Descriptor flag.
const DEVICE_WRITES: u16 = 2;
/// Frames that the backend may take from one ring in one turn; the attacker's ring holds four times
/// as many.
pub(crate) const FRAMES_PER_TURN: u64 = 64;
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
    log: Log,
}

impl Neighbours {
    /// With an attacker that has `prepare`d something.
    fn new<T>(prepare: impl FnOnce(&mut Rig, &mut RawGuest) -> T) -> (Self, T) {
        let log = Log::start();
        let mut rig = Rig::start();
        // The attacker's session is the older one, and has its turn first.
        let mut attacker = guest(&mut rig, "attacker");
        attacker.grant_addresses = true;
        attacker.connect_over_most_slots(&mut rig);
        let target = bring_up(&mut rig, &mut attacker);
        let prepared = prepare(&mut rig, &mut attacker);
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
        let neighbours = Self {
            rig,
            victim,
            queue,
            attacker,
            _target: target,
            log,
        };
        (neighbours, prepared)
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

    /// The attacker's domain ends: what dom0 holds of it is gone, and the victim goes on.
    fn end(mut self) {
        let both = self.rig.machine.holdings(DomId::DOM0);
        let guest = self.attacker.bus.guest;
        drop(self.attacker);
        let hypervisor = self.rig.machine.hypervisor();
        hypervisor.destroy_domain(guest).unwrap();
        self.rig.until("the end of the attacker", |rig| {
            (rig.machine.is_gone(guest) && rig.service().sessions() == 1).then_some(())
        });
        let victim = self.rig.machine.holdings(DomId::DOM0);
        let pages = u32::try_from(POOL).unwrap();
        assert!(both.mapped > victim.mapped + pages, "{both:?} {victim:?}");
        assert_eq!(victim.mapped, pages + RING_PAGES);
        assert_eq!(victim.ports + 1, both.ports);
        let before = self.queue.used();
        self.queue.offer(&mut self.victim, before % CHAINS);
        self.rig.until("a used buffer", |_| {
            (self.queue.used() != before).then_some(())
        });
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
pub(crate) struct Work {
    /// Frames that the backend took from the attacker.
    pub(crate) frames: u64,
    /// Events of the attacker that had no reason.
    pub(crate) spurious_events: u64,
    /// Pages that the backend mapped, of anybody's.
    pub(crate) pages: u64,
    /// What it asked of XenStore.
    pub(crate) requests: u64,
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
/// turn must be bounded, the log must be silent, and the attacker must still be connected. Gives
/// what all turns did.
#[track_caller]
pub(crate) fn withstands(mut attack: impl FnMut(&mut RawGuest)) -> Work {
    withstands_with(|_, _| (), |attacker, ()| attack(attacker))
}

/// As [`withstands`], of an attacker that has `prepare`d something.
#[track_caller]
pub(crate) fn withstands_with<T>(
    prepare: impl FnOnce(&mut Rig, &mut RawGuest) -> T,
    attack: impl FnMut(&mut RawGuest, &mut T),
) -> Work {
    withstands_saying(Text::assert_quiet, prepare, attack)
}

/// As [`withstands_with`], of an attack that is in the log, which `said` judges.
#[track_caller]
pub(crate) fn withstands_saying<T>(
    said: impl FnOnce(&Text),
    prepare: impl FnOnce(&mut Rig, &mut RawGuest) -> T,
    mut attack: impl FnMut(&mut RawGuest, &mut T),
) -> Work {
    let (mut alone, ()) = Neighbours::new(|_, _| ());
    let undisturbed: u64 = (0..TURNS).map(|_| alone.turn()).sum();
    assert_eq!(undisturbed, TURNS * u64::from(CHAINS), "the victim is busy");
    drop(alone);

    let (mut both, mut prepared) = Neighbours::new(prepare);
    let first = both.work();
    let mut served = 0;
    for turn in 0..TURNS {
        attack(&mut both.attacker, &mut prepared);
        let before = both.work();
        served += both.turn();
        let work = both.work().since(&before);
        assert!(work.frames <= FRAMES_PER_TURN, "turn {turn}: {work:?}");
        assert!(work.pages <= PAGES_PER_TURN.into(), "turn {turn}: {work:?}");
        assert!(work.requests <= REQUESTS_PER_TURN, "turn {turn}: {work:?}");
    }
    let work = both.work().since(&first);
    said(&both.log);
    drop(prepared);
    both.end();
    assert!(
        served * 10 >= undisturbed * 9,
        "{served} chains, {undisturbed} without the attacker; {work:?}"
    );
    work
}
