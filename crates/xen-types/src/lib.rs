//! Newtypes that the Xen-facing crates share: domains, grant references,
//! event-channel ports, sessions and bus addresses (binding section 5).
//!
//! No behaviour lives here beyond parsing and printing.

#![no_std]
#![forbid(unsafe_code)]

mod addr;
mod decimal;

pub use addr::{AreaId, BusAddr, Form};
pub use decimal::parse_decimal;

use core::fmt;

/// Bytes of a page, in every domain and on every kernel (binding, introduction).
pub const PAGE_SIZE: usize = 4096;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

newtype! {
    /// A domain id. 0 is dom0.
    DomId(u16)
}
newtype! {
    /// A grant reference: a number by which one domain names a page that it shares with another.
    GrantRef(u32)
}
newtype! {
    /// A port: one domain's end of an event channel.
    EvtchnPort(u32)
}
newtype! {
    /// The number that tells one connection of a bus instance from the next (binding section 2).
    Session(u32)
}

impl DomId {
    /// The control domain.
    pub const DOM0: DomId = DomId(0);
    /// First of the domain ids that Xen keeps for itself (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: DomId = DomId(0x7ff0);
}
