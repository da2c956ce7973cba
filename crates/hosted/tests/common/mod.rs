//! A broker on a thread, its domains, and waiting for events with a bound.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use guest_memory::{Access, Area};
use hosted::{Broker, Running};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tempfile::TempDir;
use xen_hal::hosted::wire::{DomainReport, DomainState};
use xen_hal::hosted::{Hypervisor, layout};
use xen_hal::{EventChannels, MapError, Platform, PlatformSpec};
use xen_types::{DomId, EvtchnPort, GrantRef};
use xenstore::Client;

/// Longer than anything takes; what is waited for comes, or the test fails.
const BOUND: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

pub struct Host {
    pub hypervisor: Hypervisor,
    _broker: Running,
    dir: TempDir,
}

impl Host {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = Broker::open(dir.path()).unwrap().spawn().unwrap();
        Self {
            hypervisor: Hypervisor::connect(dir.path()).unwrap(),
            _broker: broker,
            dir,
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn guest(&self, name: &str) -> DomId {
        self.hypervisor.create_domain(name).unwrap()
    }

    pub fn platform(&self, domid: DomId) -> Platform {
        platform(self.dir.path(), domid)
    }

    pub fn store(&self, domid: DomId) -> Client {
        Client::connect_socket(&layout::store_socket(self.dir(), domid)).unwrap()
    }

    /// What the hypervisor tells of a domain; `None` if it never was.
    pub fn report(&self, domid: DomId) -> Option<DomainReport> {
        let domains = self.hypervisor.domains().unwrap();
        domains.into_iter().find(|domain| domain.domid == domid)
    }

    pub fn state(&self, domid: DomId) -> DomainState {
        self.report(domid).unwrap().state
    }

    /// Pages granted, pages mapped, ports.
    pub fn holdings(&self, domid: DomId) -> (u32, u32, u32) {
        let domain = self.report(domid).unwrap();
        (domain.granted_pages, domain.mapped_pages, domain.ports)
    }
}

pub fn platform(dir: &Path, domid: DomId) -> Platform {
    let dir = PathBuf::from(dir);
    Platform::open(&PlatformSpec::Hosted { dir, domid }).unwrap()
}

pub fn map(
    platform: &Platform,
    peer: DomId,
    refs: &[GrantRef],
    access: Access,
) -> Result<Area, MapError> {
    let mut builder = platform.begin_mapping(peer, refs.len(), access)?;
    builder.map(refs)?;
    builder.finish()
}

pub fn wait_readable(fd: impl AsFd) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&BOUND))).unwrap();
    assert_eq!(ready, 1, "nothing came");
}

/// The ports that have an event now.
pub fn pending(events: &mut EventChannels) -> Vec<EvtchnPort> {
    let mut ports = Vec::new();
    events.pending(&mut ports).unwrap();
    ports
}

/// Waits for an event, and lets its ports report again.
pub fn wait_event(events: &mut EventChannels) -> Vec<EvtchnPort> {
    loop {
        wait_readable(&*events);
        let ports = pending(events);
        if !ports.is_empty() {
            events.unmask(&ports).unwrap();
            return ports;
        }
    }
}

pub fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

/// A connection to the hypervisor that speaks the wire itself.
pub fn packet_socket(host: &Host, domid: DomId) -> OwnedFd {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let path = layout::hypervisor_socket(host.dir(), domid);
    rustix::net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    socket
}
