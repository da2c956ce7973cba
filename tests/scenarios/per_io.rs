//! The cost of a request, in hypercalls (architecture: a send each way, and nothing else; with
//! buffers named by their grants, a copy call each way beside them).

use frontend_shim::{Disk, Frontend, Operation};
use tests::{Bus, LIMIT, Machine, Process, Toolstack, make_disk, vmsg};
use xen_hal::hosted::Counters;
use xen_types::DomId;

/// Reads that are counted.
const READS: u64 = 1000;
/// Bytes of the disk, and of a read.
const BYTES: usize = 1 << 20;
const READ: usize = 4096;

#[test]
fn a_read_costs_one_send_each_way_and_nothing_else() {
    let [backend, guest] = read_with(|_| {});
    let expected = Counters {
        evtchn_send: READS,
        ..Counters::default()
    };
    assert_eq!(backend, expected, "backend");
    assert_eq!(guest, expected, "guest");
}

#[test]
fn a_read_into_granted_pages_costs_two_copy_calls_more() {
    let [backend, guest] = read_with(Frontend::name_grants);
    let expected = Counters {
        evtchn_send: READS,
        ..Counters::default()
    };
    assert_eq!(guest, expected, "guest");
    let expected = Counters {
        grant_copy_calls: 2 * READS,
        grant_copy_segments: backend.grant_copy_segments,
        ..expected
    };
    assert_eq!(backend, expected, "backend");
    // Header, status, and data in one page or two.
    let segments = backend.grant_copy_segments;
    assert!((3 * READS..=4 * READS).contains(&segments), "{segments}");
}

/// What the reads cost the backend's domain, and the guest.
fn read_with(prepare: impl FnOnce(&mut Frontend)) -> [Counters; 2] {
    let machine = Machine::start();
    let mut toolstack = Toolstack::new(machine.store(DomId::DOM0));
    let bus = Bus::of(machine.create_domain("guest"));
    let image = machine.file("disk.img");
    make_disk(&image, BYTES);
    toolstack.make_bus(bus);
    toolstack.make_device(bus, 0, &format!("type=blk,path={}", image.display()));
    let _backend = Process::start(&mut vmsg(&machine, DomId::DOM0, &["backend"]));

    let mut frontend = Frontend::open(&machine.spec(bus.guest), 0).unwrap();
    prepare(&mut frontend);
    frontend.connect(LIMIT).unwrap();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    let mut read = |at: u64| {
        let sector = at * 8 % (BYTES as u64 / 512);
        let operation = Operation::Read { sector, len: READ };
        let finished = disk.run(&mut frontend, operation).unwrap();
        let mut found = [0; READ];
        disk.take(&mut frontend, finished.slot, &mut found).unwrap();
        assert_eq!(found, *tests::pattern(sector, READ));
    };
    // The first one finds both sides as the bring-up left them.
    read(0);
    let before = [DomId::DOM0, bus.guest].map(|domid| machine.counters(domid));
    (1..=READS).for_each(&mut read);
    let after = [DomId::DOM0, bus.guest].map(|domid| machine.counters(domid));
    [0, 1].map(|side: usize| after[side].since(&before[side]))
}
