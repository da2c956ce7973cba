//! The bus instances of this domain, as XenStore names them (binding sections 1 and 2).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use xen_bus::handshake::XenbusState;
use xen_types::{DomId, parse_decimal};
use xenstore::{Client, StoreError, Tree as _};

use crate::error::FrontendError;

/// Where a guest finds its instances, relative to its home.
const ROOT: &str = "device/virtio-msg";
/// Lock files of user-space frontends.
const LOCK_DIR: &str = "/run/lock";

/// One bus instance, as the toolstack made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The number of the bus.
    pub handle: u32,
    /// The domain of the backend.
    pub backend: DomId,
    /// The backend's directory.
    pub backend_path: String,
}

impl Instance {
    /// Every instance of this domain, by handle. What is not complete is left out.
    ///
    /// # Errors
    /// XenStore fails.
    pub fn list(store: &mut Client) -> Result<Vec<Self>, StoreError> {
        let names = match store.directory(ROOT) {
            Err(error) if error.is_absent() => Vec::new(),
            other => other?,
        };
        let mut handles: Vec<u32> = names
            .iter()
            .filter_map(|name| parse_decimal(name.as_bytes()))
            .collect();
        handles.sort_unstable();
        let mut instances = Vec::new();
        for handle in handles {
            instances.extend(Self::read(store, handle)?);
        }
        Ok(instances)
    }

    /// The instance with this handle; `None` if there is none.
    ///
    /// # Errors
    /// XenStore fails.
    pub fn read(store: &mut Client, handle: u32) -> Result<Option<Self>, StoreError> {
        let path = |key: &str| own_path(handle, key);
        let backend = store.read_opt(&path("backend-id"))?;
        let backend_path = store.read_opt(&path("backend"))?;
        let backend = backend
            .and_then(|text| u16::try_from(parse_decimal(&text)?).ok())
            .map(DomId);
        let backend_path = backend_path.and_then(|text| String::from_utf8(text).ok());
        let (Some(backend), Some(backend_path)) = (backend, backend_path) else {
            return Ok(None);
        };
        Ok(Some(Self {
            handle,
            backend,
            backend_path,
        }))
    }

    /// The backend's state, as far as it can be read.
    ///
    /// # Errors
    /// XenStore fails.
    pub fn backend_state(&self, store: &mut Client) -> Result<XenbusState, StoreError> {
        let text = store.read_opt(&self.peer("state"))?;
        Ok(text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
    }

    /// The path of a key of the own directory.
    #[must_use]
    pub fn own(&self, key: &str) -> String {
        own_path(self.handle, key)
    }

    /// The path of a key of the backend's directory.
    #[must_use]
    pub fn peer(&self, key: &str) -> String {
        format!("{}/{key}", self.backend_path)
    }
}

fn own_path(handle: u32, key: &str) -> String {
    format!("{ROOT}/{handle}/{key}")
}

/// Held while this process is the frontend of an instance.
#[derive(Debug)]
pub(crate) struct FrontendLock {
    _file: File,
}

impl FrontendLock {
    /// Claims instance `handle` of a real domain for this process.
    pub(crate) fn take_on_xen(handle: u32) -> Result<Self, FrontendError> {
        let driver = format!("/sys/bus/xen/devices/virtio-msg-{handle}/driver");
        if let Ok(driver) = fs::read_link(&driver) {
            let driver = driver
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            return Err(FrontendError::KernelDriver { handle, driver });
        }
        Self::take(Path::new(LOCK_DIR), handle)
    }

    /// Claims an instance by a lock file in `dir`.
    pub(crate) fn take(dir: &Path, handle: u32) -> Result<Self, FrontendError> {
        let path: PathBuf = dir.join(format!("vmsg-{handle}"));
        let failed = |source: io::Error| FrontendError::Lock {
            path: path.display().to_string(),
            source,
        };
        fs::create_dir_all(dir).map_err(failed)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(FrontendError::InUse { handle }),
            Err(error) => Err(failed(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_one_frontend_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = FrontendLock::take(dir.path(), 0).unwrap();
        assert!(matches!(
            FrontendLock::take(dir.path(), 0),
            Err(FrontendError::InUse { handle: 0 })
        ));
        FrontendLock::take(dir.path(), 1).unwrap();
        drop(held);
        FrontendLock::take(dir.path(), 0).unwrap();
    }
}
