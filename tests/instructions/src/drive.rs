//! Reads by a frontend in this process, and a backend in the same thread that answers in between.

use frontend_shim::{Disk, DiskOptions, Frontend, Operation};
use instructions::BATCH;
use tests::{LIMIT, Rig, keep_to_one_processor};

/// Bytes of the disk, and of each read.
const DISK: usize = 1 << 20;
const READ: usize = 4096;

/// So many batches of reads, `depth` of them in flight.
pub(super) fn drive(depth: u32, rounds: u32) {
    // There nobody looks for an event before it sleeps.
    keep_to_one_processor();
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", DISK);
    let spec = rig.machine.spec(bus.guest);
    let (mut frontend, mut disk) = rig.while_serving(|_, _| {
        let mut frontend = Frontend::open(&spec, 0).expect("a bus");
        frontend.connect(LIMIT).expect("a backend");
        let options = DiskOptions {
            requests: depth as usize,
            request_bytes: READ,
        };
        let disk = Disk::open_with(&mut frontend, 0, options).expect("a disk");
        (frontend, disk)
    });
    assert_eq!(disk.slots(), depth as usize, "room for all");
    rig.settle();
    for round in 0..rounds * BATCH / depth {
        let sector = u64::from(round) * 8 % (DISK as u64 / 512);
        let read = Operation::Read { sector, len: READ };
        measured::submit(&mut frontend, &mut disk, read);
        rig.settle();
        measured::finish(&mut frontend, &mut disk);
    }
}

/// What callgrind counts. Not inlined, so that it finds their beginning and end.
mod measured {
    use frontend_shim::{Disk, Frontend, Operation};

    /// Makes as many requests available as there can be, and notifies.
    #[inline(never)]
    pub(super) fn submit(frontend: &mut Frontend, disk: &mut Disk, read: Operation) {
        while let Some(slot) = disk.free_slot() {
            disk.submit(frontend, slot, read).expect("room");
        }
        frontend.flush().expect("a backend");
    }

    /// Waits for the event that is there, and takes all answers; their data stays where it is.
    #[inline(never)]
    pub(super) fn finish(frontend: &mut Frontend, disk: &mut Disk) {
        while disk.in_flight() > 0 {
            disk.finish(frontend).expect("an answer");
        }
    }
}
