//! The virtio-msg bus over Xen: message ring, areas, bus messages and connection states.
//!
//! Each module implements one part of `docs/xen-bus-binding.md`:
//!
//! | module | binding section |
//! | --- | --- |
//! | [`config`] | 2: the one line that describes a device |
//! | [`keys`] | 2: what either side publishes in XenStore |
//! | [`handshake`] | 3: connection states |
//! | [`layout`], [`ring`] | 4: the message ring |
//! | [`areas`], [`directory`] | 5 and 6: shared areas and what a bus address means |
//! | [`grants`] | 5: ranges at grant addresses |
//! | [`messages`] | 6: private bus messages |
//!
//! Nothing here maps memory, waits, reads a clock or talks to XenStore; the backend and the
//! frontend do that with what these modules tell them.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

pub mod areas;
pub mod config;
pub mod directory;
pub mod grants;
pub mod handshake;
pub mod keys;
pub mod layout;
pub mod messages;
pub mod patience;
pub mod ring;
