//! Images that another process has leased (fcntl `F_SETLEASE`): opening them waits for that process,
//! up to 45 s, unless it is told not to.
//!
//! In a process of its own, as a child has all descriptors of its parent until it runs its program:
//! no lease is given while anybody has the file open in another way.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use virtio_devices::Engine;
use virtio_devices::blk::{Blk, BlkConfig, BlkError};

/// Takes a lease, says so, and keeps it until it is killed, whatever the kernel asks of it.
/// The numbers are those of linux/fcntl.h: F_SETLEASE, and F_RDLCK or F_WRLCK.
const HOLDER: &str = r#"
    my ($path, $mode, $kind) = @ARGV;
    $SIG{IO} = "IGNORE";
    open(my $file, $mode, $path) or die "$path: $!";
    fcntl($file, 1024, $kind + 0) or die "F_SETLEASE: $!";
    syswrite(STDOUT, "!");
    <STDIN>;
"#;

/// A process with a lease, until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(path: &Path, mode: &str, kind: &str) -> Self {
        let child = Command::new("perl")
            .args(["-e", HOLDER])
            .arg(path)
            .args([mode, kind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Self(child);
        let output = holder.0.stdout.as_mut().unwrap();
        output.read_exact(&mut [0]).unwrap();
        holder
    }

    fn for_reading(path: &Path) -> Self {
        Self::of(path, "<", "0")
    }

    fn for_writing(path: &Path) -> Self {
        Self::of(path, "+<", "1")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

#[test]
fn a_leased_image_is_refused_without_waiting_for_its_holder() {
    if Command::new("perl").arg("-v").output().is_err() {
        eprintln!("\n*** NOT TESTED: perl is not installed. ***\n");
        return;
    }
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    std::fs::write(&path, [0; 4096]).unwrap();
    let refused = |read_only| {
        let error = open(&path, read_only).unwrap_err();
        assert!(matches!(error, BlkError::Leased { .. }), "{error}");
        assert!(error.to_string().contains("try again"), "{error}");
    };

    let reader = Holder::for_reading(&path);
    open(&path, true).unwrap();
    refused(false);
    drop(reader);
    open(&path, false).unwrap();

    let writer = Holder::for_writing(&path);
    refused(true);
    refused(false);
    drop(writer);
    open(&path, false).unwrap();
}
