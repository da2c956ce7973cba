//! Guests that reboot without end.
//!
//! Attack: Domains end one after the other, each of which makes the backend look whether the domains
//! of all its buses are still there.
//!
//! Outcome: 32 buses are looked after in a turn, in turn, so that no turn grows with the number of
//! guests; what ended is let go of, its nodes are removed, and everybody else is served (binding
//! section 9).
//!
//! Class: 6 (XSA-332), 3 (XSA-371), 10 (XSA-483)

use std::time::Duration;

use backend::GUESTS_PER_TURN;
use tests::Bus;
use xen_types::DomId;

use crate::rig::stage::Stage;

const LINE: &str = "INFO the domain is gone; its directories are removed id=domain … bus 0";

/// Buses beside those of the stage.
const BUSES: usize = 100;
/// Requests that one look at a guest takes.
const REQUESTS_PER_LOOK: u64 = 10;

#[test]
fn no_turn_looks_at_more_than_its_share_of_the_guests() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let mut buses: Vec<Bus> = (0..BUSES)
        .map(|number| {
            let bus = Bus::of(stage.rig.machine.create_domain(&format!("guest{number}")));
            stage.rig.toolstack.make_bus(bus);
            bus
        })
        .collect();
    stage.rig.settle();
    assert_eq!(stage.rig.service().sessions(), BUSES + 2);
    let bound = (GUESTS_PER_TURN as u64 + 2) * REQUESTS_PER_LOOK;
    for _ in 0..10 {
        let dead = buses.pop().unwrap();
        let hypervisor = stage.rig.machine.hypervisor();
        hypervisor.destroy_domain(dead.guest).unwrap();
        stage.rig.machine.barrier();
        let mut turns = 0;
        loop {
            let before = stage.rig.service().host().store.requests().total();
            let more = stage.rig.service().turn(Some(Duration::ZERO)).unwrap();
            let took = stage.rig.service().host().store.requests().total() - before;
            assert!(took <= bound, "{took} requests in one turn");
            turns += 1;
            if !more {
                break;
            }
        }
        assert!(turns >= BUSES / GUESTS_PER_TURN, "{turns} turns");
        stage.assert_hostile_served(&mut disk);
        stage.assert_honest_served();
        stage.rig.settle();
        assert_eq!(stage.rig.service().sessions(), buses.len() + 2);
        assert_eq!(stage.rig.toolstack.read(&dead.back("state")), None);
    }
    stage.log.line(LINE);
    stage.log.assert_quiet();
    let holdings = stage.rig.machine.holdings(DomId::DOM0);
    for bus in buses {
        let hypervisor = stage.rig.machine.hypervisor();
        hypervisor.destroy_domain(bus.guest).unwrap();
    }
    stage.rig.until("the end of all others", |rig| {
        (rig.service().sessions() == 2).then_some(())
    });
    assert_eq!(stage.rig.machine.holdings(DomId::DOM0), holdings);
    stage.finish();
}
