//! What the machine says of itself: files below `/dev/xen`, `/sys` and `/proc`, and the limits of
//! this process.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::{Resource, geteuid, getrlimit};
use xen_hal::PlatformSpec;
use xen_types::DomId;
use xenstore::Tree as _;

use crate::bus::backend_root;
use crate::driver_domain::Usage;
use crate::platform;

/// What a Linux kernel tells of the Xen below it.
#[derive(Debug)]
pub(super) struct Xen {
    /// Whether the kernel runs on Xen.
    pub(super) present: bool,
    /// Such as 4.17.7; empty if it is not told.
    pub(super) version: String,
    /// PV, PVH or HVM; `None` if it is not told.
    pub(super) guest_type: Option<String>,
    /// Whether this is the control domain.
    pub(super) is_control_domain: bool,
    pub(super) evtchn: Device,
    pub(super) gntdev: Device,
    pub(super) gntalloc: Device,
    pub(super) xenbus: Device,
    /// Pages that gntalloc grants in all.
    pub(super) gntalloc_limit: Option<u64>,
    /// Grants that gntdev maps in one call.
    pub(super) gntdev_limit: Option<u64>,
}

/// A device of `/dev/xen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// It can be opened.
    Usable,
    /// There is no such node.
    Missing {
        /// Its module is loaded all the same, or built in.
        module_loaded: bool,
    },
    /// The node is there, but not for this user.
    Denied,
    /// Anything else that the kernel answered.
    Broken(String),
}

/// What XenStore says of this domain.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) own: DomId,
    /// What it uses to serve buses, if a toolstack made it serve any.
    pub(super) serving: Option<Usage>,
}

/// The limits of this process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) is_root: bool,
    /// File descriptors; `None` if they are not limited.
    pub(super) descriptors: Option<u64>,
}

impl Xen {
    /// Looks below `root`, which is `/` but for tests.
    pub(super) fn look(root: &Path) -> Self {
        let text = |path: &str| {
            let text = fs::read_to_string(root.join(path)).ok()?;
            Some(text.trim().to_owned())
        };
        let number = |path: &str| text(path)?.parse().ok();
        let version = |part: &str| text(&format!("sys/hypervisor/version/{part}"));
        Self {
            present: text("sys/hypervisor/type").as_deref() == Some("xen")
                || root.join("dev/xen").is_dir(),
            version: match (version("major"), version("minor"), version("extra")) {
                (Some(major), Some(minor), extra) => {
                    format!("{major}.{minor}{}", extra.unwrap_or_default())
                }
                _ => String::new(),
            },
            guest_type: text("sys/hypervisor/guest_type"),
            is_control_domain: text("proc/xen/capabilities")
                .is_some_and(|capabilities| capabilities.contains("control_d")),
            evtchn: Device::look(root, "evtchn", "xen_evtchn"),
            gntdev: Device::look(root, "gntdev", "xen_gntdev"),
            gntalloc: Device::look(root, "gntalloc", "xen_gntalloc"),
            xenbus: Device::look(root, "xenbus", "xenbus"),
            gntalloc_limit: number("sys/module/xen_gntalloc/parameters/limit"),
            gntdev_limit: number("sys/module/xen_gntdev/parameters/limit"),
        }
    }
}

impl Store {
    /// Asks XenStore.
    pub(super) fn look(spec: &PlatformSpec) -> anyhow::Result<Self> {
        let mut store = platform::open_store(spec)?;
        let own = platform::own_domid(&mut store)?;
        let serves = own != DomId::DOM0 && store.read_opt(&backend_root(own))?.is_some();
        let serving = serves.then(|| Usage::now(&mut store, own)).transpose()?;
        Ok(Self { own, serving })
    }
}

impl Device {
    fn look(root: &Path, name: &str, module: &str) -> Self {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(root.join("dev/xen").join(name));
        match opened {
            Ok(_) => Self::Usable,
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Self::Missing {
                    module_loaded: root.join("sys/module").join(module).exists(),
                },
                ErrorKind::PermissionDenied => Self::Denied,
                _ => Self::Broken(error.to_string()),
            },
        }
    }
}

impl Process {
    pub(super) fn look() -> Self {
        Self {
            is_root: geteuid().is_root(),
            descriptors: getrlimit(Resource::Nofile).current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_xen_has_nothing() {
        let root = tempfile::tempdir().unwrap();
        let xen = Xen::look(root.path());
        assert!(!xen.present && !xen.is_control_domain);
        assert_eq!((xen.version.as_str(), xen.guest_type), ("", None));
        let missing = Device::Missing {
            module_loaded: false,
        };
        assert_eq!(xen.evtchn, missing);
        assert_eq!(xen.gntalloc_limit, None);
    }

    #[test]
    fn what_the_kernel_tells_is_read() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("sys/hypervisor/type", "xen\n"),
            ("sys/hypervisor/guest_type", "PV\n"),
            ("sys/hypervisor/version/major", "4\n"),
            ("sys/hypervisor/version/minor", "17\n"),
            ("sys/hypervisor/version/extra", ".7\n"),
            ("proc/xen/capabilities", "control_d\n"),
            ("sys/module/xen_gntalloc/parameters/limit", "1024\n"),
            ("sys/module/xen_evtchn/refcnt", "0\n"),
            ("dev/xen/gntdev", ""),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let xen = Xen::look(root.path());
        assert!(xen.present && xen.is_control_domain);
        assert_eq!(xen.version, "4.17.7");
        assert_eq!(xen.guest_type.as_deref(), Some("PV"));
        assert_eq!(xen.gntdev, Device::Usable);
        let module_loaded = true;
        assert_eq!(xen.evtchn, Device::Missing { module_loaded });
        assert_eq!(xen.gntalloc_limit, Some(1024));
        assert_eq!(xen.gntdev_limit, None);
    }
}
