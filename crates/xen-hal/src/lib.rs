//! Grants and event channels behind one seam: of a real Xen by raw ioctls on
//! `/dev/xen/*`, and of the hosted platform, whose broker (crate `hosted`) plays
//! the hypervisor for machines without Xen.
//!
//! Everything above sees a [`Platform`], which yields the same three things on both:
//! [`guest_memory::Area`]s of mapped grants ([`MappingBuilder`]), pages of our own
//! granted to a peer ([`GrantedPages`]) and [`EventChannels`].
//! Beside the seam, for measurements on Xen only, stands the [`IoreqServer`].
//!
//! It knows nothing of the bus, of virtio or of XenStore beyond where that is
//! ([`Platform::store_path`]). It does not decide how much a peer may make us map:
//! that limit is the caller's (binding section 10).

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![expect(
    unsafe_code,
    reason = "ioctls of /dev/xen/*, mappings of foreign pages, atomics in pages shared between processes"
)]

mod copy;
mod error;
mod event_channels;
mod files;
mod granted;
pub mod hosted;
mod ioreq_server;
mod mapping;
mod platform;
mod reservation;
mod spec;
mod wake;
mod xen;

pub use copy::{CopyDirection, CopyRefusal, GrantCopy, MAX_COPIES_PER_CALL};
pub use error::{EvtchnError, GrantError, MapError, OpenError, RevokeError};
pub use event_channels::EventChannels;
pub use files::raise_file_limit;
pub use granted::GrantedPages;
pub use ioreq_server::{IoreqServer, IoreqServerError};
pub use mapping::MappingBuilder;
pub use platform::{DomainKind, Platform, StorePath};
pub use spec::{ParseSpecError, PlatformSpec};
pub use wake::wake_cost;
