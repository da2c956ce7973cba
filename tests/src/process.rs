//! Processes on the machine: `vmsg` in its roles, and what became of them.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use xen_types::DomId;

use crate::{LIMIT, Machine};

/// How a process ended, and its words.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// It must have succeeded.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert!(self.status.success(), "{self:#?}");
        self
    }

    /// It must have failed with this exit status, in the last line of standard error, which must
    /// hold each of `words`.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        let last = self.stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("vmsg: "),
            "no reason at the end: {self:#?}"
        );
        for word in words {
            assert!(last.contains(word), "{word:?} is not in {last:?}");
        }
        self
    }
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Option<Child>,
    pidfd: OwnedFd,
}

impl Process {
    /// Starts it. Its words are read with [`Process::lines`], or all at once with [`Process::end`].
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd");
        Self {
            child: Some(child),
            pidfd,
        }
    }

    /// Names the process for as long as it is held.
    #[must_use]
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Standard output, to be read with [`line()`].
    #[must_use]
    pub fn lines(&mut self) -> BufReader<ChildStdout> {
        let child = self.child.as_mut().expect("running");
        BufReader::new(child.stdout.take().expect("standard output"))
    }

    /// Waits for its end.
    #[track_caller]
    #[must_use]
    pub fn end(&mut self) -> Ended {
        self.end_within(LIMIT)
    }

    /// Waits for its end, which must come within `limit`.
    #[track_caller]
    #[must_use]
    pub fn end_within(&mut self, limit: Duration) -> Ended {
        let child = self.child.take().expect("running");
        let (sender, receiver) = mpsc::channel();
        let waiter = std::thread::spawn(move || sender.send(child.wait_with_output()));
        let Ok(output) = receiver.recv_timeout(limit) else {
            self.signal(Signal::KILL);
            let output = receiver.recv().expect("its end");
            panic!("it still ran after {limit:?}: {output:#?}");
        };
        waiter.join().expect("waiter").expect("receiver");
        let output = output.expect("its end");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// SIGKILL, and until nothing of it is left.
    pub fn kill(&mut self) {
        self.kill_now();
    }

    /// SIGTERM, and waits for its end in order.
    #[track_caller]
    pub fn stop(&mut self) -> Ended {
        self.signal(Signal::TERM);
        self.end()
    }

    fn signal(&self, signal: Signal) {
        pidfd_send_signal(self.pidfd.as_fd(), signal).expect("signal");
    }

    fn kill_now(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_now();
    }
}

/// Keeps this thread, and whatever it starts, to one processor. There nobody looks for events
/// without sleeping, so that what is in flight together is served together, however long anything
/// takes: counts are exact.
pub fn keep_to_one_processor() {
    let allowed = sched_getaffinity(None).expect("processors");
    let last = (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu));
    let mut one = CpuSet::new();
    one.set(last.expect("a processor"));
    sched_setaffinity(None, &one).expect("one processor");
}

/// The executable `vmsg`, in the directory to which this test was built.
fn executable() -> PathBuf {
    let test = std::env::current_exe().expect("own executable");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("target directory");
    let vmsg = profile.join(format!("vmsg{}", std::env::consts::EXE_SUFFIX));
    assert!(
        vmsg.exists(),
        "{} is not there: build it first (`cargo build -p vmsg`; `cargo test --workspace` does)",
        vmsg.display()
    );
    vmsg
}

/// `vmsg` with these arguments, as domain `domid` of the machine.
#[must_use]
pub fn vmsg<S: AsRef<OsStr>>(machine: &Machine, domid: DomId, args: &[S]) -> Command {
    let mut command = Command::new(executable());
    command
        .arg("--platform")
        .arg(machine.spec(domid).to_string())
        .args(args)
        .env_remove("RUST_LOG");
    command
}

/// The next line that a process says.
///
/// # Panics
/// It ended instead.
#[must_use]
pub fn line(from: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    let len = from.read_line(&mut line).expect("standard output");
    assert!(len > 0, "the process ended");
    line.trim_end().to_owned()
}
