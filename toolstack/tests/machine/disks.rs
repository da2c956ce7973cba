//! `vmsg frontend blk`: every byte, also the last ones.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use frontend_shim::{Disk, Frontend, Operation};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use xen_types::DomId;
use xenstore::Tree as _;

use crate::rig::{GUEST, Machine, Process};

/// Many more requests than are in flight at a time, and no whole number of them: the last request
/// is shorter than the others.
const BYTES: usize = (16 << 20) + 3 * 512;

const LIMIT: Duration = Duration::from_secs(30);

struct Scene {
    _backend: Process,
    machine: Machine,
    disk: PathBuf,
}

impl Scene {
    /// A guest with a disk full of bytes that differ from sector to sector.
    fn new() -> Self {
        let machine = Machine::start(1);
        let backend = machine.start_backend();
        let disk = machine.disk("disk.img", &pattern(1));
        let config = format!("type=blk,path={}", disk.display());
        machine.dom0(&["attach", "guest1", &config]).succeeded();
        Self {
            _backend: backend,
            machine,
            disk,
        }
    }

    fn blk(&self, args: &[&str]) -> crate::rig::Ended {
        self.machine
            .vmsg(GUEST, &[&["frontend", "blk"], args].concat())
    }
}

/// xorshift64: no two sectors alike.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(BYTES);
    while bytes.len() < BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn a_copy_is_byte_identical_in_both_directions() {
    let scene = Scene::new();
    let copy = scene.machine.file("copy.img");
    let copied = scene.blk(&["copy", "0", copy.to_str().unwrap(), "--json"]);
    assert_eq!(copied.json()["bytes"], BYTES);
    assert!(fs::read(&copy).unwrap() == pattern(1));

    let new = scene.machine.disk("new.img", &pattern(2));
    scene.blk(&["copy", new.to_str().unwrap(), "0"]).succeeded();
    assert!(fs::read(&scene.disk).unwrap() == pattern(2));
    scene
        .blk(&["verify", new.to_str().unwrap(), "0"])
        .succeeded();
}

#[test]
fn a_difference_is_found_wherever_it_is() {
    let scene = Scene::new();
    let file = scene.machine.disk("expected.img", &pattern(1));
    let verify = ["verify", file.to_str().unwrap(), "0"];
    scene.blk(&verify).succeeded();
    let disk = OpenOptions::new().write(true).open(&scene.disk).unwrap();
    for at in [BYTES - 1, BYTES / 2, 0] {
        let wrong = !pattern(1)[at];
        disk.write_all_at(&[wrong], at as u64).unwrap();
        scene
            .blk(&verify)
            .failed(1, &[&format!("byte {at} (sector {}) differs", at / 512)]);
    }
}

#[test]
fn a_file_that_does_not_fit_is_refused() {
    let scene = Scene::new();
    let mut long = pattern(1);
    long.push(0);
    let long = scene.machine.disk("long.img", &long);
    for args in [
        ["copy", long.to_str().unwrap(), "0"],
        ["verify", long.to_str().unwrap(), "0"],
    ] {
        scene
            .blk(&args)
            .failed(1, &["long.img", &BYTES.to_string()]);
    }
    scene.blk(&["copy", "0", "1"]).failed(2, &["device number"]);
}

#[test]
fn a_copy_that_reads_nothing_takes_nothing_away() {
    let scene = Scene::new();
    let file = scene.machine.disk("backup.img", b"of yesterday");
    let to = file.to_str().unwrap();
    // The device's image is gone before the first byte was read.
    let disk = OpenOptions::new().write(true).open(&scene.disk).unwrap();
    disk.set_len(0).unwrap();
    scene.blk(&["copy", "0", to]).failed(1, &["bus 0"]);
    assert_eq!(fs::read(&file).unwrap(), b"of yesterday");
    let nowhere = scene.machine.file("no/such/directory.img");
    disk.set_len(BYTES as u64).unwrap();
    scene
        .blk(&["copy", "0", nowhere.to_str().unwrap()])
        .failed(1, &["no/such/directory.img: No such file"]);
}

#[test]
fn an_error_says_once_which_device_it_is_about() {
    let scene = Scene::new();
    let copy = scene.machine.file("copy.img");
    let missing = scene.blk(&["copy", "7", copy.to_str().unwrap()]);
    missing.failed(1, &["vmsg: bus 0 device 7: "]);
    assert!(!copy.exists());
}

#[test]
fn ctrl_c_ends_a_copy_in_order_and_says_how_far_it_came() {
    let scene = Scene::new();
    let fifo = scene.machine.file("copy.img");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let args = ["frontend", "blk", "copy", "0", fifo.to_str().unwrap()];
    let mut copy = scene.machine.command(GUEST, &args);
    let copy = copy.stderr(Stdio::piped()).spawn().unwrap();
    // A byte came, and there are more than a pipe holds: the copy is under way.
    let mut out = fs::File::open(&fifo).unwrap();
    out.read_exact(&mut [0]).unwrap();
    kill_process(Pid::from_child(&copy), Signal::INT).unwrap();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    let output = copy.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{words}");
    let (far, full) = (1 + rest.len(), BYTES);
    assert!(far < full);
    let said = format!("copy.img is incomplete ({far} of {full} bytes): interrupted");
    assert!(words.contains(&said), "{words}");
    let closed = "6";
    let state = "/local/domain/1/device/virtio-msg/0/state";
    let mut store = scene.machine.store(DomId::DOM0);
    assert_eq!(store.read_opt(state).unwrap().unwrap(), closed.as_bytes());
}

#[test]
fn a_load_that_makes_no_sense_is_wrong_usage() {
    let scene = Scene::new();
    let small = scene.machine.disk("small.img", &[0; 4096]);
    let config = format!("type=blk,path={}", small.display());
    scene.machine.dom0(&["attach", "1", &config]).succeeded();
    for (args, words) in [
        (["0", "--bs=513"], "no multiple of 512"),
        (["0", "--bs=2m"], "1048576"),
        (["0", "--iodepth=0"], "--iodepth"),
        (["0", "--requests=0"], "--requests"),
        (["1", "--bs=8k"], "the disk has 4096 bytes"),
        (["0", "--iodepth=5000"], "room for"),
    ] {
        let ended = scene.blk(&[&["bench"], &args[..]].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
    }
    for way in [&["--bs=1m"][..], &["--bs=256k", "--grants"]] {
        let load = [&["bench", "0", "--requests=20"], way].concat();
        scene.blk(&load).succeeded();
    }
}

#[test]
fn a_disk_that_has_grown_can_be_read_to_its_new_end() {
    let scene = Scene::new();
    let spec = format!("hosted:{},{GUEST}", scene.machine.dir().display());
    let mut frontend = Frontend::open(&spec.parse().unwrap(), 0).unwrap();
    frontend.connect(LIMIT).unwrap();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    let image = OpenOptions::new().write(true).open(&scene.disk).unwrap();
    image.set_len(2 * BYTES as u64).unwrap();
    let resized = scene.machine.dom0(&["resize", "guest1", "0"]);
    let said = "domain 1 bus 0 device 0: its backend looks at its size\n";
    assert_eq!(resized.succeeded().stdout, said);
    let end = Operation::Read {
        sector: 2 * BYTES as u64 / 512 - 1,
        len: 512,
    };
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = disk.run(&mut frontend, end) {
        assert!(Instant::now() < deadline, "{error}");
    }
    disk.close(&mut frontend).unwrap();
    frontend.leave(LIMIT).unwrap();

    for (args, words) in [
        (["resize", "1", "7"], "has no device 7"),
        (["resize", "1", "0"], "being removed"),
    ] {
        if words == "being removed" {
            let online = "/local/domain/0/backend/virtio-msg/1/0/device/0/online";
            let mut dom0 = scene.machine.store(DomId::DOM0);
            dom0.write(online, "0").unwrap();
        }
        scene.machine.dom0(&args).failed(1, &[words]);
    }
}
