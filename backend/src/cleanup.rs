//! Directories of a domain that died (binding section 9): nobody else removes them.

use xen_types::DomId;
use xenstore::{Client, StoreError, Tree as _};

use crate::host::Host;
use crate::instance::{InstanceId, Paths, backend_root};

/// Removes what the store holds of an instance whose frontend's domain is gone: the backend's
/// directory and the toolstack's record. A driver domain may remove the first alone; dom0's toolstack
/// does the rest with its next call.
pub(crate) fn remove_dead(host: &mut Host, id: InstanceId, paths: &Paths) {
    let store = &mut host.store;
    let mut removed = remove(store, &paths.backend);
    if host.own == DomId::DOM0 {
        let domain = format!("{}/{}", backend_root(host.own), id.frontend);
        let record = format!("/vmsg/{}", id.frontend);
        removed = removed
            .and_then(|()| remove_if_empty(store, &domain))
            .and_then(|()| remove(store, &format!("{record}/{}", id.handle)))
            .and_then(|()| remove_if_empty(store, &record));
    }
    match removed {
        Ok(()) => tracing::info!(%id, "the domain is gone; its directories are removed"),
        Err(error) => tracing::warn!(%id, %error, "directories of a dead domain stay behind"),
    }
}

fn remove(store: &mut Client, path: &str) -> Result<(), StoreError> {
    match store.rm(path) {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}

fn remove_if_empty(store: &mut Client, path: &str) -> Result<(), StoreError> {
    match store.directory(path) {
        Ok(names) if names.is_empty() => remove(store, path),
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}
