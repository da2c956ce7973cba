//! Images that QEMU's tools and a device of ours want at the same time.
//!
//! In a process of its own, as a child has all locks of its parent until it runs its program: one
//! that is started beside other tests would keep theirs for a moment.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use virtio_devices::Engine;
use virtio_devices::blk::{Blk, BlkConfig, BlkError};

fn image() -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    image
}

fn open(path: &Path, read_only: bool) -> Result<Blk, BlkError> {
    let config = BlkConfig {
        path: path.into(),
        read_only,
        serial: String::new(),
        queues: 1,
        direct: false,
    };
    Blk::open(&config, &Engine::new().unwrap())
}

/// Whether we agree to open it; what else goes wrong fails the test.
fn is_taken(path: &Path, read_only: bool) -> bool {
    match open(path, read_only) {
        Ok(_) => true,
        Err(BlkError::InUse { holder, .. }) => {
            assert_eq!(holder, None, "the kernel does not tell");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// Whether QEMU's tools are there; says loudly when not.
fn qemu_is_here() -> bool {
    let here = |tool| Command::new(tool).arg("--version").output().is_ok();
    if here("qemu-io") && here("qemu-img") {
        return true;
    }
    eprintln!("\n*** NOT TESTED: qemu-img, qemu-io are not installed (Debian: qemu-utils). ***\n");
    false
}

/// Runs a tool of QEMU on an image; whether it agreed to the locks of others.
fn agrees(tool: &str, args: &[&str], image: &Path) -> bool {
    let output = Command::new(tool).args(args).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let refused = said.contains("Is another process using the image");
    assert_eq!(output.status.success(), !refused, "{tool}: {said}");
    !refused
}

fn qemu_writes(image: &Path) -> bool {
    let wrote = agrees("qemu-io", &["-f", "raw", "-c", "write 0 512"], image);
    assert_eq!(
        agrees("qemu-img", &["bench", "-w", "-c", "1", "-f", "raw"], image),
        wrote
    );
    wrote
}

/// A qemu-io that has the file open until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, read_only: bool) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]);
        if read_only {
            command.arg("-r");
        }
        let piped = command
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut qemu = Self(piped.spawn().unwrap());
        // It answers once the file is open.
        qemu.0
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"length\n")
            .unwrap();
        let mut answer = String::new();
        let mut output = BufReader::new(qemu.0.stdout.take().unwrap());
        while !answer.contains("MiB") {
            assert_ne!(output.read_line(&mut answer).unwrap(), 0, "{answer}");
        }
        qemu
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_and_a_device_see_each_others_locks() {
    if !qemu_is_here() {
        return;
    }
    let image = image();
    let path = image.path();
    assert!(qemu_writes(path));
    for read_only in [true, false] {
        let ours = open(path, read_only).unwrap();
        assert!(!qemu_writes(path), "read_only {read_only}");
        drop(ours);
        assert!(qemu_writes(path));
    }

    let reader = QemuIo::open(path, true);
    assert!(is_taken(path, true));
    drop(reader);
    let writer = QemuIo::open(path, false);
    assert!(!is_taken(path, true) && !is_taken(path, false));
    drop(writer);
    assert!(is_taken(path, false));
}
