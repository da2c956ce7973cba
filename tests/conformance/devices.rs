//! Devices that come and go (binding section 8), in orders that processes hit only now and then.

use tests::{RawDisk, RawGuest, Rig};

/// Bytes of a disk.
const BYTES: usize = 64 << 10;

#[test]
fn a_bus_that_is_removed_and_made_again_between_two_looks_begins_with_number_0() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    rig.toolstack.write(&bus.back("online"), "0");
    rig.until_node(&bus.back("state"), "6");
    rig.toolstack.remove_bus(bus);
    rig.toolstack.make_bus(bus);
    let line = rig.disk_line("guest.img", BYTES);
    rig.toolstack.make_device(bus, 0, &line);
    rig.until("an answer", |rig| {
        rig.toolstack.read(&bus.device(0, "status"))
    });
    rig.until_node(&bus.device(0, "status"), "ready");
    assert_eq!(rig.toolstack.read(&bus.device(0, "error")), None);
}

#[test]
fn a_number_that_was_used_is_refused() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    rig.toolstack.write(&bus.device(0, "online"), "0");
    rig.until_node(&bus.device(0, "status"), "removed");
    rig.toolstack.remove(&bus.back("device/0"));
    rig.settle();
    let line = rig.disk_line("guest.img", BYTES);
    rig.toolstack.make_device(bus, 0, &line);
    rig.until_node(&bus.device(0, "status"), "failed");
    let error = rig.toolstack.read(&bus.device(0, "error")).unwrap();
    assert!(error.contains("device number 0 was used before"), "{error}");
}

#[test]
fn a_device_that_was_asked_to_go_goes_with_the_connection() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let mut guest = RawGuest::new(&rig, bus);
    guest.connect(&mut rig);
    let pool = guest.share_pool(&mut rig, 1, 16);
    let _disk = RawDisk::bring_up(&mut rig, &mut guest, 0, pool);
    rig.toolstack.write(&bus.device(0, "online"), "0");
    rig.until_node(&bus.device(0, "status"), "removing");
    guest.write("state", "6");
    rig.until_node(&bus.device(0, "status"), "removed");
    assert_eq!(rig.toolstack.read(&bus.back("state")).as_deref(), Some("6"));
}
