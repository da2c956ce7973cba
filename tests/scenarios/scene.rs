//! A machine with a guest and a backend process, and what must be so when all is over.

use std::path::PathBuf;

use frontend_shim::Frontend;
use tests::{Bus, Ended, Holdings, LIMIT, Machine, Process, Toolstack, make_disk, vmsg};
use xen_types::DomId;

/// Bytes of a disk.
pub(crate) const BYTES: usize = 64 << 10;

pub(crate) struct Scene {
    pub(crate) toolstack: Toolstack,
    pub(crate) bus: Bus,
    pub(crate) backend: Process,
    pub(crate) machine: Machine,
}

impl Scene {
    /// A backend that is ready, and a guest without a bus.
    pub(crate) fn new() -> Self {
        let machine = Machine::start();
        let backend = start_backend(&machine);
        let mut toolstack = Toolstack::new(machine.store(DomId::DOM0));
        toolstack.wait("/local/domain/0/backend/virtio-msg", |node| node.is_some());
        Self {
            toolstack,
            bus: Bus::of(machine.create_domain("guest")),
            machine,
            backend,
        }
    }

    /// Starts `vmsg` in dom0.
    pub(crate) fn start(&self, args: &[&str]) -> Process {
        Process::start(&mut vmsg(&self.machine, DomId::DOM0, args))
    }

    /// Runs `vmsg` in dom0.
    pub(crate) fn vmsg(&self, args: &[&str]) -> Ended {
        self.start(args).end()
    }

    /// Runs `vmsg` in the guest.
    pub(crate) fn in_guest(&self, args: &[&str]) -> Ended {
        Process::start(&mut vmsg(&self.machine, self.bus.guest, args)).end()
    }

    /// Makes an image, and attaches it with its name as serial.
    pub(crate) fn attach(&self, name: &str) -> Ended {
        let path = self.image(name);
        let line = format!("type=blk,serial={name},path={}", path.display());
        self.vmsg(&["attach", "guest", &line])
    }

    /// Makes an image.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        let path = self.machine.file(name);
        make_disk(&path, BYTES);
        path
    }

    /// A connected frontend in this process.
    pub(crate) fn frontend(&self) -> Frontend {
        let mut frontend = Frontend::open(&self.machine.spec(self.bus.guest), 0).unwrap();
        frontend.connect(LIMIT).unwrap();
        frontend
    }

    /// Nothing of the guest's buses is left anywhere.
    pub(crate) fn assert_clean(&mut self) {
        for path in ["/local/domain/0/backend/virtio-msg", "/vmsg"] {
            assert_eq!(self.toolstack.list(path), [] as [&str; 0], "{path}");
        }
        let home = format!("/local/domain/{}/device/virtio-msg", self.bus.guest);
        assert_eq!(self.toolstack.list(&home), [] as [&str; 0]);
        assert_eq!(self.machine.holdings(DomId::DOM0), Holdings::default());
        assert_eq!(self.machine.holdings(self.bus.guest), Holdings::default());
    }
}

pub(crate) fn start_backend(machine: &Machine) -> Process {
    Process::start(&mut vmsg(machine, DomId::DOM0, &["backend"]))
}
