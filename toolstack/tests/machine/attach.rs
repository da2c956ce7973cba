//! `vmsg attach` and `vmsg detach`: what stands in XenStore afterwards, and what is refused.

use std::process::Stdio;
use std::time::Duration;

use frontend_shim::{Disk, Frontend};
use xen_hal::hosted::Hypervisor;
use xen_types::DomId;
use xenstore::{Access, Permissions, Tree as _};

use crate::rig::{GUEST, Machine};

const DEVICES: &str = "/local/domain/0/backend/virtio-msg/1/0/device";

fn line(machine: &Machine, name: &str) -> String {
    let disk = machine.disk(name, &[0; 4096]);
    format!("type=blk,serial={name},path={}", disk.display())
}

/// A guest that has the disk in use.
fn use_disk(machine: &Machine) -> (Frontend, Disk) {
    let spec = format!("hosted:{},{GUEST}", machine.dir().display());
    let mut frontend = Frontend::open(&spec.parse().unwrap(), 0).unwrap();
    frontend.connect(Duration::from_secs(30)).unwrap();
    let disk = Disk::open(&mut frontend, 0).unwrap();
    (frontend, disk)
}

#[test]
fn what_a_device_is_made_of_is_not_the_guests_business() {
    let machine = Machine::start(1);
    let attached = machine.dom0(&["attach", "guest1", &line(&machine, "root")]);
    let waits = format!(
        "domain 1 bus 0 device 0: waits for a backend (start `vmsg --platform hosted:{},0 backend`)\n",
        machine.dir().display()
    );
    assert_eq!(attached.succeeded().stdout, waits);

    let mut dom0 = machine.store(DomId::DOM0);
    let back = "/local/domain/0/backend/virtio-msg/1/0";
    let front = "/local/domain/1/device/virtio-msg/0";
    for (path, permissions) in [
        (
            back,
            Permissions::private(DomId::DOM0).with(GUEST, Access::Read),
        ),
        (
            front,
            Permissions::private(GUEST).with(DomId::DOM0, Access::Read),
        ),
        ("/vmsg/1/0", Permissions::private(DomId::DOM0)),
    ] {
        assert_eq!(dom0.get_perms(path).unwrap(), permissions, "{path}");
    }
    let mut guest = machine.store(GUEST);
    assert_eq!(guest.read(&format!("{back}/state")).unwrap(), b"1");
    for key in ["", "/config", "/online"] {
        let path = format!("{DEVICES}/0{key}");
        assert_eq!(
            dom0.get_perms(&path).unwrap(),
            Permissions::private(DomId::DOM0)
        );
        assert!(guest.read(&path).unwrap_err().is_absent(), "{path}");
    }
    assert!(guest.directory("/vmsg").unwrap_err().is_absent());

    // Nobody has seen it, so nobody is asked.
    machine.dom0(&["detach", "1", "0"]).succeeded();
    machine.assert_no_bus(GUEST);
}

#[test]
fn numbers_are_not_given_again_while_the_bus_lives() {
    let machine = Machine::start(1);
    let _backend = machine.start_backend();
    for number in 0..2 {
        let attached = machine.dom0(&["attach", "1", &line(&machine, &format!("disk{number}"))]);
        let ready = format!("domain 1 bus 0 device {number}: ready\n");
        assert_eq!(attached.succeeded().stdout, ready);
    }
    let detached = machine.dom0(&["detach", "1", "1"]);
    assert_eq!(
        detached.succeeded().stdout,
        "domain 1 bus 0 device 1: removed\n"
    );
    let attached = machine.dom0(&["attach", "1", &line(&machine, "disk2")]);
    assert!(attached.succeeded().stdout.contains("device 2: ready"));

    let all = machine.dom0(&["detach", "guest1", "--all"]);
    assert_eq!(all.succeeded().stdout, "domain 1 bus 0: removed\n");
    machine.assert_no_bus(GUEST);
    let attached = machine.dom0(&["attach", "1", &line(&machine, "disk3")]);
    assert!(attached.succeeded().stdout.contains("device 0: ready"));
}

#[test]
fn a_device_that_cannot_be_opened_leaves_nothing() {
    let machine = Machine::start(1);
    let _backend = machine.start_backend();
    let missing = machine.file("missing.img");
    let config = format!("type=blk,path={}", missing.display());
    machine
        .dom0(&["attach", "guest1", &config])
        .failed(1, &["vmsg: domain 1 bus 0", "missing.img"]);
    machine.assert_no_bus(GUEST);

    machine
        .dom0(&["attach", "guest1", &line(&machine, "good")])
        .succeeded();
    machine.dom0(&["attach", "guest1", &config]).failed(1, &[]);
    assert_eq!(machine.children(DEVICES), ["0"]);
}

#[test]
fn what_a_backend_misses_for_a_device_is_said() {
    let machine = Machine::start(1);
    machine
        .dom0(&["attach", "1", &line(&machine, "disk0")])
        .succeeded();
    // As a backend without descriptors answers to the next one.
    let mut store = machine.store(DomId::DOM0);
    for (key, value) in [("status", "building"), ("error", "Too many open files")] {
        store.write(&format!("{DEVICES}/1/{key}"), value).unwrap();
    }
    let attached = machine.dom0(&["attach", "1", &line(&machine, "disk1")]);
    assert_eq!(
        attached.succeeded().stdout,
        "domain 1 bus 0 device 1: waits, and the backend tries again by itself: Too many open files\n"
    );
}

#[test]
fn a_relative_path_is_one_of_whoever_types_it() {
    let machine = Machine::start(1);
    let _backend = machine.start_backend();
    machine.disk("here.img", &[0; 512]);
    let mut attach = machine.command(DomId::DOM0, &["attach", "1", "type=blk,path=here.img"]);
    let output = attach.current_dir(machine.dir()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_bus_that_is_going_down_takes_no_device() {
    let machine = Machine::start(1);
    machine
        .dom0(&["attach", "1", &line(&machine, "a")])
        .succeeded();
    let online = "/local/domain/0/backend/virtio-msg/1/0/online";
    machine.store(DomId::DOM0).write(online, "0").unwrap();
    machine
        .dom0(&["attach", "1", &line(&machine, "b")])
        .failed(1, &["domain 1 bus 0", "being removed", "--bus"]);
    machine
        .dom0(&["attach", "1", "--bus=1", &line(&machine, "b")])
        .succeeded();
}

#[test]
fn what_a_dead_domain_left_goes_with_the_next_call() {
    let machine = Machine::start(2);
    machine
        .dom0(&["attach", "1", &line(&machine, "a")])
        .succeeded();
    machine
        .dom0(&["attach", "2", &line(&machine, "b")])
        .succeeded();
    let hypervisor = Hypervisor::connect(machine.dir()).unwrap();
    hypervisor.destroy_domain(GUEST).unwrap();

    let list = machine.dom0(&["list", "--json"]).json();
    assert_eq!(list[0]["stale"], true, "{list}");
    assert_eq!(list[0]["frontend_state"], "absent");
    assert_eq!(list[1]["stale"], false);

    machine
        .dom0(&["attach", "2", &line(&machine, "c")])
        .succeeded();
    machine.assert_no_bus(GUEST);
    let list = machine.dom0(&["list", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list[0]["devices"].as_array().unwrap().len(), 2);
}

#[test]
fn a_number_that_another_domain_got_does_not_inherit_a_bus() {
    let machine = Machine::start(1);
    machine
        .dom0(&["attach", "1", &line(&machine, "a")])
        .succeeded();
    let made_for = "/local/domain/0/backend/virtio-msg/1/0/frontend-uuid";
    machine
        .store(DomId::DOM0)
        .write(made_for, "somebody else")
        .unwrap();
    let attached = machine.dom0(&["attach", "1", &line(&machine, "b")]);
    assert!(attached.succeeded().stdout.contains("device 0"));
    assert_eq!(machine.children(DEVICES), ["0"]);
}

#[test]
fn a_dead_domain_ends_a_detach_that_waits() {
    let machine = Machine::start(1);
    let _backend = machine.start_backend();
    machine
        .dom0(&["attach", "1", &line(&machine, "a")])
        .succeeded();
    // A driver that does not let go.
    let (_frontend, _disk) = use_disk(&machine);
    let mut detach = machine.command(DomId::DOM0, &["detach", "1", "0"]);
    let detach = detach.stdout(Stdio::piped()).spawn().unwrap();
    let status = format!("{DEVICES}/0/status");
    machine.wait_for(&status, |status| status == Some("removing"));
    let hypervisor = Hypervisor::connect(machine.dir()).unwrap();
    hypervisor.destroy_domain(GUEST).unwrap();
    let output = detach.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    machine.assert_no_bus(GUEST);
}

#[test]
fn without_a_backend_a_connected_guest_keeps_its_device_unless_forced() {
    let machine = Machine::start(1);
    let backend = machine.start_backend();
    machine
        .dom0(&["attach", "1", &line(&machine, "a")])
        .succeeded();
    let (_frontend, _disk) = use_disk(&machine);
    drop(backend);
    for args in [["detach", "1", "0"], ["detach", "1", "--all"]] {
        machine
            .dom0(&args)
            .failed(1, &["no backend runs", "--force"]);
    }
    // Nothing was asked for either.
    let online = "/local/domain/0/backend/virtio-msg/1/0/online";
    machine.wait_for(online, |online| online == Some("1"));
    machine.wait_for(&format!("{DEVICES}/0/online"), |online| online == Some("1"));
    machine.dom0(&["detach", "1", "0", "--force"]).succeeded();
    machine.assert_no_bus(GUEST);
}

#[test]
fn who_is_not_there_is_named() {
    let machine = Machine::start(1);
    let config = line(&machine, "a");
    for domain in ["nobody", "7", "99999"] {
        machine
            .dom0(&["attach", domain, &config])
            .failed(1, &[domain, "xl list"]);
    }
    machine
        .dom0(&["detach", "guest1", "0"])
        .failed(1, &["domain 1 has no bus 0"]);
    machine.dom0(&["attach", "guest1", &config]).succeeded();
    machine
        .dom0(&["detach", "guest1", "5"])
        .failed(1, &["domain 1 bus 0 has no device 5"]);
    machine.dom0(&["detach", "guest1"]).failed(2, &[]);
    for args in [
        &["list"][..],
        &["attach", "guest1", &config],
        &["detach", "1", "0"],
    ] {
        machine
            .vmsg(GUEST, args)
            .failed(1, &["this is domain 1", "vmsg frontend list"]);
    }
}
