//! A hosted machine, its processes, and dom0's view of its XenStore.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use xen_hal::hosted::layout;
use xen_types::DomId;
use xenstore::{Client, Tree as _};

/// Nothing that is waited for takes long; this is for a machine with a heavy load.
const LIMIT: Duration = Duration::from_secs(60);

/// The guest that every machine has.
pub(crate) const GUEST: DomId = DomId(1);

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A process that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

/// A hosted machine: `vmsg hosted DIR` with guests 1 to N.
#[derive(Debug)]
pub(crate) struct Machine {
    _broker: Process,
    dir: TempDir,
}

impl Machine {
    pub(crate) fn start(guests: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut broker = Command::new(env!("CARGO_BIN_EXE_vmsg"))
            .arg("hosted")
            .arg(dir.path())
            .arg(format!("--guests={guests}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = broker.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        assert!(line.starts_with("ready: "), "{line:?}");
        Self {
            _broker: Process(broker),
            dir,
        }
    }

    /// Starts a backend in dom0 and waits until it looks for guests.
    pub(crate) fn start_backend(&self) -> Process {
        let mut command = self.command(DomId::DOM0, &["backend"]);
        let backend = Process(command.stderr(Stdio::null()).spawn().unwrap());
        self.wait_for("/local/domain/0/backend/virtio-msg", |there| {
            there.is_some()
        });
        backend
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file beside the machine.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file to be a disk.
    pub(crate) fn disk(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// `vmsg` in a domain, not yet started.
    pub(crate) fn command(&self, domid: DomId, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsg"));
        command
            .arg(format!(
                "--platform=hosted:{},{domid}",
                self.dir().display()
            ))
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs `vmsg` in a domain to its end.
    pub(crate) fn vmsg(&self, domid: DomId, args: &[&str]) -> Ended {
        let output = self.command(domid, args).output().unwrap();
        Ended {
            status: output.status,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs `vmsg` in dom0.
    pub(crate) fn dom0(&self, args: &[&str]) -> Ended {
        self.vmsg(DomId::DOM0, args)
    }

    /// XenStore as a domain sees it.
    pub(crate) fn store(&self, domid: DomId) -> Client {
        Client::connect_socket(&layout::store_socket(self.dir(), domid)).unwrap()
    }

    /// Waits until a node is as wanted.
    pub(crate) fn wait_for(&self, path: &str, wanted: impl Fn(Option<&str>) -> bool) {
        let mut store = self.store(DomId::DOM0);
        store.watch(path, "test").unwrap();
        loop {
            let value = store.read_opt(path).unwrap();
            let value = value.map(|value| String::from_utf8(value).unwrap());
            if wanted(value.as_deref()) {
                return;
            }
            let event = store.wait_event(LIMIT).unwrap();
            assert!(event.is_some(), "{path} stays {value:?}");
        }
    }

    /// The children of a node; none if it does not exist.
    pub(crate) fn children(&self, path: &str) -> Vec<String> {
        match self.store(DomId::DOM0).directory(path) {
            Err(error) if error.is_absent() => Vec::new(),
            names => names.unwrap(),
        }
    }

    /// Neither side nor the toolstack has anything of a guest's buses.
    #[track_caller]
    pub(crate) fn assert_no_bus(&self, guest: DomId) {
        for path in [
            format!("/local/domain/{guest}/device/virtio-msg"),
            format!("/local/domain/0/backend/virtio-msg/{guest}"),
            format!("/vmsg/{guest}"),
        ] {
            let there = self.store(DomId::DOM0).read_opt(&path).unwrap();
            assert!(there.is_none(), "{path} is left");
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn succeeded(&self) -> &Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }

    /// It failed with this exit status, and its last line says all of `words`.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        let last = self.stderr.lines().last().unwrap_or_default();
        for word in words {
            assert!(last.contains(word), "{word:?} is not in {last:?}");
        }
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.succeeded().stdout).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}
