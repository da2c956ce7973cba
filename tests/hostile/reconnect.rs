//! A guest that connects and is killed, over and over.
//!
//! Attack: A thousand times it goes some way through the states, the ring, the areas and the
//! bring-up of its device, also with I/O under way, and is killed there; its next life begins at
//! state 1. A hundred more times its whole domain is destroyed there.
//!
//! Outcome: Each life ends as binding section 3 says: in the backend's states 2 and 6 nothing of the
//! guest's is held. Afterwards there are 0 mappings, ports, nodes and locks of it, and the backend's
//! memory has not grown.
//!
//! Class: 4 (XSA-350, XSA-374), 3 (XSA-371)

use backend::GUEST_LINES_PER_PERIOD;
use tests::{Bus, Holdings, Random, RawDisk, RawGuest, Rig};
use virtio_msg::Status;
use xen_bus::messages::PrivateMessage;
use xen_types::DomId;

use crate::rig::memory::held;
use crate::rig::stage::{POOL, Stage};

const LINE: &str = "INFO detached: nothing of the guest is held id=domain … bus 0";

/// Lives of a guest whose domain stays.
const LIVES: usize = 1000;
/// Domains that are destroyed.
const DOMAINS: usize = 100;

/// Lives or domains after which everything has its size.
const WARM_UP: usize = 20;
/// Bytes by which the backend may have grown in the end: less than any of its objects for each life.
const GROWTH: i64 = 16 << 10;

/// How far a life goes before it is cut off.
const STEPS: u64 = 14;

/// Goes `steps` steps; the guest's process is gone afterwards, and perhaps its last state with it.
fn live(rig: &mut Rig, bus: Bus, steps: u64, random: &mut Random) {
    let mut guest = RawGuest::new(rig, bus);
    let mut maybe_settle = |rig: &mut Rig| {
        if random.below(2) == 0 {
            rig.settle();
        }
    };
    // Its first state is 1, whatever its last life left.
    guest.write("state", "1");
    rig.until_node(&bus.back("state"), "2");
    if steps == 0 {
        return;
    }
    let keys = guest.share_ring(2).emit();
    if steps == 1 {
        return;
    }
    for (key, value) in &keys[..keys.len() / 2] {
        guest.write(key, value);
    }
    if steps == 2 {
        return;
    }
    guest.write("state", "2");
    maybe_settle(rig);
    if steps == 3 {
        return;
    }
    guest.publish(&keys);
    if steps == 4 {
        return;
    }
    // One turn: the backend may be in 3 or in 4.
    rig.machine.barrier();
    rig.service().turn(Some(std::time::Duration::ZERO)).unwrap();
    if steps == 5 {
        return;
    }
    rig.until_node(&bus.back("state"), "4");
    if steps == 6 {
        return;
    }
    guest.write("state", "4");
    maybe_settle(rig);
    if steps == 7 {
        return;
    }
    rig.settle();
    let (_data, _directory, share) = guest.grant_area(1, 300);
    guest.send_private(&PrivateMessage::AreaShare(share));
    rig.machine.barrier();
    rig.service().turn(Some(std::time::Duration::ZERO)).unwrap();
    if steps == 8 {
        return;
    }
    rig.settle();
    let pool = guest.share_pool(rig, 2, POOL);
    if steps == 9 {
        return;
    }
    if steps == 10 {
        RawDisk::negotiate(rig, &mut guest, 0);
        return;
    }
    let mut disk = RawDisk::bring_up(rig, &mut guest, 0, pool);
    let (_, data) = disk.take(4096);
    for first in [0, 3] {
        disk.write_request(first, 64 + u64::from(first) * 8, data, 4096);
        disk.offer(&mut guest, first);
    }
    maybe_settle(rig);
    if steps == 11 {
        return;
    }
    guest.write("state", "5");
    maybe_settle(rig);
    if steps == 12 {
        return;
    }
    guest.write("state", "6");
    maybe_settle(rig);
}

#[test]
fn a_thousand_lives_leave_nothing_behind() {
    let mut random = Random::seeded(21);
    let mut stage = Stage::new();
    let bus = stage.bus;
    let nodes = stage.rig.machine.report(bus.guest).nodes;
    let mut before = 0;
    // Every step once, then at random.
    for life in 0..LIVES {
        let steps = match u64::try_from(life).unwrap() {
            life if life < STEPS => life,
            // The states and the ring more often than what follows.
            _ => random.below(STEPS).min(random.below(STEPS)),
        };
        live(&mut stage.rig, bus, steps, &mut random);
        if life % 50 == 0 {
            stage.assert_honest_served();
        }
        if life == WARM_UP {
            live(&mut stage.rig, bus, 0, &mut random);
            before = held() - stage.log.held();
        }
    }
    live(&mut stage.rig, bus, 0, &mut random);
    let growth = held() - stage.log.held() - before;
    assert!(growth < GROWTH, "{growth} bytes");
    assert_eq!(
        stage.rig.machine.holdings(DomId::DOM0),
        stage.honest_holdings
    );
    assert_eq!(
        stage.rig.machine.holdings(bus.guest),
        Holdings::default(),
        "of the guest's own"
    );
    assert_eq!(stage.rig.service().sessions(), 2);
    let keys = 16;
    let now = stage.rig.machine.report(bus.guest).nodes;
    assert!(now <= nodes + keys, "{now} nodes, {nodes} before");
    stage.log.line(LINE);
    let lines = stage.log.lines().len();
    assert!(lines < LIVES * 2, "{lines} lines");
    assert!(lines > GUEST_LINES_PER_PERIOD as usize);
    // It is a guest like any other.
    stage.guest.write("state", "1");
    let mut disk = stage.hostile_disk();
    stage.assert_hostile_served(&mut disk);
    stage.finish();
}

#[test]
fn a_hundred_domains_destroyed_at_any_step_leave_nothing_behind() {
    let mut random = Random::seeded(22);
    let mut stage = Stage::new();
    let mut before = 0;
    for number in 0..DOMAINS {
        if number == WARM_UP {
            before = held() - stage.log.held();
        }
        let steps = u64::try_from(number).unwrap() % STEPS;
        let bus = stage
            .rig
            .guest_with_disk(&format!("guest{number}"), 64 << 10);
        live(&mut stage.rig, bus, steps, &mut random);
        let hypervisor = stage.rig.machine.hypervisor();
        hypervisor.destroy_domain(bus.guest).unwrap();
        stage.rig.until("the end of the domain", |rig| {
            (rig.machine.is_gone(bus.guest) && rig.service().sessions() == 2).then_some(())
        });
        assert_eq!(
            stage.rig.machine.holdings(DomId::DOM0),
            stage.honest_holdings,
            "{steps} steps"
        );
        assert_eq!(stage.rig.machine.report(bus.guest).nodes, 0);
        assert_eq!(stage.rig.toolstack.read(&bus.back("state")), None);
        assert_eq!(stage.rig.machine.lock_files().len(), 2, "{steps} steps");
    }
    let growth = held() - stage.log.held() - before;
    assert!(growth < GROWTH, "{growth} bytes");
    stage.log.assert_quiet();
    let mut disk = stage.hostile_disk();
    stage.assert_hostile_served(&mut disk);
    assert_eq!(
        stage.guest.status(&mut stage.rig, 0),
        RawDisk::negotiated() | Status::DRIVER_OK
    );
    stage.finish();
}
