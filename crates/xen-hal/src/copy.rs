//! Copies between this process and granted pages, done by the hypervisor: nothing is
//! mapped, nothing is left behind after a crash (binding section 5, "transient").

use guest_memory::{Access, GuestRange};
use xen_types::{GrantRef, PAGE_SIZE};

/// Copies that one call makes; a longer batch takes several. Four MiB are some four million
/// instructions (measured on Xen 4.17), in which this CPU serves nobody else.
pub const MAX_COPIES_PER_CALL: usize = 1024;

/// One copy of a batch: up to a page, inside one granted page.
#[derive(Debug)]
pub struct GrantCopy<'a> {
    /// The granted page.
    pub gref: GrantRef,
    /// Where in it the bytes begin.
    pub offset: u16,
    /// Which way.
    pub direction: CopyDirection,
    /// This process's side, and with it the length. Memory of its own: the kernel cannot reach
    /// mapped grants here.
    pub memory: GuestRange<'a>,
    /// Set by the call: what became of it. The hypervisor looks at each copy by itself.
    pub result: Result<(), CopyRefusal>,
}

/// Which way bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// From the granted page.
    FromGrant,
    /// Into the granted page.
    ToGrant,
}

/// Why one copy was not made. All but [`CopyRefusal::Other`] are what the peer named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyRefusal {
    /// The bytes go beyond the granted page, or this side's memory cannot be written.
    #[error("the bytes do not lie inside one page, or may not be written on this side")]
    Range,
    /// `GNTST_bad_gntref`.
    #[error("the other domain has no such grant reference")]
    NoReference,
    /// `GNTST_general_error`: so Xen answers all three.
    #[error("the reference is revoked, is granted to another domain, or for reading only")]
    NotGranted,
    /// The call did not get as far as this copy.
    #[error("the copy was not tried")]
    NotTried,
    /// Any other `GNTST_*` status.
    #[error("the hypervisor answers status {0}")]
    Other(i16),
}

/// `GNTST_okay`.
pub(crate) const OKAY: i16 = 0;

impl<'a> GrantCopy<'a> {
    /// Fills `into` from the granted page.
    #[must_use]
    pub fn from_grant(gref: GrantRef, offset: u16, into: GuestRange<'a>) -> Self {
        Self {
            gref,
            offset,
            direction: CopyDirection::FromGrant,
            memory: into,
            result: Err(CopyRefusal::NotTried),
        }
    }

    /// Writes `from` into the granted page.
    #[must_use]
    pub fn to_grant(gref: GrantRef, offset: u16, from: GuestRange<'a>) -> Self {
        Self {
            direction: CopyDirection::ToGrant,
            ..Self::from_grant(gref, offset, from)
        }
    }

    /// The length, if the copy may be asked for; else it is refused here, because the kernel would
    /// fail the whole call.
    pub(crate) fn begin(&mut self) -> Option<u16> {
        let inside = usize::from(self.offset) + self.memory.len() <= PAGE_SIZE;
        let wanted = match self.direction {
            CopyDirection::FromGrant => Access::Write,
            CopyDirection::ToGrant => Access::Read,
        };
        let len = u16::try_from(self.memory.len())
            .ok()
            .filter(|_| inside && self.memory.access().allows(wanted));
        self.result = Err(match len {
            Some(_) => CopyRefusal::NotTried,
            None => CopyRefusal::Range,
        });
        len
    }
}

impl CopyRefusal {
    /// What a `GNTST_*` status means (Xen `public/grant_table.h`).
    pub(crate) fn from_status(status: i16) -> Result<(), Self> {
        match status {
            OKAY => Ok(()),
            -1 => Err(Self::NotGranted),
            -3 => Err(Self::NoReference),
            -10 => Err(Self::Range),
            other => Err(Self::Other(other)),
        }
    }
}
