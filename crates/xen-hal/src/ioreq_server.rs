//! An ioreq server: accesses of a guest to addresses behind which there is no memory, answered by a
//! process of dom0 (Xen's public headers `hvm/dm_op.h` and `hvm/ioreq.h`).
//!
//! This is how Xen's users have virtio today, and what this project is measured against. Nothing of
//! the bus uses it: the process may reach all of the guest's memory, and the guest's processor
//! stands still until it has answered.

use std::ops::RangeInclusive;

use guest_memory::Area;
use xen_types::DomId;

use crate::OpenError;
use crate::xen::{CreateIoreqServer, DestroyIoreqServer, MapIoRange, Privcmd, SetIoreqServerState};

/// `XEN_DMOP_IO_RANGE_MEMORY`.
const MEMORY: u32 = 1;

/// A guest cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum IoreqServerError {
    /// The device of the hypervisor's privileged calls could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The kernel or the hypervisor refused.
    #[error("domain {guest}: {what} failed")]
    Host {
        /// The guest.
        guest: DomId,
        /// The step that failed.
        what: &'static str,
        /// What was answered.
        source: std::io::Error,
    },
}

/// A server for one guest. Dropping it frees the addresses.
#[derive(Debug)]
pub struct IoreqServer {
    privcmd: Privcmd,
    guest: DomId,
    id: u16,
}

impl IoreqServer {
    /// A server for `guest`, which gets nothing to answer yet.
    ///
    /// # Errors
    /// This is no dom0, the domain does not exist, or is paravirtual.
    pub fn create(guest: DomId) -> Result<Self, IoreqServerError> {
        let privcmd = Privcmd::open()?;
        let created = privcmd
            .dm_op(guest, CreateIoreqServer::default())
            .map_err(|source| IoreqServerError::Host {
                guest,
                what: "creating an ioreq server (the guest must be PVH or HVM)",
                source,
            })?;
        Ok(Self {
            privcmd,
            guest,
            id: created.id,
        })
    }

    /// The page with a slot for each of the guest's processors (`struct ioreq`). From
    /// [`Self::serve`] on a slot says which port of the guest to bind to.
    ///
    /// # Errors
    /// The hypervisor refuses.
    pub fn map_page(&self) -> Result<Area, IoreqServerError> {
        self.privcmd
            .map_ioreq_page(self.guest, self.id)
            .map_err(|source| self.error("mapping the ioreq page", source))
    }

    /// From now on, accesses to `addresses` wait for this server; its page must be mapped.
    ///
    /// # Errors
    /// The hypervisor refuses.
    pub fn serve(&self, addresses: RangeInclusive<u64>) -> Result<(), IoreqServerError> {
        let range = MapIoRange {
            id: self.id,
            pad: 0,
            kind: MEMORY,
            start: *addresses.start(),
            end: *addresses.end(),
        };
        let ask = || {
            self.privcmd.dm_op(self.guest, range)?;
            self.privcmd.dm_op(
                self.guest,
                SetIoreqServerState {
                    id: self.id,
                    enabled: 1,
                    pad: 0,
                },
            )
        };
        ask().map_err(|source| self.error("claiming addresses for an ioreq server", source))?;
        Ok(())
    }

    /// `pages` pages of the guest's memory from page number `first` on, whether it likes it or not.
    ///
    /// # Errors
    /// The guest has no memory there.
    pub fn map_memory(&self, first: u64, pages: usize) -> Result<Area, IoreqServerError> {
        self.privcmd
            .map_frames(self.guest, first, pages)
            .map_err(|source| self.error("mapping memory of the guest", source))
    }

    fn error(&self, what: &'static str, source: std::io::Error) -> IoreqServerError {
        IoreqServerError::Host {
            guest: self.guest,
            what,
            source,
        }
    }
}

impl Drop for IoreqServer {
    fn drop(&mut self) {
        let destroy = DestroyIoreqServer {
            id: self.id,
            pad: 0,
        };
        if let Err(error) = self.privcmd.dm_op(self.guest, destroy) {
            tracing::warn!(guest = %self.guest, %error, "an ioreq server stays until its guest ends");
        }
    }
}
