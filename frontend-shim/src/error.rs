//! Why a frontend cannot do what it was asked to.

use std::io;
use std::time::Duration;

use xen_bus::handshake::XenbusState;
use xen_bus::keys::KeyError;
use xen_bus::messages::AreaResult;
use xen_bus::ring::RingFault;
use xen_hal::{EvtchnError, GrantError, OpenError, PlatformSpec};
use xen_types::DomId;
use xenstore::StoreError;

/// Device types of which somebody may have one (virtio 1.4 section 5).
const KINDS: [(u32, &str); 11] = [
    (1, "a network device"),
    (2, "a block device"),
    (3, "a console"),
    (4, "an entropy device"),
    (5, "a memory balloon"),
    (8, "a SCSI host"),
    (9, "a 9P transport"),
    (16, "a GPU"),
    (18, "an input device"),
    (19, "a socket device"),
    (26, "a file system"),
];

/// What a user of the frontend has to know. Messages name the bus, the device and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// No Xen, no hosted platform, or a module is missing.
    #[error(transparent)]
    Platform(#[from] OpenError),
    /// XenStore cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The toolstack made no such instance.
    #[error("this domain has no bus {handle}: attach a device to it first (`vmsg attach` in dom0)")]
    NoInstance {
        /// The number of the bus.
        handle: u32,
    },
    /// The guest's kernel drives the instance.
    #[error("bus {handle} is driven by the kernel ({driver}): its devices are this kernel's own")]
    KernelDriver {
        /// The number of the bus.
        handle: u32,
        /// The driver's name.
        driver: String,
    },
    /// Another process is the frontend.
    #[error("bus {handle} is in use by another vmsg process of this domain")]
    InUse {
        /// The number of the bus.
        handle: u32,
    },
    /// The lock file.
    #[error("lock {path}: {source}")]
    Lock {
        /// The file.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// The backend is not there, or refused.
    #[error(
        "bus {handle}: not connected after {waited:?}, the backend in domain {backend} is in state {} ({hint})",
        .state.number()
    )]
    NoBackend {
        /// The number of the bus.
        handle: u32,
        /// The backend's domain.
        backend: u16,
        /// Its state.
        state: XenbusState,
        /// How long was waited.
        waited: Duration,
        /// What that means.
        hint: String,
    },
    /// Sharing memory with the backend failed.
    #[error("bus {handle}: {source}")]
    Grant {
        /// The number of the bus.
        handle: u32,
        /// The reason.
        source: GrantError,
    },
    /// No event channel.
    #[error(transparent)]
    EventChannel(#[from] EvtchnError),
    /// What the backend offers.
    #[error("the backend's offer: {0}")]
    Offer(#[from] KeyError),
    /// The connection ended while something was outstanding.
    #[error("bus {handle}: the connection ended: {why}")]
    Disconnected {
        /// The number of the bus.
        handle: u32,
        /// The reason, as far as it is known here.
        why: String,
    },
    /// The backend broke the ring.
    #[error("the backend broke the message ring: {0}")]
    Ring(#[from] RingFault),
    /// The backend did not answer in time.
    #[error(
        "bus {handle}: no answer of the backend in domain {backend} within {limit:?} to {what}"
    )]
    Timeout {
        /// The number of the bus.
        handle: u32,
        /// The backend's domain.
        backend: u16,
        /// What was asked.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// The backend refused an area.
    #[error("bus {handle}: the backend refused to map {pages} pages ({result})")]
    AreaRefused {
        /// The number of the bus.
        handle: u32,
        /// Pages of the area.
        pages: usize,
        /// The backend's answer.
        result: AreaResult,
    },
    /// The backend answered with what is no answer.
    #[error("bus {handle}: the backend's answer to {what}: {why}")]
    Answer {
        /// The number of the bus.
        handle: u32,
        /// What was asked.
        what: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// The device is of another kind.
    #[error(
        "bus {handle} device {dev_num}: is {} (virtio type {found}), not {} ({wanted})",
        kind(*.found),
        kind(*.wanted)
    )]
    OtherKind {
        /// The number of the bus.
        handle: u32,
        /// The device number.
        dev_num: u16,
        /// The virtio device type that was wanted.
        wanted: u32,
        /// What the device says that it is.
        found: u32,
    },
    /// The backend wants the device back; it serves until the device is reset.
    #[error("bus {handle} device {dev_num}: is being detached: the backend asks for it")]
    Leaving {
        /// The number of the bus.
        handle: u32,
        /// The device number.
        dev_num: u16,
    },
    /// The device cannot be used.
    #[error("bus {handle} device {dev_num}: {why}")]
    Device {
        /// The number of the bus.
        handle: u32,
        /// The device number.
        dev_num: u16,
        /// The reason.
        why: String,
    },
    /// Something local.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FrontendError {
    /// A device that cannot be used.
    pub(crate) fn device(handle: u32, dev_num: u16, why: impl ToString) -> Self {
        Self::Device {
            handle,
            dev_num,
            why: why.to_string(),
        }
    }

    /// An answer that is none.
    pub(crate) fn answer(handle: u32, what: &'static str, why: impl ToString) -> Self {
        Self::Answer {
            handle,
            what,
            why: why.to_string(),
        }
    }

    /// Fewer pages might do.
    pub(crate) fn is_no_room(&self) -> bool {
        matches!(
            self,
            Self::Grant {
                source: GrantError::NoRoom { .. },
                ..
            } | Self::AreaRefused {
                result: AreaResult::NO_ROOM,
                ..
            }
        )
    }
}

fn kind(device_id: u32) -> &'static str {
    let known = KINDS.iter().find(|(id, _)| *id == device_id);
    known.map_or("a device of another kind", |(_, name)| name)
}

/// What starts the backend of a domain, for who reads it to type.
#[must_use]
pub fn backend_command(spec: &PlatformSpec, backend_id: DomId) -> String {
    match spec {
        PlatformSpec::Xen if backend_id == DomId::DOM0 => "`vmsg backend`".into(),
        PlatformSpec::Xen => format!("`vmsg backend` in domain {backend_id}"),
        PlatformSpec::Hosted { dir, .. } => {
            let spec = PlatformSpec::Hosted {
                dir: dir.clone(),
                domid: backend_id,
            };
            format!("`vmsg --platform {spec} backend`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names() {
        let error = |found| FrontendError::OtherKind {
            handle: 0,
            dev_num: 2,
            wanted: 2,
            found,
        };
        assert_eq!(
            error(4).to_string(),
            "bus 0 device 2: is an entropy device (virtio type 4), not a block device (2)"
        );
        assert_eq!(
            error(77).to_string(),
            "bus 0 device 2: is a device of another kind (virtio type 77), not a block device (2)"
        );
    }
}
