//! A hosted machine in a directory of its own; its broker runs on a thread of the test.

use std::path::{Path, PathBuf};

use hosted::{Broker, Running};
use tempfile::TempDir;
use xen_hal::PlatformSpec;
use xen_hal::hosted::wire::{DomainReport, DomainState};
use xen_hal::hosted::{Counters, Hypervisor, layout};
use xen_types::DomId;
use xenstore::Client;

/// What a domain holds of others, or others of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Pages that it grants, also those that wait for a peer to unmap them.
    pub granted: u32,
    /// Pages of others that it has mapped.
    pub mapped: u32,
    /// Event-channel ports.
    pub ports: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    hypervisor: Hypervisor,
    _broker: Running,
    dir: TempDir,
}

impl Machine {
    /// A machine with dom0 alone.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let broker = Broker::open(dir.path()).expect("broker");
        let broker = broker.spawn().expect("broker's thread");
        let hypervisor = Hypervisor::connect(dir.path()).expect("hypervisor");
        Self {
            hypervisor,
            _broker: broker,
            dir,
        }
    }

    /// Its directory; tests keep their files there too.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in its directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// How a process joins it as `domid`.
    #[must_use]
    pub fn spec(&self, domid: DomId) -> PlatformSpec {
        PlatformSpec::Hosted {
            dir: self.dir().to_owned(),
            domid,
        }
    }

    /// Who makes and ends domains.
    #[must_use]
    pub fn hypervisor(&self) -> &Hypervisor {
        &self.hypervisor
    }

    /// Makes a domain without a process.
    #[must_use]
    pub fn create_domain(&self, name: &str) -> DomId {
        self.hypervisor.create_domain(name).expect("create domain")
    }

    /// A connection to XenStore as `domid`.
    #[must_use]
    pub fn store(&self, domid: DomId) -> Client {
        Client::connect_socket(&layout::store_socket(self.dir(), domid)).expect("XenStore")
    }

    /// Returns when the broker has done, and delivered, everything that was asked of it before:
    /// it serves one packet at a time.
    pub fn barrier(&self) {
        self.hypervisor.domains().expect("the broker");
    }

    /// What the broker knows of a domain.
    #[must_use]
    pub fn report(&self, domid: DomId) -> DomainReport {
        let domains = self.hypervisor.domains().expect("the broker");
        let found = domains.into_iter().find(|domain| domain.domid == domid);
        found.expect("the domain was made")
    }

    /// What the domain holds.
    #[must_use]
    pub fn holdings(&self, domid: DomId) -> Holdings {
        let report = self.report(domid);
        Holdings {
            granted: report.granted_pages,
            mapped: report.mapped_pages,
            ports: report.ports,
        }
    }

    /// Its hypercalls so far.
    #[must_use]
    pub fn counters(&self, domid: DomId) -> Counters {
        self.report(domid).counters
    }

    /// Whether it is gone, and nobody holds a page of it.
    #[must_use]
    pub fn is_gone(&self, domid: DomId) -> bool {
        self.report(domid).state == DomainState::Gone
    }

    /// The backends' lock files.
    #[must_use]
    pub fn lock_files(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.file("run")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.expect("run directory").file_name());
        names
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".state"))
            .collect()
    }
}
