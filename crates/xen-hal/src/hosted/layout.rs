//! Where things stand in a broker's directory.

use std::path::{Path, PathBuf};

use xen_types::DomId;

/// XenStore of a domain: dom0's where tools of dom0 look below a run directory, any other's beside its hypervisor.
#[must_use]
pub fn store_socket(dir: &Path, domid: DomId) -> PathBuf {
    if domid == DomId::DOM0 {
        dir.join("xenstored").join("socket")
    } else {
        domain_dir(dir, domid).join("socket")
    }
}

/// The hypervisor of a domain.
#[must_use]
pub fn hypervisor_socket(dir: &Path, domid: DomId) -> PathBuf {
    domain_dir(dir, domid).join("hypervisor")
}

/// The directory of a domain's sockets.
#[must_use]
pub fn domain_dir(dir: &Path, domid: DomId) -> PathBuf {
    dir.join(format!("dom{domid}"))
}
