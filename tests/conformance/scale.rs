//! What idle guests cost: nothing. Counted in rounds and turns of the loop, not timed. And a request
//! never looks at XenStore.

use std::time::{Duration, Instant};

use frontend_shim::{Disk, Frontend, Operation};
use tests::{LIMIT, Machine, Rig, Toolstack};
use xen_types::DomId;

/// Guests beside the one that works.
const IDLE: usize = 32;
/// Bytes of each disk, and of a read.
const BYTES: usize = 64 << 10;
const READ: usize = 4096;
/// Reads that are counted.
const READS: u64 = 100;

/// A guest that is connected, with its disk open.
struct Guest {
    frontend: Frontend,
    disk: Disk,
}

impl Guest {
    fn bring_up(rig: &mut Rig, name: &str) -> Self {
        let bus = rig.guest_with_disk(name, BYTES);
        let spec = rig.machine.spec(bus.guest);
        rig.while_serving(|_: &Machine, _: &mut Toolstack| {
            let mut frontend = Frontend::open(&spec, 0).unwrap();
            frontend.connect(LIMIT).unwrap();
            let disk = Disk::open(&mut frontend, 0).unwrap();
            Self { frontend, disk }
        })
    }

    /// Reads, the backend taking its turns when there is something to do; the turns that took.
    fn read(&mut self, rig: &mut Rig) -> u64 {
        let before = rig.service().counters().turns;
        for _ in 0..READS {
            let slot = self.disk.free_slot().unwrap();
            let operation = Operation::Read {
                sector: 0,
                len: READ,
            };
            self.disk
                .submit(&mut self.frontend, slot, operation)
                .unwrap();
            let finished = rig.until("the answer", |_| {
                // Publishes, notifies, and takes what came, without sleeping.
                self.frontend.wait(Some(Instant::now())).unwrap();
                self.disk.poll(&mut self.frontend).unwrap()
            });
            let mut bytes = [0; READ];
            self.disk
                .take(&mut self.frontend, finished.slot, &mut bytes)
                .unwrap();
        }
        rig.service().counters().turns - before
    }
}

#[test]
fn an_event_costs_as_many_turns_beside_idle_guests_as_alone() {
    let mut rig = Rig::start();
    let mut guest = Guest::bring_up(&mut rig, "busy");
    let alone = guest.read(&mut rig);
    let _idle: Vec<_> = (0..IDLE)
        .map(|number| Guest::bring_up(&mut rig, &format!("idle-{number}")))
        .collect();
    rig.settle();
    assert_eq!(rig.service().sessions(), IDLE + 1);
    assert_eq!(guest.read(&mut rig), alone);
}

#[test]
fn requests_read_nothing_from_xenstore_on_either_side() {
    let mut rig = Rig::start();
    let Guest {
        mut frontend,
        mut disk,
    } = Guest::bring_up(&mut rig, "guest");
    rig.settle();
    let before = rig.service().host().store.reads();
    rig.while_serving(|_, _| {
        let before = frontend.store_reads();
        let operation = Operation::Read {
            sector: 0,
            len: READ,
        };
        for _ in 0..READS {
            disk.run(&mut frontend, operation).unwrap();
        }
        assert_eq!(frontend.store_reads() - before, 0);
    });
    assert_eq!(rig.service().host().store.reads() - before, 0);
}

#[test]
fn connected_guests_that_are_idle_wake_nobody() {
    let mut rig = Rig::start();
    let _guests: Vec<_> = (0..4)
        .map(|number| Guest::bring_up(&mut rig, &format!("idle-{number}")))
        .collect();
    rig.settle();
    // No timer, and nothing left to do: the loop waits until somebody sends an event.
    assert_eq!(rig.service().next_timer(), None);
    let before = rig.machine.counters(DomId::DOM0);
    assert!(!rig.service().turn(Some(Duration::ZERO)).unwrap());
    assert_eq!(rig.machine.counters(DomId::DOM0), before);
}
