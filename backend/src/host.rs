//! What the sessions of a backend share: the platform, the event channels, XenStore.

use std::path::PathBuf;

use virtio_devices::Engine;
use xen_hal::{EventChannels, Platform};
use xen_types::DomId;
use xenstore::Client;

use crate::grants::GrantBuffers;

/// The host's side of every session.
#[derive(Debug)]
pub struct Host {
    /// The domain in which this backend runs.
    pub own: DomId,
    /// Grants.
    pub platform: Platform,
    /// Every event channel of this process.
    pub channels: EventChannels,
    /// The connection to XenStore.
    pub store: Client,
    /// Does what may wait, away from the loop.
    pub engine: Engine,
    /// How buffers at grant addresses are reached.
    pub grant_buffers: GrantBuffers,
    /// Directory of the instances' lock files.
    pub run_dir: PathBuf,
}
