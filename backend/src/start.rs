//! Opening what a backend needs, with messages that say what is missing.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use virtio_devices::Engine;
use xen_hal::{DomainKind, EvtchnError, OpenError, Platform, PlatformSpec, StorePath};
use xen_types::{DomId, parse_decimal};
use xenstore::{Client, StoreError, Tree as _};

use crate::grants::GrantBuffers;
use crate::host::Host;
use crate::service::{Service, ServiceError};

/// Lock files and socket of a backend on a real Xen.
const RUN_DIR: &str = "/run/vmsg";

/// How long XenStore may be silent before this backend gives up, which resets its guests. Long enough
/// for a daemon that an administrator updates or stops for a look at it.
const STORE_LIMIT: Duration = Duration::from_secs(60);

/// Why a backend cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No Xen, no hosted platform, or a module is missing.
    #[error(transparent)]
    Platform(#[from] OpenError),
    /// No event channels.
    #[error(transparent)]
    EventChannels(#[from] EvtchnError),
    /// XenStore cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// XenStore does not say in which domain this is.
    #[error("XenStore has no usable node `domid` for this domain: is it introduced?")]
    NoDomid,
    /// The signal handlers or the worker threads.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
    /// The service ended by itself.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Opens the platform, XenStore and the rest.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn open_host(spec: &PlatformSpec) -> Result<Host, StartError> {
    let platform = Platform::open(spec)?;
    platform.open_for_mapping()?;
    let mut store = match platform.store_path() {
        StorePath::Socket(path) => Client::connect_socket(&path)?,
        StorePath::Device(path) => Client::connect_device(&path)?,
    };
    store.set_timeout(STORE_LIMIT);
    let own = store
        .read_opt("domid")?
        .and_then(|text| parse_decimal(&text))
        .and_then(|domid| u16::try_from(domid).ok())
        .map_or(Err(StartError::NoDomid), |domid| Ok(DomId(domid)))?;
    Ok(Host {
        own,
        channels: platform.event_channels()?,
        engine: {
            let engine = Engine::choose(platform.guest_kind() == DomainKind::Pv)?;
            tracing::info!(engine = %engine.choice(), "for I/O that waits");
            engine
        },
        platform,
        store,
        grant_buffers: GrantBuffers::default(),
        run_dir: run_dir(spec),
    })
}

/// Where the backends of this machine keep their lock files and tell their gauges.
#[must_use]
pub fn run_dir(spec: &PlatformSpec) -> PathBuf {
    match spec {
        PlatformSpec::Xen => PathBuf::from(RUN_DIR),
        PlatformSpec::Hosted { dir, .. } => dir.join("run"),
    }
}

/// Serves until SIGINT or SIGTERM, then ends every session in order.
///
/// # Errors
/// What is missing, or what ended the service.
pub fn run(spec: &PlatformSpec) -> Result<(), StartError> {
    // A device takes up to five descriptors.
    if let Err(error) = xen_hal::raise_file_limit() {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let (stop, write) = UnixStream::pair()?;
    pipe::register(SIGINT, write.try_clone()?)?;
    pipe::register(SIGTERM, write)?;
    let host = open_host(spec)?;
    Service::new(host, Some(stop.as_fd()))?.run()?;
    Ok(())
}
