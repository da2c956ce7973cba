//! The processes of the demo: the hosted machine, its backend and its guest.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::interrupt;
use crate::logging;
use anyhow::{Context as _, bail};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal,
};
use xen_hal::PlatformSpec;
use xen_hal::hosted::Hypervisor;
use xen_hal::hosted::wire::DomainReport;
use xen_types::DomId;

/// How much is logged; the demo's processes are quiet unless somebody asks.
const LOGS: &str = "RUST_LOG";
/// Set for the children of a demo.
const CHILD: &str = "VMSG_DEMO_CHILD";

/// A child of a demo ends when the demo does, however that ends.
pub(crate) fn end_with_parent() -> std::io::Result<()> {
    if std::env::var_os(CHILD).is_some() {
        set_parent_process_death_signal(Some(Signal::TERM))?;
    }
    Ok(())
}

/// A child of the demo, killed when it is dropped.
#[derive(Debug)]
pub(super) struct Process {
    what: &'static str,
    child: Child,
}

impl Process {
    /// Starts this executable again with other arguments; its logs look like this process's.
    fn start<I, S>(
        what: &'static str,
        log: logging::Format,
        args: I,
        stdin: Stdio,
    ) -> anyhow::Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let executable = std::env::current_exe().context("own executable")?;
        let child = Command::new(executable)
            .arg(format!("--log={log}"))
            .args(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .env(CHILD, "1")
            .env(LOGS, std::env::var_os(LOGS).unwrap_or("warn".into()))
            .spawn()
            .with_context(|| format!("cannot start the {what}"))?;
        let process = Self { what, child };
        interrupt::watch(process.pid()?)?;
        Ok(process)
    }

    /// Waits for its end; an error unless it succeeded.
    pub(super) fn join(mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the {} ended with {status}", self.what);
        }
        Ok(())
    }

    /// An error if it has ended already.
    pub(super) fn must_run(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the {} ended with {status}", self.what),
        }
    }

    /// Asks it to end in order and waits.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        kill_process(self.pid()?, Signal::TERM)?;
        self.join()
    }

    pub(super) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(super) fn stdout(&mut self) -> Option<BufReader<ChildStdout>> {
        self.child.stdout.take().map(BufReader::new)
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("process id")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail harmlessly if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The hosted machine.
#[derive(Debug)]
pub(super) struct Machine {
    process: Process,
    hypervisor: Hypervisor,
    dom0: String,
    log: logging::Format,
}

impl Machine {
    /// Starts it in `dir`; `log`: of all its processes.
    pub(super) fn start(dir: &Path, log: logging::Format) -> anyhow::Result<Self> {
        let args = [
            OsStr::new("hosted"),
            dir.as_os_str(),
            OsStr::new("--guests=0"),
        ];
        let mut process = Process::start("hosted machine", log, args, Stdio::null())?;
        let mut line = String::new();
        if let Some(mut stdout) = process.stdout() {
            stdout.read_line(&mut line)?;
        }
        if !line.starts_with("ready") {
            process.join()?;
            bail!("the hosted machine did not start");
        }
        Ok(Self {
            process,
            hypervisor: Hypervisor::connect(dir)?,
            dom0: format!("hosted:{}", dir.display()),
            log,
        })
    }

    /// Its dom0.
    pub(super) fn dom0(&self) -> anyhow::Result<PlatformSpec> {
        Ok(self.dom0.parse()?)
    }

    /// Makes a domain without a process yet.
    pub(super) fn create_domain(&self, name: &str) -> anyhow::Result<DomId> {
        self.hypervisor.create_domain(name).context("create domain")
    }

    /// Starts the backend in dom0.
    pub(super) fn start_backend(&self) -> anyhow::Result<Process> {
        Process::start(
            "backend",
            self.log,
            ["--platform", &self.dom0, "backend"],
            Stdio::null(),
        )
    }

    /// Starts the process that is the guest: its domain ends with it.
    pub(super) fn start_guest(&self, domid: DomId, source: &Path) -> anyhow::Result<Process> {
        let platform = format!("{},{domid}", self.dom0);
        let args = ["--platform", &platform, "frontend", "demo", "--source"];
        let args = args.iter().map(OsStr::new).chain([source.as_os_str()]);
        let guest = Process::start("guest", self.log, args, Stdio::piped())?;
        let pidfd = pidfd_open(guest.pid()?, PidfdFlags::empty())?;
        self.hypervisor.bind_domain_to_process(domid, pidfd)?;
        Ok(guest)
    }

    /// What a domain holds and has called.
    pub(super) fn report(&self, domid: DomId) -> anyhow::Result<DomainReport> {
        self.hypervisor
            .domains()?
            .into_iter()
            .find(|report| report.domid == domid)
            .with_context(|| format!("domain {domid} is unknown to the machine"))
    }

    /// Ends it in order.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        drop(self.hypervisor);
        self.process.stop()
    }
}
