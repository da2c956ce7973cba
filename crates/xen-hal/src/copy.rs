//! Copies between private memory and granted pages, done by the hypervisor: nothing
//! is mapped, nothing is left behind after a crash (binding section 5, "transient").

use xen_types::{GrantRef, PAGE_SIZE};

/// One copy of a batch: up to a page, inside one granted page.
#[derive(Debug)]
pub struct GrantCopy<'a> {
    /// The granted page.
    pub gref: GrantRef,
    /// Where in it the bytes begin.
    pub offset: u16,
    /// Our side, and with it direction and length.
    pub buffer: CopyBuffer<'a>,
    /// Set by the call: whether the hypervisor did it. It refuses, one by one, references that
    /// are not granted, or are read-only where it would write, and ranges beyond the page.
    pub done: bool,
}

/// The private side of a copy.
#[derive(Debug)]
pub enum CopyBuffer<'a> {
    /// Filled from the granted page.
    FromGrant(&'a mut [u8]),
    /// Written into the granted page.
    ToGrant(&'a [u8]),
}

impl<'a> GrantCopy<'a> {
    /// Fills `into` from the granted page.
    #[must_use]
    pub fn from_grant(gref: GrantRef, offset: u16, into: &'a mut [u8]) -> Self {
        Self {
            gref,
            offset,
            buffer: CopyBuffer::FromGrant(into),
            done: false,
        }
    }

    /// Writes `from` into the granted page.
    #[must_use]
    pub fn to_grant(gref: GrantRef, offset: u16, from: &'a [u8]) -> Self {
        Self {
            gref,
            offset,
            buffer: CopyBuffer::ToGrant(from),
            done: false,
        }
    }

    /// The length, if the range lies inside the granted page.
    pub(crate) fn checked_len(&self) -> Option<u16> {
        let len = match &self.buffer {
            CopyBuffer::FromGrant(into) => into.len(),
            CopyBuffer::ToGrant(from) => from.len(),
        };
        let end = usize::from(self.offset).checked_add(len)?;
        u16::try_from(len).ok().filter(|_| end <= PAGE_SIZE)
    }
}
