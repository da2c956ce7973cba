//! Which platform a command runs on, and its XenStore.

use anyhow::bail;
use xen_hal::{Platform, PlatformSpec, StorePath};
use xenstore::{Client, Tree as _};

/// No platform was named, and this is no Xen domain.
#[derive(Debug, thiserror::Error)]
#[error(
    "this machine is no Xen domain (/dev/xen/evtchn is not there): run `vmsg hosted DIR` and give --platform hosted:DIR, or see `vmsg demo`"
)]
pub(crate) struct NoPlatform;

/// The platform that was named, or the Xen below.
pub(crate) fn or_default(named: Option<PlatformSpec>) -> Result<PlatformSpec, NoPlatform> {
    named
        .or_else(PlatformSpec::default_for_machine)
        .ok_or(NoPlatform)
}

/// Connects to the XenStore of a platform.
pub(crate) fn open_store(spec: &PlatformSpec) -> anyhow::Result<Client> {
    Ok(match Platform::open(spec)?.store_path() {
        StorePath::Socket(path) => Client::connect_socket(&path)?,
        StorePath::Device(path) => Client::connect_device(&path)?,
    })
}

/// The same for what only dom0 may do.
pub(crate) fn open_dom0_store(spec: &PlatformSpec) -> anyhow::Result<Client> {
    let mut store = open_store(spec)?;
    if let Some(domid) = store.read_opt("domid")?
        && domid != b"0"
    {
        bail!(
            "this is domain {}: only dom0 sees all guests and may give them devices; `vmsg frontend list` shows this domain's own",
            String::from_utf8_lossy(&domid)
        );
    }
    Ok(store)
}
