//! A host whose descriptors run out, and come back.

use std::fs;

use backend::Gauges;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tests::Bus;
use xen_types::DomId;

use crate::scene::Scene;

/// Sets the soft limit of open files of a process.
fn limit_files(pid: Pid, files: Option<u64>) {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: files.or(before.maximum),
        ..before
    };
    prlimit(Some(pid), Resource::Nofile, limit).unwrap();
}

#[test]
fn what_a_host_without_descriptors_refuses_is_done_when_it_has_some() {
    let mut scene = Scene::new();
    let gauges = Gauges::read(
        &backend::run_dir(&scene.machine.spec(DomId::DOM0)),
        DomId::DOM0,
    );
    let backend = i32::try_from(gauges.unwrap().unwrap().pid).unwrap();
    let backend = Pid::from_raw(backend).unwrap();
    let [first, mark, late] =
        ["first", "mark", "late"].map(|name| Bus::of(scene.machine.create_domain(name)));
    for bus in [first, mark] {
        scene.toolstack.make_bus(bus);
        scene.toolstack.wait_for(&bus.back("state"), "2");
    }
    let line = format!("type=blk,path={}", scene.image("disk").display());

    // One descriptor: enough to begin with a device, not to open its image.
    let open: Vec<u64> = fs::read_dir(format!("/proc/{}/fd", backend.as_raw_nonzero()))
        .unwrap()
        .map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free = (0..).find(|number| !open.contains(number)).unwrap();
    limit_files(backend, Some(free + 1));
    scene.toolstack.make_device(first, 0, &line);
    let why = scene
        .toolstack
        .wait(&first.device(0, "error"), |why| why.is_some());
    assert!(
        why.as_ref().unwrap().contains("Too many open files"),
        "{why:?}"
    );
    let status = scene.toolstack.read(&first.device(0, "status"));
    assert_eq!(status.as_deref(), Some("building"), "{why:?}");

    // None: neither can another device be looked at, nor another guest's lock be taken.
    limit_files(backend, Some(3));
    scene.toolstack.make_device(mark, 0, "type=rng");
    scene.toolstack.make_bus(late);
    scene.toolstack.write(&mark.back("online"), "0");
    scene.toolstack.wait_for(&mark.back("state"), "6");
    assert_eq!(
        scene.toolstack.read(&late.back("state")).as_deref(),
        Some("1")
    );

    limit_files(backend, None);
    scene
        .toolstack
        .wait_for(&first.device(0, "status"), "ready");
    assert_eq!(scene.toolstack.read(&first.device(0, "error")), None);
    scene.toolstack.wait_for(&late.back("state"), "2");
    scene.toolstack.wait_for(&mark.device(0, "status"), "ready");

    let log = scene.backend.stop();
    let told = |what: &str| log.succeeded().stderr.matches(what).count();
    assert_eq!(told("cannot take the lock"), 1, "{log:#?}");
    assert_eq!(told("cannot see to the devices"), 2, "{log:#?}");
}
