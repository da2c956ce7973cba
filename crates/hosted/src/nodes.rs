//! The XenStore nodes that libxl makes for a domain, with the permissions measured on Xen 4.17:
//! a domain's directory is dom0's and readable to it, a few nodes in it are its own.
//!
//! Not made: what only a real domain needs (console ring, memory sizes, CPUs).

use xen_types::DomId;
use xenstore::server::Server;
use xenstore::{Access, ErrorCode, Permissions};

/// Below the domain's directory, owned by dom0.
const OF_DOM0: [(&str, &str); 7] = [
    ("cpu", ""),
    ("memory", ""),
    ("store", ""),
    ("console", ""),
    ("device", ""),
    ("control", ""),
    ("control/platform-feature-multiprocessor-suspend", "1"),
];
/// Below the domain's directory, owned by the domain.
const OF_THE_DOMAIN: [&str; 11] = [
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
];

/// The domain's directory.
pub(crate) fn home(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// The directory of what is known of the virtual machine whatever its domain id.
pub(crate) fn vm(uuid: &str) -> String {
    format!("/vm/{uuid}")
}

/// What the toolstack of dom0 writes at boot.
pub(crate) fn make_dom0(store: &mut Server) -> Result<(), ErrorCode> {
    let home = home(DomId::DOM0);
    for (name, value) in [("name", "Domain-0"), ("domid", "0")] {
        let path = format!("{home}/{name}");
        store.make_node(&path, value.as_bytes(), Permissions::private(DomId::DOM0))?;
    }
    Ok(())
}

/// What libxl writes for a new guest.
pub(crate) fn make_guest(
    store: &mut Server,
    domid: DomId,
    name: &str,
    uuid: &str,
) -> Result<(), ErrorCode> {
    let read_only = || Permissions::private(DomId::DOM0).with(domid, Access::Read);
    let (home, vm) = (home(domid), vm(uuid));
    store.make_node(&vm, b"", read_only())?;
    store.make_node(&format!("{vm}/uuid"), uuid.as_bytes(), read_only())?;
    store.make_node(&format!("{vm}/name"), name.as_bytes(), read_only())?;

    store.make_node(&home, b"", read_only())?;
    let own = [
        ("vm", vm),
        ("name", name.to_owned()),
        ("domid", domid.to_string()),
    ];
    for (key, value) in own {
        store.make_node(&format!("{home}/{key}"), value.as_bytes(), read_only())?;
    }
    for (key, value) in OF_DOM0 {
        store.make_node(&format!("{home}/{key}"), value.as_bytes(), read_only())?;
    }
    store.make_node(&format!("{home}/device/suspend"), b"", read_only())?;
    for key in OF_THE_DOMAIN {
        store.make_node(&format!("{home}/{key}"), b"", Permissions::private(domid))?;
    }
    Ok(())
}
