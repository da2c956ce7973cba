//! What only dom0 may ask of the broker: making and ending domains.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use xen_types::DomId;

use super::connection::{Connection, unexpected};
use super::wire::{DomainReport, Reply, Request};
use crate::OpenError;

/// A privileged connection, which the toolstack has.
#[derive(Debug)]
pub struct Hypervisor(Connection);

impl Hypervisor {
    /// Connects to the broker of `dir` as dom0.
    pub fn connect(dir: &Path) -> Result<Self, OpenError> {
        Self::connect_as(dir, DomId::DOM0)
    }

    /// The same as another domain, which may only ask [`Self::domains`], and is told of itself.
    pub fn connect_as(dir: &Path, domid: DomId) -> Result<Self, OpenError> {
        Connection::open(dir, domid).map(Self)
    }

    /// Makes a domain with the XenStore nodes that libxl makes, and introduces it.
    pub fn create_domain(&self, name: &str) -> io::Result<DomId> {
        let name = name.to_owned();
        match self.0.call(&Request::CreateDomain { name })? {
            (Reply::Domain(domid), _) => Ok(domid),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Ends a domain: its connections, ports and grants go; a zombie stays while others have pages of it mapped.
    pub fn destroy_domain(&self, domid: DomId) -> io::Result<()> {
        self.0.done(&Request::DestroyDomain { domid })
    }

    /// The domain ends when the process of `pidfd` does.
    pub fn bind_domain_to_process(&self, domid: DomId, pidfd: impl AsFd) -> io::Result<()> {
        let request = Request::BindProcess { domid };
        match self.0.call_with(&request, &[pidfd.as_fd()])? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Every domain, zombies too, and the last ones that are gone.
    pub fn domains(&self) -> io::Result<Vec<DomainReport>> {
        match self.0.call(&Request::Domains)? {
            (Reply::Domains(domains), _) => Ok(domains),
            (other, _) => Err(unexpected(&other)),
        }
    }
}
