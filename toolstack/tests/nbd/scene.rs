//! A hosted machine with a backend, a guest's disk, and its export, all processes of `vmsg`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

/// Longer than anything takes on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    stderr: PathBuf,
}

impl Process {
    /// Starts `vmsg`, and waits until it says the line that begins with `ready`, if there is one.
    fn start(dir: &Path, name: &str, ready: Option<&str>, args: &[&str]) -> Self {
        let stderr = dir.join(format!("{name}.err"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_vmsg"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let process = Self { child, stderr };
        if let Some(ready) = ready {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert!(line.starts_with(ready), "{line:?}: {}", process.words());
        }
        process
    }

    /// What it said on standard error.
    pub(crate) fn words(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }

    /// The most memory that it held, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
        kibibytes.parse::<u64>().unwrap() << 10
    }

    /// Waits for its end; gives its exit status.
    #[track_caller]
    pub(crate) fn end(&mut self) -> Option<i32> {
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let limit = Timespec::try_from(LIMIT).unwrap();
        let ended = poll(&mut fds, Some(&limit)).unwrap();
        assert_eq!(ended, 1, "it still runs: {}", self.words());
        self.child.wait().unwrap().code()
    }

    /// SIGTERM, after which it must end in order.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.end(), Some(0), "{}", self.words());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The machine.
pub(crate) struct Scene {
    backend: Process,
    _machine: Process,
    dir: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = dir.path().join("machine");
        let args = ["hosted", machine.to_str().unwrap()];
        let machine = Process::start(dir.path(), "machine", Some("ready"), &args);
        Self {
            backend: start_backend(dir.path()),
            _machine: machine,
            dir,
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the export listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.file("nbd")
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// Gives a disk to the guest; `options` is in front of the path.
    pub(crate) fn attach(&self, options: &str, image: &Path) {
        let config = format!("{options},path={}", image.display());
        self.dom0(&["attach", "guest1", &config]);
    }

    /// Runs a command of dom0.
    pub(crate) fn dom0(&self, args: &[&str]) {
        let platform = platform(self.dir.path(), 0);
        let output = run(Command::new(env!("CARGO_BIN_EXE_vmsg"))
            .args(["--platform", &platform])
            .args(args));
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    /// Asks the guest for its device 0.
    pub(crate) fn begin_detach(&self) -> Process {
        let platform = platform(self.dir.path(), 0);
        let args = ["--platform", &platform, "detach", "guest1", "0"];
        Process::start(self.dir.path(), "detach", None, &args)
    }

    /// Serves device `number` of the guest.
    pub(crate) fn export(&self, number: u16) -> Process {
        let platform = platform(self.dir.path(), 1);
        let socket = format!("unix:{}", self.socket().display());
        let number = number.to_string();
        let mut args = vec!["--platform", &platform, "frontend", "blk", "export"];
        args.extend(["--nbd", &socket, &number]);
        let ready = format!("ready: {}", self.uri());
        Process::start(self.dir.path(), "export", Some(&ready), &args)
    }

    /// Another backend after the first.
    pub(crate) fn restart_backend(&mut self) {
        self.backend.stop();
        self.backend = start_backend(self.dir.path());
    }
}

/// Its end and its words.
pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Fills a file with bytes of which no two sectors are alike.
pub(crate) fn make_image(path: &Path, seed: u64, bytes: u64) {
    let mut state = seed | 1;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let mebibyte: Vec<u8> = words.take(1 << 17).flat_map(u64::to_le_bytes).collect();
    let mut file = File::create(path).unwrap();
    for mark in 0..bytes >> 20 {
        let mut part = mebibyte.clone();
        for sector in part.chunks_mut(512) {
            sector[..8].copy_from_slice(&mark.to_le_bytes());
        }
        std::io::copy(&mut part.as_slice().take(1 << 20), &mut file).unwrap();
    }
}

fn start_backend(dir: &Path) -> Process {
    let platform = platform(dir, 0);
    Process::start(dir, "backend", None, &["--platform", &platform, "backend"])
}

fn platform(dir: &Path, domid: u16) -> String {
    format!("hosted:{},{domid}", dir.join("machine").display())
}
