//! What a guest names by grant references alone, without sharing it as an area first
//! (binding section 5).
//!
//! Rings are mapped from SET_VQUEUE to the reset ([`rings`]), indirect tables are copied when their
//! chain is taken ([`tables`]), buffers are lent for one request ([`lender`]): by copies
//! ([`staging`]) or by mappings ([`mapped`]).

mod lender;
mod mapped;
mod rings;
mod staging;
mod tables;

use std::cell::Cell;
use std::sync::Arc;

use guest_memory::{Access, LeasedRange, Transient, TranslateError, UnmapError};
use xen_bus::grants::GrantRange;
use xen_hal::Platform;
use xen_types::DomId;

use lender::Lender;
use rings::Rings;

/// How buffers at grant addresses are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrantBuffers {
    /// Copied by the hypervisor, all of a drain with one call each way. Cheaper than mapping at
    /// every size that was measured, and nothing is left after a crash.
    #[default]
    Copied,
    /// Mapped one by one while a request is served, as blkback does without persistent grants: to
    /// compare with.
    Mapped,
}

/// The grant addresses of one connection.
#[derive(Debug)]
pub(crate) struct Grants {
    platform: Platform,
    peer: DomId,
    rings: Rings,
    lender: Arc<Lender>,
    /// The lender once more, as queues know it.
    transient: Arc<dyn Transient>,
    /// That this host cannot map a ring was said.
    told: Cell<bool>,
}

impl Grants {
    pub(crate) fn new(platform: Platform, peer: DomId, buffers: GrantBuffers) -> Self {
        let lender = Arc::new(Lender::new(platform.clone(), peer, buffers));
        Self {
            platform,
            peer,
            rings: Rings::default(),
            transient: Arc::clone(&lender) as Arc<dyn Transient>,
            lender,
            told: Cell::new(false),
        }
    }

    /// Who lends memory for buffers.
    pub(crate) fn transient(&self) -> &Arc<dyn Transient> {
        &self.transient
    }

    /// Maps a part of a ring, while rings have not more than `most` pages.
    pub(crate) fn map_ring(
        &self,
        addr: u64,
        len: u32,
        access: Access,
        most: u32,
    ) -> Result<LeasedRange, TranslateError> {
        let range = GrantRange::new(addr, len).ok_or(TranslateError::Unknown { addr })?;
        self.rings
            .map(&self.platform, self.peer, range, access, most)
            .map_err(|error| {
                // Once: a guest can ask as often as it likes.
                if error.lack().is_some() && !self.told.replace(true) {
                    tracing::error!(peer = %self.peer, %error, "part of a ring cannot be mapped");
                } else {
                    tracing::debug!(peer = %self.peer, %error, "part of a ring refused");
                }
                error.at(addr, len)
            })
    }

    /// Copies an indirect table.
    pub(crate) fn fetch_table(&self, addr: u64, into: &mut [u8]) -> Result<(), TranslateError> {
        self.lender.fetch_table(addr, into)
    }

    /// Pages of rings that are mapped.
    pub(crate) fn ring_pages(&self) -> u32 {
        self.rings.pages()
    }

    /// Pages lent for buffers.
    pub(crate) fn lent_pages(&self) -> u32 {
        self.lender.pages()
    }

    /// Unmaps the rings that nobody uses any more.
    ///
    /// # Errors
    /// Pages of the guest's that were to be unmapped, now or since the last call, are still mapped.
    pub(crate) fn release(&self) -> Result<(), UnmapError> {
        self.rings.release().and(self.lender.fault())
    }

    /// Whether a buffer that waits for room may find some now. Says so once.
    pub(crate) fn has_relief(&self) -> bool {
        self.lender.take_relief()
    }

    /// Unmaps everything, at the end of the connection.
    ///
    /// # Errors
    /// Something is still mapped.
    pub(crate) fn unmap_all(self) -> Result<(), UnmapError> {
        self.rings.unmap_all().and(self.lender.unmap_all())
    }
}
