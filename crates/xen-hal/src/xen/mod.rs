//! A real Xen, through the devices that Linux offers to processes below `/dev/xen`.
//!
//! Raw ioctls: no library of Xen is linked, so that one static binary runs in dom0
//! and in any guest.

mod evtchn;
mod gntalloc;
mod gntdev;
mod privcmd;
mod sys;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub(crate) use evtchn::Evtchn;
pub(crate) use gntalloc::Gntalloc;
pub(crate) use gntdev::Gntdev;
pub(crate) use privcmd::{
    CreateIoreqServer, DestroyIoreqServer, MapIoRange, Privcmd, SetIoreqServerState,
};

use crate::OpenError;

/// The event-channel device, which every Xen domain with the module has.
pub(crate) const EVTCHN: &str = "/dev/xen/evtchn";

/// The open devices, each opened by the first call that needs it.
#[derive(Clone, Debug)]
pub struct Xen(Arc<Devices>);

#[derive(Debug, Default)]
struct Devices {
    gntdev: OnceLock<Arc<Gntdev>>,
    gntalloc: OnceLock<Arc<Gntalloc>>,
}

impl Xen {
    pub(crate) fn open() -> Result<Self, OpenError> {
        if !Path::new("/dev/xen").exists() {
            return Err(OpenError::NotXen);
        }
        Ok(Self(Arc::default()))
    }

    pub(crate) fn gntdev(&self) -> Result<Arc<Gntdev>, OpenError> {
        get_or_open(&self.0.gntdev, Gntdev::open)
    }

    pub(crate) fn gntalloc(&self) -> Result<Arc<Gntalloc>, OpenError> {
        get_or_open(&self.0.gntalloc, Gntalloc::open)
    }
}

/// Two threads may open at the same time; one of the two files is closed again.
fn get_or_open<T>(
    cell: &OnceLock<Arc<T>>,
    open: fn() -> Result<T, OpenError>,
) -> Result<Arc<T>, OpenError> {
    let device = match cell.get() {
        Some(device) => device,
        None => {
            let opened = Arc::new(open()?);
            cell.get_or_init(|| opened)
        }
    };
    Ok(Arc::clone(device))
}

/// Opens a device of `/dev/xen`; an error says which is missing and what to do.
fn open_device(device: &'static str, module: &'static str) -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(device)
        .map_err(|source| match source.kind() {
            ErrorKind::NotFound => OpenError::NoModule { device, module },
            ErrorKind::PermissionDenied => OpenError::Denied { device },
            _ => OpenError::Device { device, source },
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_names_its_module() {
        let error = open_device("/dev/xen-is-not-here/gntdev", "xen-gntdev").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/dev/xen-is-not-here/gntdev is missing: load its module with `modprobe xen-gntdev`"
        );
    }
}
