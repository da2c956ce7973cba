//! What people get wrong, and what breaks under them: the command ends with a status and a sentence
//! that says where and why, and nothing stays behind.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tests::{Ended, Process, vmsg};
use xen_types::DomId;

use crate::scene::{BYTES, Scene, start_backend};

/// `vmsg attach` of a disk that cannot be served says why, and takes back what it made.
#[track_caller]
fn refused(name: &str, make: impl FnOnce(&Scene), why: &str) {
    let mut scene = Scene::new();
    make(&scene);
    let path = scene.machine.file(name).display().to_string();
    let attached = scene.vmsg(&["attach", "guest", &format!("type=blk,path={path}")]);
    let bus = format!("domain {} bus 0", scene.bus.guest);
    attached.failed(1, &[&bus, &path, why]);
    scene.assert_clean();
}

#[test]
fn a_missing_disk() {
    refused("disk", |_| {}, "there is no such image");
}

#[test]
fn a_disk_that_cannot_be_opened() {
    let circle = |scene: &Scene| symlink("disk", scene.machine.file("disk")).unwrap();
    refused("disk", circle, "cannot be opened");
}

#[test]
fn a_directory_as_disk() {
    let make = |scene: &Scene| std::fs::create_dir(scene.machine.file("disk")).unwrap();
    refused("disk", make, "is a directory");
}

#[test]
fn a_socket_as_disk() {
    let make = |scene: &Scene| drop(UnixListener::bind(scene.machine.file("disk")).unwrap());
    refused("disk", make, "not a regular file or a block device");
}

#[test]
fn an_empty_image() {
    let make = |scene: &Scene| drop(File::create(scene.machine.file("disk")).unwrap());
    refused("disk", make, "holds 0 bytes");
}

#[test]
fn an_image_of_less_than_a_sector() {
    let make = |scene: &Scene| std::fs::write(scene.machine.file("disk"), [0; 100]).unwrap();
    refused("disk", make, "holds 100 bytes");
}

#[test]
fn a_truncated_image() {
    let make = |scene: &Scene| std::fs::write(scene.machine.file("disk"), [0; 4100]).unwrap();
    refused("disk", make, "is it truncated?");
}

#[test]
fn a_device_line_with_a_mistake_in_any_key() {
    let mut scene = Scene::new();
    for (line, words) in [
        ("", "is not of the form key=value"),
        ("type=blk,mode", "\"mode\" is not of the form key=value"),
        ("path=/x", "type= is missing"),
        ("type=Blk,path=/x", "type=Blk is not possible"),
        (
            "type=blk,mode=r,path=/x",
            "mode=r is not possible: rw or ro",
        ),
        ("type=blk,serial=,path=/x", "serial= is not possible"),
        ("type=blk,queues=0,path=/x", "queues=0 is not possible"),
        ("type=blk,uuid=1,path=/x", "uuid=1 is not possible"),
        ("type=blk,path=", "path= is not possible"),
        ("type=blk,type=blk,path=/x", "\"type\" stands twice"),
        ("type=blk,colour=red,path=/x", "\"colour\" is not known"),
        ("type=tape,path=/x", "type=tape is not known"),
        ("type=blk", "type=blk needs path="),
        ("type=rng,path=/x", "type=rng has no path"),
    ] {
        let ended = scene.vmsg(&["attach", "guest", line]);
        assert_eq!(ended.status.code(), Some(2), "{line}: {ended:#?}");
        assert!(ended.stderr.contains(words), "{line}: {ended:#?}");
    }
    scene.assert_clean();
}

#[test]
fn a_device_line_that_only_the_backend_can_judge() {
    let mut scene = Scene::new();
    let bus = format!("domain {} bus 0", scene.bus.guest);
    let attached = scene.vmsg(&["attach", "guest", "type=blk,queues=256,path=/x"]);
    attached.failed(1, &[&bus, "256 queues"]);
    scene.assert_clean();
}

#[test]
fn a_domain_that_is_not_there() {
    let mut scene = Scene::new();
    for domain in ["nobody", "77"] {
        for args in [
            &["attach", domain, "type=blk,path=/x"][..],
            &["detach", domain, "0"],
        ] {
            scene.vmsg(args).failed(1, &["there is no domain", domain]);
        }
    }
    scene.assert_clean();
}

#[test]
fn a_device_that_is_not_there() {
    let mut scene = Scene::new();
    let guest = format!("domain {}", scene.bus.guest);
    scene
        .vmsg(&["detach", "guest", "0"])
        .failed(1, &[&guest, "has no bus 0"]);
    scene.attach("disk").succeeded();
    scene
        .vmsg(&["detach", "guest", "1"])
        .failed(1, &[&guest, "bus 0 has no device 1"]);
    scene
        .in_guest(&["frontend", "blk", "copy", "3", "/dev/null"])
        .failed(1, &["device 3", "is not on this bus", "[0]"]);
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_guest_without_a_bus() {
    let mut scene = Scene::new();
    let copy = ["frontend", "blk", "copy", "0", "/dev/null"];
    scene
        .in_guest(&copy)
        .failed(1, &["no bus 0", "vmsg attach"]);
    let listed = scene.in_guest(&["frontend", "list"]);
    let sentence = "no virtio-msg devices; `vmsg attach` in dom0 gives this domain one\n";
    assert_eq!(listed.succeeded().stdout, sentence);
    scene.assert_clean();
}

#[test]
fn two_frontends_of_one_bus() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let frontend = scene.frontend();
    let listed = scene.in_guest(&["frontend", "list"]);
    let row = listed.succeeded().stdout.lines().nth(1).unwrap();
    assert!(row.contains("in-use"), "{row}");
    assert!(row.contains("in use by another vmsg process"), "{row}");
    frontend.leave(tests::LIMIT).unwrap();
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

#[test]
fn writing_to_a_read_only_disk() {
    let mut scene = Scene::new();
    let image = scene.image("disk");
    let line = format!("type=blk,mode=ro,path={}", image.display());
    scene.vmsg(&["attach", "guest", &line]).succeeded();
    let source = scene.machine.file("source");
    std::fs::write(&source, [0xaa; 512]).unwrap();
    let source = source.display().to_string();
    scene
        .in_guest(&["frontend", "blk", "copy", &source, "0"])
        .failed(1, &["bus 0 device 0", "read-only"]);
    let image = image.display().to_string();
    scene
        .in_guest(&["frontend", "blk", "verify", &image, "0"])
        .succeeded();
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_file_that_does_not_fit_onto_the_disk() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let source = scene.machine.file("source");
    std::fs::write(&source, vec![0; BYTES + 1]).unwrap();
    let source = source.display().to_string();
    let words = ["bus 0 device 0", &source, "65537 bytes", "65536"];
    let copy = ["frontend", "blk", "copy", &source, "0"];
    scene.in_guest(&copy).failed(1, &words);
    let verify = ["frontend", "blk", "verify", &source, "0"];
    scene.in_guest(&verify).failed(1, &words);
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_source_that_has_no_size() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    for (source, words) in [
        ("/dev/zero", "neither a regular file nor a block device"),
        ("empty", "is empty"),
    ] {
        let source = scene.machine.file(source);
        if !source.exists() {
            File::create(&source).unwrap();
        }
        let source = source.display().to_string();
        for args in [
            ["frontend", "blk", "copy", &source, "0"],
            ["frontend", "blk", "verify", &source, "0"],
        ] {
            scene.in_guest(&args).failed(1, &[&source, words]);
        }
    }
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_copy_between_two_files_or_two_devices() {
    let scene = Scene::new();
    for args in [
        ["frontend", "blk", "copy", "0", "1"],
        ["frontend", "blk", "copy", "a", "b"],
    ] {
        scene.in_guest(&args).failed(2, &["one of FROM and TO"]);
    }
}

#[test]
fn a_disk_that_is_not_what_it_should_be() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let mut wrong = tests::pattern(0, BYTES);
    wrong[1000] ^= 1;
    let file = scene.machine.file("wrong");
    std::fs::write(&file, wrong).unwrap();
    let file = file.display().to_string();
    scene
        .in_guest(&["frontend", "blk", "verify", &file, "0"])
        .failed(1, &["bus 0 device 0", "byte 1000 (sector 1) differs"]);
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

/// Lets a guest copy a disk into a pipe, stops it halfway by `cut`, and gives its end.
fn cut_off(scene: &mut Scene, cut: impl FnOnce(&mut Scene)) -> Ended {
    let image = scene.machine.file("large");
    tests::make_disk(&image, 4 << 20);
    let line = format!("type=blk,path={}", image.display());
    scene.vmsg(&["attach", "guest", &line]).succeeded();
    let pipe = scene.machine.file("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let to = pipe.display().to_string();
    let copy = ["frontend", "blk", "copy", "0", &to];
    let mut guest = Process::start(&mut vmsg(&scene.machine, scene.bus.guest, &copy));
    // The pipe is far smaller than the disk: the copy cannot end before the rest is read.
    let mut pipe = BufReader::new(File::open(pipe).unwrap());
    pipe.read_exact(&mut [0; 4096]).unwrap();
    cut(scene);
    pipe.read_to_end(&mut Vec::new()).unwrap();
    guest.end()
}

#[test]
fn a_backend_that_is_killed_in_the_middle_of_a_copy() {
    let mut scene = Scene::new();
    let ended = cut_off(&mut scene, |scene| {
        scene.backend.kill();
        scene.backend = start_backend(&scene.machine);
    });
    ended.failed(1, &["bus 0: the connection ended"]);
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_backend_that_is_stopped_in_the_middle_of_a_copy() {
    let mut scene = Scene::new();
    let ended = cut_off(&mut scene, |scene| {
        let backend = start_backend(&scene.machine);
        std::mem::replace(&mut scene.backend, backend)
            .stop()
            .succeeded();
    });
    ended.failed(1, &["bus 0: the connection ended"]);
    scene.vmsg(&["detach", "guest", "0"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_device_that_is_forced_away_in_the_middle_of_a_copy() {
    let mut scene = Scene::new();
    let mut detach = None;
    let ended = cut_off(&mut scene, |scene| {
        // Without another device the bus would go as well.
        scene.attach("other").succeeded();
        detach = Some(scene.start(&["detach", "guest", "0", "--force"]));
        let gone = |status: Option<&str>| matches!(status, Some("removed") | None);
        scene.toolstack.wait(&scene.bus.device(0, "status"), gone);
    });
    ended.failed(1, &["is incomplete", ": bus 0 device 0: was removed"]);
    detach.unwrap().end().succeeded();
    scene.vmsg(&["detach", "guest", "1"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_guest_that_died_while_no_backend_ran() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let frontend = scene.frontend();
    scene.backend.kill();
    let guest = scene.bus.guest;
    scene.machine.hypervisor().destroy_domain(guest).unwrap();
    drop(frontend);
    scene.backend = start_backend(&scene.machine);
    scene.toolstack.wait_gone(&format!("/vmsg/{guest}"));
    scene.assert_clean();
    assert!(scene.machine.is_gone(guest));
    assert_eq!(scene.machine.report(DomId::DOM0).ports, 0);
    scene.backend.stop().succeeded();
    assert_eq!(scene.machine.lock_files(), [] as [&str; 0]);
}
