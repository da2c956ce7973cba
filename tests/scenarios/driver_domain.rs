//! Several backends: dom0 and a driver domain serve the same guest and different ones at once
//! (binding sections 2 and 9).

use frontend_shim::{Disk, Frontend, FrontendError, Operation};
use tests::{Bus, Ended, Holdings, LIMIT, Machine, Process, Toolstack, make_disk, pattern, vmsg};
use xen_types::DomId;
use xenstore::{Access, Permissions, StoreError, Tree as _};

use crate::scene::{BYTES, start_backend};

/// A machine with a backend in dom0, one in the driver domain `storage`, and the guests `both` and
/// `other`.
struct Scene {
    toolstack: Toolstack,
    storage: DomId,
    both: DomId,
    other: DomId,
    dom0: Process,
    driver: Process,
    machine: Machine,
}

impl Scene {
    fn new() -> Self {
        let machine = Machine::start();
        let [storage, both, other] =
            ["storage", "both", "other"].map(|name| machine.create_domain(name));
        let dom0 = start_backend(&machine);
        let driver = start_driver(&machine, storage);
        let mut toolstack = Toolstack::new(machine.store(DomId::DOM0));
        toolstack.wait("/local/domain/0/backend/virtio-msg", |node| node.is_some());
        Self {
            toolstack,
            storage,
            both,
            other,
            dom0,
            driver,
            machine,
        }
    }

    /// Bus 0 of `both` is dom0's; its bus 1 and bus 0 of `other` are the driver domain's.
    fn with_disks() -> Self {
        let scene = Self::new();
        for args in [
            &["both"][..],
            &["both", "--bus=1", "--backend=storage"],
            &["other", "--backend=storage"],
        ] {
            let ready = scene.attach(&args.join(""), args);
            assert!(ready.succeeded().stdout.ends_with(" device 0: ready\n"));
        }
        scene
    }

    fn attach(&self, image: &str, args: &[&str]) -> Ended {
        let path = self.machine.file(image);
        make_disk(&path, BYTES);
        let line = format!("type=blk,path={}", path.display());
        self.vmsg(DomId::DOM0, &[&["attach"], args, &[&line]].concat())
    }

    fn vmsg(&self, domid: DomId, args: &[&str]) -> Ended {
        Process::start(&mut vmsg(&self.machine, domid, args)).end()
    }

    fn connect(&self, guest: DomId, handle: u32) -> Frontend {
        let mut frontend = Frontend::open(&self.machine.spec(guest), handle).unwrap();
        frontend.connect(LIMIT).unwrap();
        frontend
    }

    fn mapped(&self, domid: DomId) -> u32 {
        self.machine.holdings(domid).mapped
    }

    fn back(&self, guest: DomId, handle: u32) -> String {
        let storage = self.storage;
        format!("/local/domain/{storage}/backend/virtio-msg/{guest}/{handle}")
    }
}

fn start_driver(machine: &Machine, storage: DomId) -> Process {
    Process::start(&mut vmsg(machine, storage, &["backend"]))
}

fn read(frontend: &mut Frontend, disk: &mut Disk) -> Result<(), FrontendError> {
    let operation = Operation::Read {
        sector: 8,
        len: 4096,
    };
    let finished = disk.run(frontend, operation)?;
    let mut found = [0; 4096];
    disk.take(frontend, finished.slot, &mut found)?;
    assert_eq!(found, *pattern(8, 4096));
    Ok(())
}

#[test]
fn two_backends_serve_one_guest_and_another_at_once() {
    let mut scene = Scene::with_disks();
    let mut first = scene.connect(scene.both, 0);
    let mut second = scene.connect(scene.both, 1);
    let mut third = scene.connect(scene.other, 0);
    assert_eq!(first.instance().backend, DomId::DOM0);
    assert_eq!(second.instance().backend, scene.storage);
    let mut disk = Disk::open(&mut first, 0).unwrap();
    let mut others = Disk::open(&mut third, 0).unwrap();
    for _ in 0..10 {
        read(&mut first, &mut disk).unwrap();
        read(&mut third, &mut others).unwrap();
        assert_eq!(second.devices().unwrap(), [0]);
    }
    // A guest may grant no more pages at a time than one bus with a disk takes.
    disk.close(&mut first).unwrap();
    first.leave(LIMIT).unwrap();
    let mut disk = Disk::open(&mut second, 0).unwrap();
    read(&mut second, &mut disk).unwrap();
    read(&mut third, &mut others).unwrap();
    disk.close(&mut second).unwrap();
    others.close(&mut third).unwrap();
    second.leave(LIMIT).unwrap();
    third.leave(LIMIT).unwrap();

    for args in [
        ["detach", "both", "0", "--bus=0"],
        ["detach", "both", "0", "--bus=1"],
        ["detach", "other", "0", "--bus=0"],
    ] {
        scene.vmsg(DomId::DOM0, &args).succeeded();
    }
    for domid in [DomId::DOM0, scene.storage] {
        let root = format!("/local/domain/{domid}/backend/virtio-msg");
        assert_eq!(scene.toolstack.list(&root), [] as [&str; 0]);
        assert_eq!(scene.machine.holdings(domid), Holdings::default());
    }
    assert_eq!(scene.toolstack.list("/vmsg"), [] as [&str; 0]);
    scene.dom0.stop().succeeded();
    scene.driver.stop().succeeded();
    assert_eq!(scene.machine.lock_files(), [] as [&str; 0]);
}

#[test]
fn a_killed_backend_takes_nothing_of_the_others_along_and_its_successor_serves() {
    let mut scene = Scene::with_disks();
    let mut first = scene.connect(scene.both, 0);
    let mut third = scene.connect(scene.other, 0);
    let mut disk = Disk::open(&mut first, 0).unwrap();
    let mut others = Disk::open(&mut third, 0).unwrap();
    read(&mut third, &mut others).unwrap();
    let before = scene.mapped(DomId::DOM0);

    scene.driver.kill();
    assert_eq!(scene.machine.holdings(scene.storage), Holdings::default());
    assert_eq!(scene.mapped(DomId::DOM0), before);
    read(&mut first, &mut disk).unwrap();

    scene.driver = start_driver(&scene.machine, scene.storage);
    let ended = loop {
        if let Err(error) = read(&mut third, &mut others) {
            break error;
        }
    };
    assert!(
        matches!(ended, FrontendError::Disconnected { .. }),
        "{ended}"
    );
    drop(others);
    third.connect(LIMIT).unwrap();
    let mut others = Disk::open(&mut third, 0).unwrap();
    read(&mut third, &mut others).unwrap();
    read(&mut first, &mut disk).unwrap();

    // Who is to be started is named.
    scene.driver.kill();
    let refused = scene.vmsg(DomId::DOM0, &["detach", "other", "0"]);
    let words = format!("no backend runs in domain {}", scene.storage);
    refused.failed(1, &[&words, "--force"]);
    scene.driver = start_driver(&scene.machine, scene.storage);
    while read(&mut third, &mut others).is_ok() {}
    drop(others);
    third.connect(LIMIT).unwrap();
    let mut others = Disk::open(&mut third, 0).unwrap();

    // The other way round.
    scene.dom0.kill();
    assert_eq!(scene.machine.holdings(DomId::DOM0), Holdings::default());
    read(&mut third, &mut others).unwrap();
}

#[test]
fn a_driver_domain_that_dies_takes_its_buses_along_and_no_other() {
    let mut scene = Scene::with_disks();
    let mut first = scene.connect(scene.both, 0);
    let mut third = scene.connect(scene.other, 0);
    let mut disk = Disk::open(&mut first, 0).unwrap();
    scene
        .machine
        .hypervisor()
        .destroy_domain(scene.storage)
        .unwrap();
    while third.devices().is_ok() {}
    read(&mut first, &mut disk).unwrap();

    let list = scene.vmsg(DomId::DOM0, &["list"]);
    let stale = list
        .succeeded()
        .stdout
        .lines()
        .filter(|line| line.contains("one side's domain is gone"))
        .count();
    assert_eq!(stale, 2, "{list:?}");
    // The next call removes what nobody serves any more, and another domain can.
    let ready = scene.attach("new", &["other"]);
    assert!(ready.succeeded().stdout.ends_with(" device 0: ready\n"));
    assert_eq!(scene.toolstack.list("/vmsg").len(), 2);
    let front = Bus::of(scene.other).front("backend-id");
    assert_eq!(scene.toolstack.read(&front).as_deref(), Some("0"));
    read(&mut first, &mut disk).unwrap();
}

#[test]
fn a_guest_that_dies_is_let_go_by_both() {
    let mut scene = Scene::with_disks();
    let mut first = scene.connect(scene.both, 0);
    let _second = scene.connect(scene.both, 1);
    let _disk = Disk::open(&mut first, 0).unwrap();
    assert!(scene.mapped(DomId::DOM0) > 0 && scene.mapped(scene.storage) > 0);
    scene
        .machine
        .hypervisor()
        .destroy_domain(scene.both)
        .unwrap();

    scene.toolstack.wait_gone(&format!(
        "/local/domain/0/backend/virtio-msg/{}",
        scene.both
    ));
    let back = scene.back(scene.both, 1);
    scene.toolstack.wait_gone(&back);
    assert!(scene.machine.is_gone(scene.both));
    for domid in [DomId::DOM0, scene.storage] {
        assert_eq!(scene.machine.holdings(domid), Holdings::default());
    }
    // The disk is free for another; what the driver domain may not remove goes with the same call.
    let image = scene.machine.file("both--bus=1--backend=storage");
    let line = format!("type=blk,path={}", image.display());
    let attach = ["attach", "other", "--bus=1", "--backend=storage", &line];
    let ready = scene.vmsg(DomId::DOM0, &attach);
    assert!(ready.succeeded().stdout.ends_with(" device 0: ready\n"));
    assert_eq!(scene.toolstack.list("/vmsg"), [scene.other.to_string()]);
    let root = format!("/local/domain/{}/backend/virtio-msg", scene.storage);
    assert_eq!(scene.toolstack.list(&root), [scene.other.to_string()]);
    scene.dom0.stop().succeeded();
    let mut locks = scene.machine.lock_files();
    locks.sort();
    assert_eq!(
        locks,
        [0, 1].map(|bus| format!("{}-{bus}.state", scene.other))
    );
}

/// A backend that was not there when the guest died finds out when it starts.
#[test]
fn a_guest_that_died_while_no_driver_ran_is_forgotten_by_the_next() {
    let mut scene = Scene::with_disks();
    scene.driver.kill();
    scene
        .machine
        .hypervisor()
        .destroy_domain(scene.other)
        .unwrap();
    let back = scene.back(scene.other, 0);
    assert!(scene.toolstack.read(&back).is_some());
    scene.driver = start_driver(&scene.machine, scene.storage);
    scene.toolstack.wait_gone(&back);
}

/// It looks dead to a driver domain, which is its own loss.
#[test]
fn a_guest_that_hides_from_its_driver_domain_loses_its_own_bus_alone() {
    let mut scene = Scene::with_disks();
    let mut second = scene.connect(scene.both, 1);
    let front = format!("/local/domain/{}/device/virtio-msg/0", scene.other);
    let hidden = Permissions::private(scene.other);
    let mut guest = scene.machine.store(scene.other);
    guest.set_perms(&front, &hidden).unwrap();
    // Any domain's end makes a backend look after its guests.
    let short = scene.machine.create_domain("short");
    scene.machine.hypervisor().destroy_domain(short).unwrap();
    let back = scene.back(scene.other, 0);
    scene.toolstack.wait_gone(&back);
    assert_eq!(second.devices().unwrap(), [0]);
    let ready = scene.attach("again", &["other", "--backend=storage"]);
    assert!(ready.succeeded().stdout.ends_with(" device 0: ready\n"));
}

/// The pair's permissions; what a driver domain does not serve, it does not see.
#[test]
fn every_driver_domain_sees_domains_go_and_no_guest_does() {
    let scene = Scene::with_disks();
    let second = scene.machine.create_domain("second");
    let late = ["attach", "other", "--bus=1", "--backend=second", "type=rng"];
    scene.vmsg(DomId::DOM0, &late).succeeded();
    let mut stores = [scene.storage, second, scene.both].map(|domid| scene.machine.store(domid));
    for store in &mut stores {
        store.watch("@releaseDomain", "gone").unwrap();
        store.wait_event(LIMIT).unwrap().unwrap();
    }
    let short = scene.machine.create_domain("short");
    scene.machine.hypervisor().destroy_domain(short).unwrap();
    let [storage, second, guest] = &mut stores;
    for driver in [storage, second] {
        let event = driver.wait_event(LIMIT).unwrap().unwrap();
        assert_eq!(event.path, "@releaseDomain");
    }
    // Something later, so that nothing came before it.
    guest.watch("data", "later").unwrap();
    assert_eq!(guest.wait_event(LIMIT).unwrap().unwrap().path, "data");
}

#[test]
fn a_driver_domain_may_touch_its_own_buses_alone() {
    let scene = Scene::with_disks();
    let (storage, both) = (scene.storage, scene.both);
    let back = scene.back(both, 1);
    let mut dom0 = scene.machine.store(DomId::DOM0);
    let readable = |owner, reader| Permissions::private(owner).with(reader, Access::Read);
    for (path, permissions) in [
        (back.clone(), readable(storage, both)),
        (
            format!("/local/domain/{both}/device/virtio-msg/1"),
            readable(both, storage),
        ),
        (format!("{back}/device/0"), Permissions::private(storage)),
        (
            format!("/local/domain/{storage}/backend/virtio-msg"),
            readable(DomId::DOM0, storage),
        ),
    ] {
        assert_eq!(dom0.get_perms(&path).unwrap(), permissions, "{path}");
    }
    let mut store = scene.machine.store(storage);
    let zero = format!("/local/domain/{both}/device/virtio-msg/0");
    let own_root = format!("/local/domain/{storage}/backend/virtio-msg");
    for refused in [
        store.read(&format!("{zero}/state")).map(drop),
        store.write(&format!("{own_root}/0/0/frontend"), "/"),
        store.directory("/vmsg").map(drop),
        store.read("/local/domain/0/backend/virtio-msg").map(drop),
    ] {
        assert!(
            matches!(refused, Err(StoreError::Denied { .. })),
            "{refused:?}"
        );
    }
    let mut guest = scene.machine.store(both);
    assert!(guest.read(&format!("{back}/state")).is_ok());
    for hidden in [format!("{back}/device/0/config"), own_root] {
        assert!(guest.read(&hidden).is_err(), "{hidden}");
    }
}

/// Nodes and watches that the quota of a driver domain must hold, as `vmsg doctor` computes them.
#[test]
fn a_driver_domain_uses_as_much_of_its_quota_as_doctor_says() {
    let mut scene = Scene::new();
    let storage = scene.storage;
    let before = scene.machine.report(storage).nodes;
    for (image, args) in [
        ("a", &["both", "--backend=storage"][..]),
        ("b", &["both"]),
        ("c", &["other", "--backend=storage"]),
    ] {
        scene.attach(image, args).succeeded();
    }
    // Every key is there when an instance has failed once, and a device too.
    let mut frontend = scene.connect(scene.both, 0);
    frontend.devices().unwrap();
    frontend.leave(LIMIT).unwrap();
    for (guest, devices) in [(scene.both, 2), (scene.other, 1)] {
        let back = scene.back(guest, 0);
        scene.toolstack.write(&format!("{back}/error"), "failed");
        for number in 0..devices {
            let error = format!("{back}/device/{number}/error");
            scene.toolstack.write(&error, "failed");
        }
    }
    let nodes = scene.machine.report(storage).nodes - before;
    let mut store = scene.machine.store(storage);
    let free = (0..)
        .take_while(|number: &u32| store.watch("domid", &number.to_string()).is_ok())
        .count();
    let doctor = scene.vmsg(storage, &["doctor"]);
    let needs = format!(
        "what this domain serves needs up to {nodes} nodes, {} watches and 1 transaction",
        128 - free
    );
    assert!(
        doctor.succeeded().stdout.contains(&needs),
        "{needs}: {doctor:?}"
    );
    assert_eq!(nodes, 2 * 17 + 3 * 5);
    assert!(doctor.stdout.contains("serves 2 buses"), "{doctor:?}");
}

/// Dom0 runs into no quota; the backend would, when it answers.
#[test]
fn attach_says_when_a_driver_domain_runs_out_of_nodes() {
    let mut scene = Scene::new();
    let ready = scene.attach("a", &["both", "--backend=storage"]);
    assert!(!ready.succeeded().stderr.contains("quota"), "{ready:?}");
    // 17 for the bus, 5 for a device: two hundred devices are too much.
    for number in 1..200 {
        let device = format!("{}/device/{number}", scene.back(scene.both, 0));
        scene.toolstack.write(&device, "");
    }
    let ready = scene.attach("b", &["other", "--backend=storage"]);
    let words = "needs up to 1039 nodes in XenStore for what it serves, and has 1000";
    assert!(ready.stderr.contains(words), "{ready:?}");
    let words = "xenstore-control quota set nodes 2048";
    assert!(ready.stderr.contains(words), "{ready:?}");
}

#[test]
fn each_side_sees_the_buses_that_are_its_business() {
    let scene = Scene::with_disks();
    let _frontend = scene.connect(scene.other, 0);
    let (storage, both, other) = (scene.storage, scene.both, scene.other);
    let buses = |domid, command| {
        let ended = scene.vmsg(domid, &[command]);
        let rows = ended.succeeded().stdout.lines().skip(1);
        let rows = rows.take_while(|line| !line.is_empty()).map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            [cells[0], cells[2], cells[3]].join(" ")
        });
        rows.collect::<Vec<_>>()
    };
    let own = [
        format!("{both} 1 {storage}"),
        format!("{other} 0 {storage}"),
    ];
    let all = [vec![format!("{both} 0 0")], own.to_vec()].concat();
    for command in ["list", "stat"] {
        assert_eq!(buses(DomId::DOM0, command), all, "{command}");
        assert_eq!(buses(storage, command), own, "{command}");
    }
    let stat = scene.vmsg(storage, &["stat", "--json"]);
    assert!(stat.stdout.contains("\"ring_pages\": 4"), "{stat:?}");
    let report: serde_json::Value = serde_json::from_str(&stat.stdout).unwrap();
    let machine = report["machine"].as_array().unwrap();
    assert_eq!(machine.len(), 1, "a guest is told of itself alone");
    assert_eq!(machine[0]["domain"], storage.0);
    let list = scene.vmsg(storage, &["list", &other.to_string()]);
    assert_eq!(list.succeeded().stdout.lines().count(), 2);
    // A guest that serves nobody has nothing to list.
    scene
        .vmsg(both, &["list"])
        .failed(1, &["only dom0 sees all guests"]);
    scene
        .vmsg(storage, &["attach", "both", "type=rng"])
        .failed(1, &["only dom0"]);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    let mut scene = Scene::new();
    let rng = "type=rng";
    for (args, words) in [
        (["both", "--backend=both", rng], "cannot serve itself"),
        (["both", "--backend=nobody", rng], "no domain named"),
        (["both", "--backend=99", rng], "no domain 99"),
        (
            ["both", "--backend=storage", "type=blk,path=a.img"],
            "give it from / on",
        ),
    ] {
        let args = [&["attach"], &args[..]].concat();
        scene.vmsg(DomId::DOM0, &args).failed(1, &[words]);
    }
    scene
        .vmsg(DomId::DOM0, &["attach", "0", rng])
        .failed(1, &["domain 0 cannot serve itself"]);
    assert_eq!(scene.toolstack.list("/vmsg"), [] as [&str; 0]);
    scene
        .attach("a", &["both", "--backend=storage"])
        .succeeded();
    scene
        .attach("b", &["both", "--backend=0"])
        .failed(1, &["is served by domain", "--bus"]);
    // Who serves the bus need not be said again.
    let ready = scene.attach("c", &["both"]);
    assert!(ready.succeeded().stdout.ends_with("device 1: ready\n"));
}
