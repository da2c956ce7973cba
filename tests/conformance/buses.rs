//! Several buses of one guest (binding section 2): each is a connection of its own, with its own
//! ring, areas and devices, under one handle each.

use tests::{Bus, Holdings, RawDisk, RawGuest, Rig, write_pattern};
use xen_types::DomId;

/// Bytes of a disk, and of a read.
const BYTES: usize = 64 << 10;
const READ: u32 = 4096;
/// Pages of the memory that is shared over each bus.
const POOL: usize = 16;
/// Buses that the backend finds in one turn.
const MANY: u32 = 32;

/// A bus with its one disk in use.
struct InUse {
    guest: RawGuest,
    disk: RawDisk,
    data: u64,
}

impl InUse {
    /// Makes bus `handle` of the guest, with a disk of generation `handle`, and brings it up. Every
    /// bus uses the same area id.
    fn bring_up(rig: &mut Rig, domid: DomId, handle: u32) -> Self {
        let bus = Bus {
            guest: domid,
            handle,
        };
        rig.toolstack.make_bus(bus);
        let image = rig.machine.file(&format!("{handle}.img"));
        let mut bytes = vec![0; BYTES];
        write_pattern(&mut bytes, 0, handle.into());
        std::fs::write(&image, bytes).unwrap();
        let line = format!("type=blk,path={}", image.display());
        rig.toolstack.make_device(bus, 0, &line);
        rig.until_node(&bus.device(0, "status"), "ready");
        let mut guest = RawGuest::new(rig, bus);
        guest.connect(rig);
        let pool = guest.share_pool(rig, 1, POOL);
        let mut disk = RawDisk::bring_up(rig, &mut guest, 0, pool);
        let (_, data) = disk.take(READ as usize);
        Self { guest, disk, data }
    }

    /// The disk of this bus, and no other, answers.
    #[track_caller]
    fn assert_serves(&mut self, rig: &mut Rig) {
        let Self { guest, disk, data } = self;
        disk.write(*data, &vec![0; READ as usize]);
        let status = disk.read_request(0, 8, *data, READ);
        let before = disk.used();
        disk.offer(guest, 0);
        rig.until("a used buffer", |_| (disk.used() != before).then_some(()));
        assert_eq!(disk.read(status, 1), [0]);
        let mut expected = vec![0; READ as usize];
        write_pattern(&mut expected, 8, guest.bus.handle.into());
        assert!(disk.read(*data, READ) == expected, "{:?}", guest.bus);
    }
}

#[test]
fn the_buses_of_a_guest_serve_side_by_side_and_end_apart() {
    let mut rig = Rig::start();
    let domid = rig.machine.create_domain("guest");
    let mut first = InUse::bring_up(&mut rig, domid, 0);
    let alone = rig.machine.holdings(DomId::DOM0);
    let mut second = InUse::bring_up(&mut rig, domid, 1);
    for _ in 0..3 {
        first.assert_serves(&mut rig);
        second.assert_serves(&mut rig);
    }

    // The end of one is nothing to the other.
    let bus = second.guest.bus;
    second.guest.write("state", "6");
    rig.until_node(&bus.back("state"), "6");
    assert_eq!(rig.machine.holdings(DomId::DOM0), alone);
    first.assert_serves(&mut rig);
}

#[test]
fn a_guest_that_dies_takes_all_its_buses_with_it() {
    let mut rig = Rig::start();
    let domid = rig.machine.create_domain("guest");
    let buses = [0, 1, 7].map(|handle| InUse::bring_up(&mut rig, domid, handle));
    assert_eq!(rig.service().sessions(), buses.len());
    rig.machine.hypervisor().destroy_domain(domid).unwrap();
    rig.until("the end of all buses", |rig| {
        (rig.service().sessions() == 0).then_some(())
    });
    drop(buses);
    assert!(rig.machine.is_gone(domid));
    assert_eq!(rig.machine.report(domid).nodes, 0);
    assert_eq!(rig.machine.holdings(domid), Holdings::default());
    assert_eq!(rig.machine.holdings(DomId::DOM0), Holdings::default());
    for path in ["/local/domain/0/backend/virtio-msg", "/vmsg"] {
        assert_eq!(rig.toolstack.list(path), [] as [&str; 0], "{path}");
    }
    assert_eq!(rig.machine.lock_files(), [] as [&str; 0]);
}

/// Events that wait for the backend are merged if they are alike: the one that comes of setting the
/// watch may be all that is heard of a state that was written meanwhile.
#[test]
fn a_guest_is_heard_that_answers_while_the_backend_finds_others() {
    let mut rig = Rig::start();
    let guest = rig.machine.create_domain("guest");
    let buses = (0..MANY).map(|handle| Bus { guest, handle });
    for bus in buses.clone() {
        rig.toolstack.make_bus(bus);
        let line = rig.disk_line(&format!("{}.img", bus.handle), BYTES);
        rig.toolstack.make_device(bus, 0, &line);
    }
    rig.restart();
    let first = Bus { guest, handle: 0 };
    let mut raw = RawGuest::new(&rig, first);
    rig.while_serving(|_, toolstack| {
        toolstack.wait_for(&first.back("state"), "2");
        let keys = raw.share_ring(2);
        raw.publish(&keys.emit());
        toolstack.wait_for(&first.back("state"), "4");
    });
    for bus in buses.skip(1) {
        rig.until_node(&bus.back("state"), "2");
    }
}
