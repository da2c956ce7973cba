//! A request never looks at the clock: in a PV guest that is a system call or a trap into Xen.

use frontend_shim::{Disk, Frontend, Operation};
use tests::{LIMIT, Rig, keep_to_one_processor};

/// Reads that are counted, and in flight at once in the second half.
const READS: usize = 100;
const DEPTH: usize = 4;
/// Bytes of the disk and of a read.
const BYTES: usize = 64 << 10;
const READ: usize = 4096;

#[test]
fn requests_on_one_core_never_look_at_the_clock() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let spec = rig.machine.spec(bus.guest);
    rig.while_serving(|_, _| {
        // There nobody looks for an event before it sleeps.
        keep_to_one_processor();
        let mut frontend = Frontend::open(&spec, 0).unwrap();
        frontend.connect(LIMIT).unwrap();
        let mut disk = Disk::open(&mut frontend, 0).unwrap();
        let read = Operation::Read {
            sector: 0,
            len: READ,
        };
        // Sets the alarm for the deadline of this one; those of all others are later.
        disk.run(&mut frontend, read).unwrap();
        let before = frontend.clock_reads();
        for _ in 0..READS {
            disk.run(&mut frontend, read).unwrap();
        }
        assert_eq!(frontend.clock_reads() - before, 0, "one in flight");
        for _ in 0..READS {
            while disk.in_flight() < DEPTH {
                let slot = disk.free_slot().unwrap();
                disk.submit(&mut frontend, slot, read).unwrap();
            }
            disk.finish(&mut frontend).unwrap();
        }
        assert_eq!(frontend.clock_reads() - before, 0, "several in flight");
        assert_ne!(before, 0, "nothing is counted");
    });
}
