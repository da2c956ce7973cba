//! Requests that are there together are told together: one event each way for as many as are in
//! flight, and no other hypercall. Backend and guest take turns, so the numbers are exact.

use std::time::Instant;

use frontend_shim::{Disk, DiskOptions, Frontend, Operation};
use tests::{LIMIT, Rig};
use xen_hal::hosted::Counters;
use xen_types::DomId;

/// Bytes of the disk, and of a read.
const BYTES: usize = 1 << 20;
const READ: usize = 4096;
/// Batches that are counted for each depth.
const BATCHES: u64 = 20;
/// Requests in flight.
const DEPTHS: [usize; 3] = [1, 8, 32];

#[test]
fn a_batch_of_reads_costs_one_event_each_way_whatever_its_depth() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let spec = rig.machine.spec(bus.guest);
    let (mut frontend, mut disk) = rig.while_serving(|_, _| {
        let mut frontend = Frontend::open(&spec, 0).unwrap();
        frontend.connect(LIMIT).unwrap();
        let options = DiskOptions {
            requests: 32,
            request_bytes: READ,
        };
        let disk = Disk::open_with(&mut frontend, 0, options).unwrap();
        (frontend, disk)
    });
    let mut batch = |rig: &mut Rig, depth: usize| {
        for number in 0..depth {
            let slot = disk.free_slot().unwrap();
            let operation = Operation::Read {
                sector: number as u64 * 8,
                len: READ,
            };
            disk.submit(&mut frontend, slot, operation).unwrap();
        }
        // Asks to be told, publishes and notifies, as one that goes to sleep.
        assert_eq!(disk.poll(&mut frontend).unwrap(), None);
        frontend.wait(Some(Instant::now())).unwrap();
        let mut ended = 0;
        while ended < depth {
            let finished = rig.until("the answers", |_| {
                frontend.pump().unwrap();
                disk.poll(&mut frontend).unwrap()
            });
            let mut found = [0; READ];
            disk.take(&mut frontend, finished.slot, &mut found).unwrap();
            ended += 1;
        }
    };
    for depth in DEPTHS {
        // The first one finds both sides as whatever was before left them.
        batch(&mut rig, depth);
        let before = [DomId::DOM0, bus.guest].map(|domid| rig.machine.counters(domid));
        (0..BATCHES).for_each(|_| batch(&mut rig, depth));
        let after = [DomId::DOM0, bus.guest].map(|domid| rig.machine.counters(domid));
        let expected = Counters {
            evtchn_send: BATCHES,
            ..Counters::default()
        };
        assert_eq!(after[0].since(&before[0]), expected, "backend, {depth}");
        assert_eq!(after[1].since(&before[1]), expected, "guest, {depth}");
    }
}
