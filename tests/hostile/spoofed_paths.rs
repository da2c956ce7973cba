//! Nodes that lead elsewhere.
//!
//! Attack: It rewrites `backend`, `backend-id` and nodes that look like the toolstack's in its own
//! directory, so that they name other domains' directories.
//!
//! Outcome: The backend takes the guest's number and directory from its own directory, and reads no
//! path that a guest wrote (binding section 2). The guest's device goes on; the directories that it
//! named stay as they are.
//!
//! Line: none.
//!
//! Class: 10 (XSA-115, CA-191040)

use crate::rig::stage::Stage;

#[test]
fn no_path_of_the_guest_is_followed() {
    let mut stage = Stage::new();
    let other = "/local/domain/0/backend/virtio-msg/1/0";
    let before = |stage: &mut Stage| {
        let read = |key: &str| stage.rig.toolstack.read(&format!("{other}/{key}"));
        ["state", "session", "online", "error"].map(read)
    };
    let untouched = before(&mut stage);
    for (key, value) in [
        ("backend", other),
        ("backend-id", "1"),
        ("frontend", "/local/domain/1/device/virtio-msg/0"),
        ("frontend-id", "1"),
        ("online", "0"),
        ("error", "nonsense"),
        ("device/0/config", "type=blk,path=/etc/shadow"),
        ("device/0/online", "1"),
        ("device/1/config", "type=blk,path=/etc/shadow"),
        ("device/1/online", "1"),
    ] {
        stage.guest.write(key, value);
        stage.rig.settle();
    }
    let mut disk = stage.hostile_disk();
    stage.assert_hostile_served(&mut disk);
    assert_eq!(before(&mut stage), untouched);
    assert_eq!(stage.backend_says("device/1/status"), None);
    assert_eq!(stage.backend_says("error"), None);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn nothing_of_the_backend_or_of_others_can_be_written_or_read() {
    use xenstore::Tree as _;

    let mut stage = Stage::new();
    let bus = stage.bus;
    let other = tests::Bus::of(xen_types::DomId(1));
    for path in [
        bus.back("state"),
        bus.back("online"),
        bus.device(0, "config"),
        bus.record("backend"),
        other.front("state"),
        other.back("state"),
    ] {
        assert!(stage.guest.store.write(&path, "1").is_err(), "{path}");
    }
    for path in [
        bus.device(0, "config"),
        bus.device(0, "online"),
        bus.record("backend"),
        other.front("session"),
        other.back("session"),
    ] {
        assert!(stage.guest.store.read(&path).is_err(), "{path}");
    }
    let mut disk = stage.hostile_disk();
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}
