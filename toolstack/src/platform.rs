//! Which platform a command runs on, and its XenStore.

use anyhow::Context as _;
use xen_hal::{Platform, PlatformSpec, StorePath};
use xen_types::DomId;
use xenstore::{Client, Tree as _};

use crate::bus::backend_root;
use crate::domain;

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
    match own_domid(&mut store)? {
        DomId::DOM0 => Ok(store),
        own => Err(NotDom0(own).into()),
    }
}

/// The same for what a driver domain may do too, for its own part; and which domain this is.
pub(crate) fn open_serving_store(spec: &PlatformSpec) -> anyhow::Result<(Client, DomId)> {
    let mut store = open_store(spec)?;
    let own = own_domid(&mut store)?;
    if own != DomId::DOM0 && store.read_opt(&backend_root(own))?.is_none() {
        return Err(NotDom0(own).into());
    }
    Ok((store, own))
}

/// Only dom0 may do that.
#[derive(Debug, thiserror::Error)]
#[error(
    "this is domain {0}: only dom0 sees all guests and may give them devices; `vmsg frontend list` shows this domain's own"
)]
struct NotDom0(DomId);

/// The domain that XenStore takes this process for; dom0 need not have the node.
pub(crate) fn own_domid(store: &mut Client) -> anyhow::Result<DomId> {
    match domain::read_text(store, "domid")? {
        None => Ok(DomId::DOM0),
        Some(text) => domain::parse_domid(&text)
            .with_context(|| format!("the node `domid` of this domain is {text:?}, no number")),
    }
}
