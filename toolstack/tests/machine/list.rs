//! `vmsg list`: the table and the JSON.

use frontend_shim::Frontend;
use serde_json::json;
use xen_types::DomId;
use xenstore::Tree as _;

use crate::rig::{GUEST, Machine};

#[test]
fn a_machine_without_buses_has_an_empty_list() {
    let machine = Machine::start(1);
    assert_eq!(machine.dom0(&["list", "--json"]).json(), json!([]));
    for command in ["list", "stat"] {
        let list = machine.dom0(&[command]);
        let first = list.succeeded().stdout.lines().next();
        let sentence = "no virtio-msg devices; `vmsg attach DOMAIN CONFIG` gives one to a guest";
        assert_eq!(first, Some(sentence));
        assert_eq!(list.stderr, "");
    }
    let list = machine.vmsg(GUEST, &["frontend", "list"]);
    let sentence = "no virtio-msg devices; `vmsg attach` in dom0 gives this domain one\n";
    assert_eq!(list.succeeded().stdout, sentence);
    assert_eq!(list.stderr, "");
}

#[test]
fn every_device_of_every_guest_is_listed() {
    let machine = Machine::start(2);
    let _backend = machine.start_backend();
    let disk = machine.disk("disk.img", &[0; 4096]);
    let path = disk.to_str().unwrap();
    let uuid = "00000000-0000-4000-8000-000000000001";
    let config = format!("type=blk,mode=ro,serial=root,uuid={uuid},path={path}");
    machine.dom0(&["attach", "guest1", &config]).succeeded();
    let other = machine.disk("other.img", &[0; 4096]);
    let config = format!("type=blk,path={}", other.display());
    machine
        .dom0(&["attach", "guest2", "--bus=3", &config])
        .succeeded();

    // The frontend never starts here, so its state stays 1.
    machine.wait_for("/local/domain/0/backend/virtio-msg/1/0/state", |state| {
        state == Some("2")
    });
    let list = machine.dom0(&["list", "--json"]).json();
    assert_eq!(
        list[0],
        json!({
            "domain": 1, "name": "guest1", "bus": 0, "backend": 0,
            "backend_state": "init-wait", "frontend_state": "initialising",
            "stale": false, "error": null,
            "devices": [{
                "device": 0, "type": "blk", "mode": "ro", "serial": "root", "queues": 1,
                "uuid": uuid, "path": path, "online": "1", "status": "ready", "error": null,
            }],
        })
    );
    assert_eq!(list[1]["domain"], 2);
    assert_eq!(list[1]["bus"], 3);
    let only = machine.dom0(&["list", "guest2", "--json"]).json();
    assert_eq!(only.as_array().unwrap().len(), 1);
    assert_eq!(only[0]["name"], "guest2");

    let table = machine.dom0(&["list", "1"]);
    let rows: Vec<Vec<&str>> = table
        .succeeded()
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].len(), rows[1].len());
    let row = [
        "1",
        "guest1",
        "0",
        "0",
        "init-wait",
        "initialising",
        "0",
        "blk",
        "ro",
        "ready",
    ];
    assert_eq!(rows[1][..10], row);
    assert_eq!(rows[1][10..], [path, "-"]);
}

#[test]
fn what_a_guest_writes_is_shown_and_commands_nothing() {
    let machine = Machine::start(1);
    let disk = machine.disk("disk.img", &[0; 512]);
    let config = format!("type=blk,path={}", disk.display());
    machine.dom0(&["attach", "1", &config]).succeeded();
    let mut guest = machine.store(GUEST);
    guest
        .write("device/virtio-msg/0/state", "\x1b[2J4")
        .unwrap();
    guest.write("device/virtio-msg/0/backend-id", "9").unwrap();
    let list = machine.dom0(&["list", "--json"]).json();
    assert_eq!(list[0]["frontend_state"], "unknown");
    assert_eq!(list[0]["backend"], 0);

    // Nor does what a driver domain writes.
    let error = "/local/domain/0/backend/virtio-msg/1/0/error";
    machine
        .store(DomId::DOM0)
        .write(error, "\x1b]0;owned\x07")
        .unwrap();
    let list = machine.dom0(&["list"]);
    assert!(!list.succeeded().stdout.contains('\x1b'));
    assert!(list.stdout.contains("?]0;owned?"), "{}", list.stdout);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let machine = Machine::start(1);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut list = machine.command(DomId::DOM0, &["list"]);
    let output = list.stdout(writer).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_guest_lists_what_it_has_whatever_it_is() {
    let machine = Machine::start(1);
    let none = machine.vmsg(GUEST, &["frontend", "list", "--json"]);
    assert_eq!(none.json(), json!([]));
    let _backend = machine.start_backend();
    let disk = machine.disk("disk.img", &[0; 4096]);
    let config = format!("type=blk,mode=ro,serial=root,path={}", disk.display());
    machine.dom0(&["attach", "1", &config]).succeeded();
    machine.dom0(&["attach", "1", "type=rng"]).succeeded();
    let list = machine.vmsg(GUEST, &["frontend", "list", "--json"]).json();
    assert_eq!(
        list,
        json!([
            {
                "bus": 0, "backend": 0, "device": 0, "type": "blk",
                "bytes": 4096, "read_only": true, "serial": "root",
                "status": "ready", "reason": null,
            },
            {
                "bus": 0, "backend": 0, "device": 1, "type": "rng",
                "bytes": null, "read_only": null, "serial": null,
                "status": "ready", "reason": null,
            },
        ])
    );
}

#[test]
fn a_bus_that_does_not_answer_hides_no_other() {
    let machine = Machine::start(2);
    let _backend = machine.start_backend();
    for (bus, backend) in [(0, "0"), (1, "guest2"), (2, "0"), (3, "0")] {
        let disk = machine.disk(&format!("{bus}.img"), &[0; 4096]);
        let config = format!("type=blk,path={}", disk.display());
        let (bus, backend) = (format!("--bus={bus}"), format!("--backend={backend}"));
        machine
            .dom0(&["attach", "1", &bus, &backend, &config])
            .succeeded();
    }
    let spec = format!("hosted:{},{GUEST}", machine.dir().display());
    let spec = spec.parse().unwrap();
    let held = Frontend::open(&spec, 2).unwrap();
    let list = machine.vmsg(GUEST, &["frontend", "list", "--json"]);
    list.failed(1, &["1 of these lines failed"]);
    let rows: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    let seen: Vec<_> = rows.as_array().unwrap().iter().collect();
    let column = |key| -> Vec<_> { seen.iter().map(|row| &row[key]).collect() };
    assert_eq!(column("bus"), [0, 1, 2, 3]);
    assert_eq!(column("status"), ["ready", "failed", "in-use", "ready"]);
    for (row, words) in [(1, "no backend runs there"), (2, "another vmsg process")] {
        let reason = rows[row]["reason"].as_str().unwrap();
        assert!(reason.contains(words), "{reason}");
        assert_eq!(rows[row]["device"], json!(null));
    }
    drop(held);

    // One that is only in use is no failure.
    machine
        .dom0(&["detach", "1", "--bus=1", "--all", "--force"])
        .succeeded();
    let _held = Frontend::open(&spec, 2).unwrap();
    let table = machine.vmsg(GUEST, &["frontend", "list"]);
    let lines: Vec<_> = table.succeeded().stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{table:?}");
    assert!(lines[2].contains("in-use"), "{table:?}");
}
