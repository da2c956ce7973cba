//! One bus instance: its paths, and what the toolstack recorded of it (binding section 2).

use std::fmt;

use anyhow::Context as _;
use xen_types::DomId;
use xenstore::{StoreError, Tree};

use crate::domain::{home, numbers, parse_domid, read_text, to_domid};

/// The root of the toolstack's own record, which no guest can read.
const RECORD: &str = "/vmsg";

/// A bus instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bus {
    /// The guest.
    pub(crate) frontend_id: DomId,
    /// The domain that serves it.
    pub(crate) backend_id: DomId,
    /// Which of the guest's buses.
    pub(crate) handle: u32,
}

impl Bus {
    /// The bus as it was recorded when it was made; `None` if there is no such bus.
    pub(crate) fn recorded(
        tree: &mut impl Tree,
        frontend_id: DomId,
        handle: u32,
    ) -> Result<Option<Self>, StoreError> {
        let mut bus = Self {
            frontend_id,
            backend_id: DomId::DOM0,
            handle,
        };
        let backend = read_text(tree, &format!("{}/backend", bus.record()))?;
        let Some(backend_id) = backend.and_then(|text| parse_domid(&text)) else {
            return Ok(None);
        };
        bus.backend_id = backend_id;
        Ok(Some(bus))
    }

    /// The bus that somebody names, which must be there.
    pub(crate) fn standing(
        tree: &mut impl Tree,
        frontend_id: DomId,
        handle: u32,
    ) -> anyhow::Result<Self> {
        Self::recorded(tree, frontend_id, handle)?.with_context(|| {
            format!("domain {frontend_id} has no bus {handle}; `vmsg list` shows what there is")
        })
    }

    /// Every recorded bus, by domain and handle.
    pub(crate) fn all(tree: &mut impl Tree) -> Result<Vec<Self>, StoreError> {
        let mut buses = Vec::new();
        for frontend_id in numbers(tree, RECORD)?.filter_map(to_domid) {
            for handle in numbers(tree, &record_domain(frontend_id))? {
                buses.extend(Self::recorded(tree, frontend_id, handle)?);
            }
        }
        Ok(buses)
    }

    /// The buses that domain `backend_id` serves, as they stand in its own directory: what a driver
    /// domain may see.
    pub(crate) fn served_by(
        tree: &mut impl Tree,
        backend_id: DomId,
    ) -> Result<Vec<Self>, StoreError> {
        let root = backend_root(backend_id);
        let mut buses = Vec::new();
        for frontend_id in numbers(tree, &root)?.filter_map(to_domid) {
            for handle in numbers(tree, &format!("{root}/{frontend_id}"))? {
                buses.push(Self {
                    frontend_id,
                    backend_id,
                    handle,
                });
            }
        }
        Ok(buses)
    }

    /// The directory of all the guest's buses.
    pub(crate) fn frontend_root(&self) -> String {
        format!("{}/device/virtio-msg", home(self.frontend_id))
    }

    /// The frontend's directory, owned by the guest.
    pub(crate) fn frontend(&self) -> String {
        format!("{}/{}", self.frontend_root(), self.handle)
    }

    /// The backend's directory of this guest.
    pub(crate) fn backend_domain(&self) -> String {
        format!("{}/{}", backend_root(self.backend_id), self.frontend_id)
    }

    /// The backend's directory.
    pub(crate) fn backend(&self) -> String {
        format!("{}/{}", self.backend_domain(), self.handle)
    }

    /// The directory of the bus's devices.
    pub(crate) fn devices(&self) -> String {
        format!("{}/device", self.backend())
    }

    /// The directory of a device.
    pub(crate) fn device(&self, number: u32) -> String {
        format!("{}/{number}", self.devices())
    }

    /// The toolstack's record of this guest.
    pub(crate) fn record_domain(&self) -> String {
        record_domain(self.frontend_id)
    }

    /// The toolstack's record of this bus.
    pub(crate) fn record(&self) -> String {
        format!("{}/{}", self.record_domain(), self.handle)
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {} bus {}", self.frontend_id, self.handle)
    }
}

/// The directory of all buses that a domain serves.
pub(crate) fn backend_root(backend_id: DomId) -> String {
    format!("{}/backend/virtio-msg", home(backend_id))
}

fn record_domain(frontend_id: DomId) -> String {
    format!("{RECORD}/{frontend_id}")
}
