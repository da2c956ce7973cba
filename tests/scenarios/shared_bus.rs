//! Several devices and several buses in one process of a guest: what one of them does takes
//! nothing from another.

use std::time::Instant;

use frontend_shim::{Disk, Frontend, FrontendError, Operation};
use tests::{LIMIT, pattern};

use crate::scene::Scene;

/// A read of the first sector.
const READ: Operation = Operation::Read {
    sector: 0,
    len: 512,
};

#[test]
fn a_device_that_is_no_disk_leaves_nothing_behind_when_it_is_opened_as_one() {
    let scene = Scene::new();
    scene.vmsg(&["attach", "guest", "type=rng"]).succeeded();
    scene.attach("disk").succeeded();
    let mut frontend = scene.frontend();
    frontend.share_pool().unwrap();
    let free = free_bytes(&mut frontend);

    for _ in 0..2 {
        let error = Disk::open(&mut frontend, 0).unwrap_err();
        assert!(
            matches!(
                error,
                FrontendError::OtherKind {
                    dev_num: 0,
                    found: 4,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(free_bytes(&mut frontend), free);
        assert_eq!(frontend.link().unwrap().bus().devices().count(), 0);
    }
    let mut disk = Disk::open(&mut frontend, 1).unwrap();
    assert_reads(&mut frontend, &mut disk);
    disk.close(&mut frontend).unwrap();
    assert_eq!(free_bytes(&mut frontend), free);
}

#[test]
fn a_device_in_use_is_not_opened_twice() {
    let scene = Scene::new();
    scene.attach("disk").succeeded();
    let mut frontend = scene.frontend();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    let error = Disk::open(&mut frontend, 0).unwrap_err().to_string();
    assert_eq!(error, "bus 0 device 0: is in use already");
    assert_reads(&mut frontend, &mut disk);
}

#[test]
fn what_one_device_is_told_is_not_lost_while_another_is_polled() {
    let scene = Scene::new();
    scene.attach("first").succeeded();
    scene.attach("second").succeeded();
    let mut frontend = scene.frontend();
    let mut first = Disk::open(&mut frontend, 0).unwrap();
    let mut second = Disk::open(&mut frontend, 1).unwrap();
    let mut detach = scene.start(&["detach", "guest", "0"]);

    // The second disk hears everything that comes until the request must have been among it.
    let deadline = Instant::now() + LIMIT;
    while !hears_of_its_detach(&mut frontend, &mut second, &mut first) {
        assert!(Instant::now() < deadline, "it was never told");
    }
    first.close(&mut frontend).unwrap();
    // The backend takes the device away when it is free, which is seen by the next message.
    while frontend.devices().unwrap().contains(&0) {
        assert!(Instant::now() < deadline, "it was never taken away");
    }
    detach.end().succeeded();
    assert_reads(&mut frontend, &mut second);
}

#[test]
fn two_buses_of_one_process_share_what_may_be_granted() {
    let scene = Scene::new();
    for (bus, name) in [("0", "a"), ("1", "b")] {
        let line = format!("type=blk,path={}", scene.image(name).display());
        scene
            .vmsg(&["attach", "guest", "--bus", bus, &line])
            .succeeded();
    }
    let mut pools = Vec::new();
    let mut open = Vec::new();
    for handle in [0, 1] {
        let mut frontend = Frontend::open(&scene.machine.spec(scene.bus.guest), handle).unwrap();
        frontend.connect(LIMIT).unwrap();
        frontend.share_pool().unwrap();
        pools.push(free_bytes(&mut frontend) / 4096);
        let mut disk = Disk::open(&mut frontend, 0).unwrap();
        assert_reads(&mut frontend, &mut disk);
        open.push((frontend, disk));
    }
    // 1,024 pages in all: two rings of 4, two directories while they are read, and the pools.
    assert_eq!(pools, [512, 256]);
}

/// Lets `busy` work once; whether `quiet` has been told by then.
fn hears_of_its_detach(frontend: &mut Frontend, busy: &mut Disk, quiet: &mut Disk) -> bool {
    assert_reads(frontend, busy);
    match quiet.poll(frontend) {
        Ok(None) => false,
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            assert!(error.to_string().contains("being detached"), "{error}");
            true
        }
    }
}

#[track_caller]
fn assert_reads(frontend: &mut Frontend, disk: &mut Disk) {
    let finished = disk.run(frontend, READ).unwrap();
    let mut found = [0; 512];
    disk.take(frontend, finished.slot, &mut found).unwrap();
    assert_eq!(found, *pattern(0, 512));
}

fn free_bytes(frontend: &mut Frontend) -> usize {
    frontend.link().unwrap().pool().unwrap().left()
}
