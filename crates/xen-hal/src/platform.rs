//! The seam: one enum at the cold edge, so that everything above is the same code on
//! a real Xen and on the hosted platform.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guest_memory::Access;
use xen_types::DomId;

use crate::mapping::Mapper;
use crate::{
    EventChannels, EvtchnError, GrantCopy, GrantError, GrantedPages, MAX_COPIES_PER_CALL, MapError,
    MappingBuilder, OpenError, PlatformSpec, hosted, xen,
};

/// The C xenstored's socket in dom0.
const XENSTORED: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// The kernel's own XenStore connection, in every domain.
const XENBUS: &str = "/dev/xen/xenbus";
/// What kind of domain the kernel runs in.
const GUEST_TYPE: &str = "/sys/hypervisor/guest_type";

/// An open platform. Clones share what is open; every method may be called from any thread.
#[derive(Clone, Debug)]
pub enum Platform {
    /// The Xen below this kernel.
    Xen(xen::Xen),
    /// One domain of a hosted platform.
    Hosted(hosted::Domain),
}

/// How this domain's kernel maps grants, which decides what I/O may name granted pages
/// (binding section 6, the memory contract).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainKind {
    /// Paravirtual: a page that is pinned at exit stays mapped for ever, so io_uring must not name one.
    Pv,
    /// Hardware-assisted (PVH, HVM).
    Pvh,
    /// The hosted platform.
    Hosted,
}

/// Where a XenStore client connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePath {
    /// A unix stream socket.
    Socket(PathBuf),
    /// The kernel's device.
    Device(PathBuf),
}

impl Platform {
    /// Opens a platform. On Xen the devices themselves are opened by the first call that needs
    /// them: a backend can do without gntalloc, a frontend without gntdev.
    pub fn open(spec: &PlatformSpec) -> Result<Self, OpenError> {
        match spec {
            PlatformSpec::Xen => xen::Xen::open().map(Self::Xen),
            PlatformSpec::Hosted { dir, domid } => {
                hosted::Domain::open(dir, *domid).map(Self::Hosted)
            }
        }
    }

    /// Opens what [`Platform::begin_mapping`] needs, so that who depends on it fails early.
    pub fn open_for_mapping(&self) -> Result<(), OpenError> {
        match self {
            Self::Xen(xen) => xen.gntdev().map(drop),
            Self::Hosted(_) => Ok(()),
        }
    }

    /// Begins a mapping of `pages` pages of `peer` into one contiguous range.
    pub fn begin_mapping(
        &self,
        peer: DomId,
        pages: usize,
        access: Access,
    ) -> Result<MappingBuilder, MapError> {
        let mapper = match self {
            Self::Xen(xen) => Mapper::Xen(xen.gntdev()?),
            Self::Hosted(domain) => Mapper::Hosted(Arc::clone(domain.memory())),
        };
        MappingBuilder::new(mapper, peer, pages, access)
    }

    /// Allocates `pages` zeroed pages and grants them to `peer`, which may write with [`Access::Write`].
    pub fn grant_pages(
        &self,
        peer: DomId,
        pages: usize,
        access: Access,
    ) -> Result<GrantedPages, GrantError> {
        match self {
            Self::Xen(xen) => xen.gntalloc()?.grant(peer, pages, access),
            Self::Hosted(domain) => domain.memory().grant(peer, pages, access),
        }
    }

    /// Copies a batch to and from pages granted by `peer`, with one call for every
    /// [`MAX_COPIES_PER_CALL`]. An error is the host's alone: what became of each copy stands in
    /// its `result`.
    pub fn grant_copy(&self, peer: DomId, batch: &mut [GrantCopy<'_>]) -> Result<(), MapError> {
        for call in batch.chunks_mut(MAX_COPIES_PER_CALL) {
            match self {
                Self::Xen(xen) => xen.gntdev()?.copy(peer, call),
                Self::Hosted(domain) => domain.memory().copy(peer, call),
            }
            .map_err(|source| MapError::Host {
                peer,
                what: "grant copy",
                source,
            })?;
        }
        Ok(())
    }

    /// A new set of event-channel ports, all behind one descriptor.
    pub fn event_channels(&self) -> Result<EventChannels, EvtchnError> {
        Ok(match self {
            Self::Xen(_) => EventChannels::xen(xen::Evtchn::open()?),
            Self::Hosted(domain) => EventChannels::hosted(domain.events()?),
        })
    }

    /// Where this domain's XenStore is.
    #[must_use]
    pub fn store_path(&self) -> StorePath {
        match self {
            // As libxenstore looks: the daemon's socket exists in dom0 alone.
            Self::Xen(_) => XENSTORED
                .into_iter()
                .find(|socket| Path::new(socket).exists())
                .map_or_else(
                    || StorePath::Device(XENBUS.into()),
                    |socket| StorePath::Socket(socket.into()),
                ),
            Self::Hosted(domain) => StorePath::Socket(domain.store_socket()),
        }
    }

    /// What kind of domain this is. What the kernel does not tell counts as the more careful PV.
    #[must_use]
    pub fn guest_kind(&self) -> DomainKind {
        match self {
            Self::Hosted(_) => DomainKind::Hosted,
            Self::Xen(_) => match std::fs::read_to_string(GUEST_TYPE) {
                Ok(kind) if matches!(kind.trim(), "PVH" | "HVM") => DomainKind::Pvh,
                _ => DomainKind::Pv,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_may_move_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Platform>();
        shared::<MappingBuilder>();
        shared::<GrantedPages>();
        shared::<EventChannels>();
    }

    #[test]
    fn no_broker_is_an_error_with_the_place_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let spec = PlatformSpec::Hosted {
            dir: dir.path().to_owned(),
            domid: DomId(3),
        };
        let error = Platform::open(&spec).unwrap_err().to_string();
        assert!(
            error.contains("domain 3") && error.contains("dom3/hypervisor"),
            "{error}"
        );
    }
}
