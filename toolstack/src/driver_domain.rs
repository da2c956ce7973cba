//! What a driver domain needs of dom0's toolstack to serve buses, and what XenStore lets it use up
//! (binding sections 2 and 9).
//!
//! It needs little: the directories of its buses are made for it, one watch sees them come, and one
//! on each frontend sees the guest go. It owns what stands in the directories of its buses, so
//! xenstored counts that against its quota.

use std::collections::BTreeSet;

use xen_types::DomId;
use xenstore::{Access, Client, Permissions, StoreError, Tree as _};

use crate::bus::Bus;
use crate::domain::numbers;

/// Fires when a domain is gone.
const RELEASE: &str = "@releaseDomain";

/// What serving uses up of a domain's quota in XenStore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Nodes that it owns.
    pub(crate) nodes: usize,
    /// Watches.
    pub(crate) watches: usize,
    /// Transactions at a time.
    pub(crate) transactions: usize,
}

/// What xenstored gives an unprivileged domain if nobody says otherwise.
pub(crate) const DEFAULT_QUOTA: Usage = Usage {
    nodes: 1000,
    watches: 128,
    transactions: 10,
};

/// Of a bus: its directory, `device` in it, and 15 keys, `error` among them (section 2). The
/// directory of all the guest's buses stays dom0's.
const NODES_PER_BUS: usize = 17;
/// Of a device: its directory, `config`, `online`, `status`, `error`.
const NODES_PER_DEVICE: usize = 5;
/// On the list of its buses, and on [`RELEASE`].
const WATCHES: usize = 2;
/// On the frontend's state.
const WATCHES_PER_BUS: usize = 1;
/// The backend does one thing after the other.
const TRANSACTIONS: usize = 1;

impl Usage {
    /// The most that a backend uses for so many buses, with so many devices on all of them.
    pub(crate) fn of(buses: usize, devices: usize) -> Self {
        Self {
            nodes: buses * NODES_PER_BUS + devices * NODES_PER_DEVICE,
            watches: WATCHES + buses * WATCHES_PER_BUS,
            transactions: TRANSACTIONS,
        }
    }

    /// What a driver domain uses now.
    pub(crate) fn now(store: &mut Client, driver: DomId) -> Result<Self, StoreError> {
        let buses = Bus::served_by(store, driver)?;
        let mut devices = 0;
        for bus in &buses {
            devices += numbers(store, &bus.devices())?.len();
        }
        Ok(Self::of(buses.len(), devices))
    }

    /// The quota that it goes beyond, if nobody raised it: its name for `xenstore-control quota
    /// set`, what is needed, and what there is.
    pub(crate) fn beyond(&self, quota: &Self) -> Option<(&'static str, usize, usize)> {
        [
            ("nodes", self.nodes, quota.nodes),
            ("watches", self.watches, quota.watches),
            ("transactions", self.transactions, quota.transactions),
        ]
        .into_iter()
        .find(|(_, needed, given)| needed > given)
    }
}

/// Lets a driver domain see domains go, and says so if the next device may go beyond its quota:
/// dom0 does not run into it, the backend would, later.
pub(crate) fn prepare(store: &mut Client, driver: DomId) -> Result<(), StoreError> {
    let others = Bus::all(store)?.into_iter().map(|bus| bus.backend_id);
    store.set_perms(RELEASE, &release_rights(others.chain([driver])))?;
    let now = Usage::now(store, driver)?;
    let next = Usage {
        nodes: now.nodes + NODES_PER_BUS + NODES_PER_DEVICE,
        watches: now.watches + WATCHES_PER_BUS,
        ..now
    };
    if let Some((what, needed, given)) = next.beyond(&DEFAULT_QUOTA) {
        tracing::warn!(
            "domain {driver} needs up to {needed} {what} in XenStore for what it serves, and has {given} unless they were raised: `xenstore-control quota set {what} {}`",
            needed.next_power_of_two()
        );
    }
    Ok(())
}

/// Who may see domains go: dom0, and the driver domains, all given anew, because xenstored does not
/// tell the permissions of this node (GET_PERMS answers EINVAL).
fn release_rights(drivers: impl Iterator<Item = DomId>) -> Permissions {
    let drivers: BTreeSet<DomId> = drivers.filter(|domid| *domid != DomId::DOM0).collect();
    let dom0 = Permissions::private(DomId::DOM0);
    drivers
        .into_iter()
        .fold(dom0, |rights, driver| rights.with(driver, Access::Read))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_domain_may_see_domains_go_once() {
        let rights = release_rights([7, 0, 3, 7].map(DomId).into_iter());
        assert_eq!(rights.to_string(), "n0,r3,r7");
    }

    #[test]
    fn nodes_run_out_first() {
        let fits = |buses| Usage::of(buses, buses).beyond(&DEFAULT_QUOTA);
        assert_eq!(fits(45), None);
        assert_eq!(fits(46), Some(("nodes", 46 * 22, 1000)));
        let quota = Usage {
            nodes: 10_000,
            ..DEFAULT_QUOTA
        };
        assert_eq!(Usage::of(126, 126).beyond(&quota), None);
        assert_eq!(
            Usage::of(127, 127).beyond(&quota),
            Some(("watches", 129, 128))
        );
    }
}
