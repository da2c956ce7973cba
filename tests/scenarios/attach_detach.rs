//! `vmsg attach` and `vmsg detach`, with a running backend and with a guest at work.

use frontend_shim::{Disk, Frontend, Operation};
use tests::{Bus, LIMIT, Rig, pattern};

use crate::scene::{Scene, start_backend};

fn read(frontend: &mut Frontend, disk: &mut Disk) {
    let operation = Operation::Read {
        sector: 8,
        len: 4096,
    };
    let finished = disk.run(frontend, operation).unwrap();
    let mut found = [0; 4096];
    disk.take(frontend, finished.slot, &mut found).unwrap();
    assert_eq!(found, *pattern(8, 4096));
}

#[test]
fn a_device_comes_and_goes_while_another_is_in_use() {
    let mut scene = Scene::new();
    assert_eq!(
        scene.attach("first").succeeded().stdout,
        format!("domain {} bus 0 device 0: ready\n", scene.bus.guest)
    );
    let mut frontend = scene.frontend();
    let mut first = Disk::open(&mut frontend, 0).unwrap();
    read(&mut frontend, &mut first);

    assert!(
        scene
            .attach("second")
            .succeeded()
            .stdout
            .ends_with("device 1: ready\n")
    );
    assert_eq!(frontend.devices().unwrap(), [0, 1]);
    let mut second = Disk::open(&mut frontend, 1).unwrap();
    assert_eq!(second.serial(&mut frontend).unwrap(), "second");
    read(&mut frontend, &mut second);
    read(&mut frontend, &mut first);
    second.close(&mut frontend).unwrap();

    scene.vmsg(&["detach", "guest", "1"]).succeeded();
    assert_eq!(frontend.devices().unwrap(), [0]);
    read(&mut frontend, &mut first);

    // A number is never given twice.
    assert!(
        scene
            .attach("third")
            .succeeded()
            .stdout
            .ends_with("device 2: ready\n")
    );
    assert_eq!(frontend.devices().unwrap(), [0, 2]);
    read(&mut frontend, &mut first);

    first.close(&mut frontend).unwrap();
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    let mut last = scene.start(&["detach", "guest", "2"]);
    frontend.leave(LIMIT).unwrap();
    last.end().succeeded();
    scene.assert_clean();
    scene.backend.stop().succeeded();
}

#[test]
fn a_device_in_use_leaves_when_its_driver_lets_go() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let mut frontend = scene.frontend();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    read(&mut frontend, &mut disk);
    let mut detach = scene.start(&["detach", "guest", "0"]);
    scene
        .toolstack
        .wait_for(&scene.bus.device(0, "status"), "removing");
    // Asked, not forced: it still serves, until this driver notices in one of its waits.
    while let Ok(finished) = disk.run(
        &mut frontend,
        Operation::Read {
            sector: 0,
            len: 512,
        },
    ) {
        assert_eq!(finished.slot, 0);
    }
    disk.close(&mut frontend).unwrap();
    frontend.leave(LIMIT).unwrap();
    detach.end().succeeded();
    scene.assert_clean();
}

#[test]
fn force_asks_nobody() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let mut frontend = scene.frontend();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    read(&mut frontend, &mut disk);
    let mut detach = scene.start(&["detach", "guest", "0", "--force"]);
    scene
        .toolstack
        .wait(&scene.bus.device(0, "status"), |status| {
            matches!(status, Some("removed") | None)
        });
    let error = disk
        .run(
            &mut frontend,
            Operation::Read {
                sector: 0,
                len: 512,
            },
        )
        .unwrap_err();
    assert!(error.to_string().contains("was removed"), "{error}");
    // It holds a lease of the memory that leaving revokes.
    drop(disk);
    frontend.leave(LIMIT).unwrap();
    detach.end().succeeded();
    scene.assert_clean();
}

#[test]
fn a_bus_can_be_made_again_after_its_last_device_was_taken() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        assert!(
            scene
                .attach("disk")
                .succeeded()
                .stdout
                .ends_with("device 0: ready\n")
        );
        let mut frontend = scene.frontend();
        let mut disk = Disk::open(&mut frontend, 0).unwrap();
        read(&mut frontend, &mut disk);
        disk.close(&mut frontend).unwrap();
        frontend.leave(LIMIT).unwrap();
        scene.vmsg(&["detach", "guest", "0"]).succeeded();
        scene.assert_clean();
    }
    scene.backend.stop().succeeded();
    assert_eq!(scene.machine.lock_files(), [] as [&str; 0]);
}

#[test]
fn every_device_of_a_bus_is_listed() {
    let scene = Scene::new();
    for name in ["a", "b", "c"] {
        scene.attach(name).succeeded();
    }
    let ended = scene.in_guest(&["frontend", "list"]);
    let listed = ended.succeeded().stdout.lines().skip(1).map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.join(" ")
    });
    assert_eq!(
        listed.collect::<Vec<_>>(),
        [
            "0 0 0 blk 65536 rw a ready -",
            "0 0 1 blk 65536 rw b ready -",
            "0 0 2 blk 65536 rw c ready -"
        ]
    );
}

#[test]
fn a_device_waits_for_its_backend() {
    let mut scene = Scene::new();
    scene.backend.stop().succeeded();
    let attach = scene.attach("disk");
    assert!(attach.succeeded().stdout.contains("waits for a backend"));
    scene.backend = start_backend(&scene.machine);
    scene
        .toolstack
        .wait_for(&scene.bus.device(0, "status"), "ready");
    let mut frontend = scene.frontend();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    read(&mut frontend, &mut disk);
}

/// The backend sees both changes in one look.
#[test]
fn a_disk_that_changes_hands_at_once_is_let_go_before_it_is_taken() {
    let mut rig = Rig::start();
    let one = rig.guest_with_disk("one", 4096);
    let other = Bus::of(rig.machine.create_domain("other"));
    let line = rig.toolstack.read(&one.device(0, "config")).unwrap();
    rig.toolstack.remove_bus(one);
    rig.toolstack.make_bus(other);
    rig.toolstack.make_device(other, 0, &line);
    rig.settle();
    let status = rig.toolstack.read(&other.device(0, "status"));
    assert_eq!(status.as_deref(), Some("ready"));
}
