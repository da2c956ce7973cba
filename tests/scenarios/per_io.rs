//! The cost of a request, in hypercalls (architecture: a send each way, and nothing else; with
//! buffers named by their grants, a copy call each way beside them).

use frontend_shim::{Disk, Frontend, Operation};
use tests::{Bus, LIMIT, Machine, Process, Toolstack, keep_to_one_processor, make_disk, vmsg};
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
        // Header, status, and data in one page.
        grant_copy_segments: 3 * READS,
        ..expected
    };
    assert_eq!(backend, expected, "backend");
}

/// As many in flight as `vmsg frontend blk bench` is told.
const DEPTHS: [u64; 4] = [1, 8, 32, 128];
/// Batches of a load, and of one that is longer: what both have drops out.
const BATCHES: [u64; 2] = [20, 120];
/// Reads whose buffers the backend copies with one call, if so many are there.
const BUFFERS_PER_CALL: u64 = 64;

#[test]
fn reads_in_flight_together_share_one_send_each_way() {
    for depth in DEPTHS {
        let (reads, sides) = load(depth, &[]);
        for (side, counted) in ["backend", "guest"].into_iter().zip(sides) {
            let sends = counted.evtchn_send;
            // One for all in flight, and 2 in 100 reads.
            let most = reads / depth + reads / 50;
            assert!(sends <= most, "{side}, {depth} in flight: {sends} sends");
            let rest = Counters {
                evtchn_send: 0,
                ..counted
            };
            assert_eq!(rest, Counters::default(), "{side}, {depth} in flight");
        }
    }
}

#[test]
fn reads_into_granted_pages_share_one_copy_call_each_way() {
    for depth in DEPTHS {
        let (reads, [backend, _]) = load(depth, &["--grants"]);
        let calls = backend.grant_copy_calls;
        assert!(calls > 0, "nothing was copied");
        let most = 2 * reads / depth.min(BUFFERS_PER_CALL);
        assert!(calls <= most, "{depth} in flight: {calls} calls");
    }
}

/// A load with so many reads in flight: how many the longer has more than the shorter, and what
/// those cost the backend's domain, and the guest.
fn load(depth: u64, args: &[&str]) -> (u64, [Counters; 2]) {
    keep_to_one_processor();
    let (machine, bus, _backend) = machine_with_disk();
    let counted = BATCHES.map(|batches| {
        let (depth, reads) = (depth.to_string(), (depth * batches).to_string());
        let load = ["frontend", "blk", "bench", "0", "--bs", "512"];
        let size = ["--iodepth", &depth, "--requests", &reads];
        let before = counters(&machine, bus);
        let args = [&load[..], &size, args].concat();
        let ended = Process::start(&mut vmsg(&machine, bus.guest, &args)).end();
        ended.succeeded();
        let after = counters(&machine, bus);
        [0, 1].map(|side: usize| after[side].since(&before[side]))
    });
    let [shorter, longer] = counted;
    let more = [0, 1].map(|side: usize| longer[side].since(&shorter[side]));
    (depth * (BATCHES[1] - BATCHES[0]), more)
}

/// What the reads cost the backend's domain, and the guest.
fn read_with(prepare: impl FnOnce(&mut Frontend)) -> [Counters; 2] {
    let (machine, bus, _backend) = machine_with_disk();
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
    let before = counters(&machine, bus);
    (1..=READS).for_each(&mut read);
    let after = counters(&machine, bus);
    [0, 1].map(|side: usize| after[side].since(&before[side]))
}

/// A guest with a disk, and a backend.
fn machine_with_disk() -> (Machine, Bus, Process) {
    let machine = Machine::start();
    let mut toolstack = Toolstack::new(machine.store(DomId::DOM0));
    let bus = Bus::of(machine.create_domain("guest"));
    let image = machine.file("disk.img");
    make_disk(&image, BYTES);
    toolstack.make_bus(bus);
    toolstack.make_device(bus, 0, &format!("type=blk,path={}", image.display()));
    let backend = Process::start(&mut vmsg(&machine, DomId::DOM0, &["backend"]));
    (machine, bus, backend)
}

/// Hypercalls of the backend's domain, and of the guest.
fn counters(machine: &Machine, bus: Bus) -> [Counters; 2] {
    [DomId::DOM0, bus.guest].map(|domid| machine.counters(domid))
}
