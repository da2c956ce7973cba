//! A hosted machine with a backend: all of the product but the guests, in this process.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, anyhow};
use backend::Service;
use hosted::{Broker, Running};
use tempfile::TempDir;
use xen_hal::PlatformSpec;
use xen_hal::hosted::wire::DomainReport;
use xen_hal::hosted::{Counters, Hypervisor, layout};
use xen_types::DomId;
use xenstore::{Access, Client, Permissions, Tree as _};

/// How the kernel knows the backend's thread.
pub(crate) const BACKEND_THREAD: &str = "backend";

/// The machine; dropping it ends the backend, then the broker.
#[derive(Debug)]
pub(crate) struct Machine {
    backend: Option<Backend>,
    store: Client,
    hypervisor: Hypervisor,
    _broker: Running,
    dir: TempDir,
}

impl Machine {
    /// Starts it with a backend, whose thread runs where the caller does.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut machine = Self::without_backend()?;
        machine.start_backend()?;
        Ok(machine)
    }

    /// Starts it; buses can be made, but nobody serves them.
    pub(crate) fn without_backend() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("vmsg-bench-")
            .tempdir()
            .context("a directory for the machine")?;
        let broker = Broker::open(dir.path())?.spawn()?;
        let hypervisor = Hypervisor::connect(dir.path())?;
        Ok(Self {
            backend: None,
            store: Client::connect_socket(&layout::store_socket(dir.path(), DomId::DOM0))?,
            hypervisor,
            _broker: broker,
            dir,
        })
    }

    /// Serves the buses that there are, and those to come.
    pub(crate) fn start_backend(&mut self) -> anyhow::Result<()> {
        let backend = Backend::start(self.dir.path())?;
        self.backend = Some(backend);
        Ok(())
    }

    /// A guest with a bus that has one device for each line.
    pub(crate) fn guest(&mut self, devices: &[String]) -> anyhow::Result<DomId> {
        let guest = self.create_domain()?;
        self.bus(guest, 0, devices)?;
        Ok(guest)
    }

    /// A bus of a guest.
    pub(crate) fn bus(
        &mut self,
        guest: DomId,
        handle: u32,
        devices: &[String],
    ) -> anyhow::Result<()> {
        let front = format!("/local/domain/{guest}/device/virtio-msg/{handle}");
        let back = format!("/local/domain/0/backend/virtio-msg/{guest}/{handle}");
        self.store
            .transact(|tx| -> Result<(), xenstore::StoreError> {
                tx.mkdir(&front)?;
                let frontend = Permissions::private(guest);
                tx.set_perms(&front, &frontend.with(DomId::DOM0, Access::Read))?;
                tx.mkdir(&back)?;
                let backend = Permissions::private(DomId::DOM0);
                tx.set_perms(&back, &backend.with(guest, Access::Read))?;
                tx.write(&format!("{front}/backend"), back.as_str())?;
                tx.write(&format!("{front}/backend-id"), "0")?;
                tx.write(&format!("{front}/state"), "1")?;
                tx.write(&format!("{back}/frontend"), front.as_str())?;
                tx.write(&format!("{back}/frontend-id"), guest.to_string())?;
                tx.write(&format!("{back}/online"), "1")?;
                tx.write(&format!("{back}/state"), "1")?;
                for (number, line) in devices.iter().enumerate() {
                    let device = format!("{back}/device/{number}");
                    tx.mkdir(&device)?;
                    tx.set_perms(&device, &Permissions::private(DomId::DOM0))?;
                    tx.write(&format!("{device}/config"), line.as_str())?;
                    tx.write(&format!("{device}/online"), "1")?;
                }
                Ok(())
            })
            .with_context(|| format!("bus {handle} of domain {guest}"))
    }

    /// A domain without a bus.
    pub(crate) fn create_domain(&self) -> anyhow::Result<DomId> {
        let others = self.hypervisor.domains()?.len();
        Ok(self.hypervisor.create_domain(&format!("guest{others}"))?)
    }

    /// How a domain's process joins.
    pub(crate) fn spec(&self, domid: DomId) -> PlatformSpec {
        PlatformSpec::Hosted {
            dir: self.dir.path().to_owned(),
            domid,
        }
    }

    /// A connection to XenStore.
    pub(crate) fn store(&self, domid: DomId) -> anyhow::Result<Client> {
        let socket = layout::store_socket(self.dir.path(), domid);
        Ok(Client::connect_socket(&socket)?)
    }

    /// Hypercalls of a domain so far.
    pub(crate) fn counters(&self, domid: DomId) -> anyhow::Result<Counters> {
        self.report(domid).map(|report| report.counters)
    }

    fn report(&self, domid: DomId) -> anyhow::Result<DomainReport> {
        self.hypervisor
            .domains()?
            .into_iter()
            .find(|report| report.domid == domid)
            .with_context(|| format!("domain {domid} is unknown"))
    }
}

/// The backend of dom0 in a process of its own, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct BackendProcess(Child);

impl BackendProcess {
    /// Starts the executable `vmsg` as backend of the machine.
    pub(crate) fn start(machine: &Machine, vmsg: &Path) -> anyhow::Result<Self> {
        let child = Command::new(vmsg)
            .arg("--platform")
            .arg(machine.spec(DomId::DOM0).to_string())
            .arg("backend")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| vmsg.display().to_string())?;
        Ok(Self(child))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for BackendProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let ended = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = ended {
            eprintln!("the backend's process: {error}");
        }
    }
}

/// The backend of dom0 on a thread of its own.
#[derive(Debug)]
struct Backend {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Backend {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let spec = PlatformSpec::Hosted {
            dir: dir.to_owned(),
            domid: DomId::DOM0,
        };
        let mut service = Service::new(backend::open_host(&spec)?, Some(stopped.as_fd()))?;
        let thread = thread::Builder::new()
            .name(BACKEND_THREAD.into())
            .spawn(move || {
                let _readable_at_the_end = stopped;
                service.run().map_err(|error| anyhow!(error))
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Its other end becomes readable: the signal to stop.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("the backend ended: {error:#}"),
                Err(_) => eprintln!("the backend panicked"),
            }
        }
    }
}
