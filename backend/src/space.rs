//! What the bus addresses of one connection mean: bytes in areas and, if the frontend chose so,
//! in granted pages (binding section 5).

use std::cell::RefCell;
use std::sync::Arc;

use guest_memory::{
    Access, AddressSpace, GuestRange, LeasedRange, Surroundings, Transient, TranslateError,
    UnmapError,
};
use xen_bus::areas::{AreaLimits, AreaTable, WorkBudget};
use xen_bus::grants::GrantRange;
use xen_types::{BusAddr, Form};

use crate::grants::Grants;

/// The address space of a guest.
#[derive(Debug)]
pub(crate) struct GuestSpace {
    /// The shared areas.
    pub(crate) areas: AreaTable,
    /// `None`: the frontend did not choose `feature-grant-addresses`, so they mean nothing.
    grants: Option<Grants>,
    /// The guest's share of pages, for areas and rings together.
    max_pages: u32,
    /// What mapping and unmapping may cost in a turn, of areas and rings together.
    pub(crate) budget: RefCell<WorkBudget>,
}

impl GuestSpace {
    pub(crate) fn new(limits: AreaLimits, grants: Option<Grants>) -> Self {
        Self {
            areas: AreaTable::new(limits),
            grants,
            max_pages: limits.max_area_pages,
            budget: RefCell::new(WorkBudget::new()),
        }
    }

    /// Pages of rings at grant addresses that are mapped.
    pub(crate) fn ring_pages(&self) -> u32 {
        self.grants.as_ref().map_or(0, Grants::ring_pages)
    }

    /// Pages lent for buffers at grant addresses.
    pub(crate) fn lent_pages(&self) -> u32 {
        self.grants.as_ref().map_or(0, Grants::lent_pages)
    }

    /// Unmaps the rings at grant addresses that no queue uses any more.
    ///
    /// # Errors
    /// Pages of the guest's that were to be unmapped are still mapped.
    pub(crate) fn release(&self) -> Result<(), UnmapError> {
        self.grants.as_ref().map_or(Ok(()), Grants::release)
    }

    /// Whether a buffer that waits for room may find some now. Says so once.
    pub(crate) fn has_relief(&self) -> bool {
        self.grants.as_ref().is_some_and(Grants::has_relief)
    }

    /// Unmaps everything, at the end of the connection.
    ///
    /// # Errors
    /// The first that could not be unmapped; the others were tried all the same.
    pub(crate) fn unmap_all(self) -> Result<(), UnmapError> {
        let grants = self.grants.map_or(Ok(()), Grants::unmap_all);
        self.areas
            .into_areas()
            .map(guest_memory::Area::unmap)
            .fold(grants, Result::and)
    }

    /// The grants, if `addr` is one.
    fn grants_at(&self, addr: u64) -> Option<&Grants> {
        let grants = self.grants.as_ref()?;
        matches!(BusAddr(addr).form(), Some(Form::Grant { .. })).then_some(grants)
    }
}

impl AddressSpace for GuestSpace {
    #[inline]
    fn translate(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'_>, TranslateError> {
        self.areas.translate(addr, len, access)
    }

    /// Grant addresses are mapped for as long as the lease lives: so rings are.
    fn translate_leased(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<LeasedRange, TranslateError> {
        match self.grants_at(addr) {
            Some(grants) => {
                // A page that is mapped is one to unmap; the queue's other parts follow at once.
                let pages = GrantRange::new(addr, len).map_or(0, |range| range.pages());
                let work = pages.saturating_mul(2);
                self.budget.borrow_mut().overdraw(work);
                let left = self.max_pages.saturating_sub(self.areas.pages());
                grants.map_ring(addr, len, access, left)
            }
            None => self.areas.translate_leased(addr, len, access),
        }
    }

    fn fetch(&self, addr: u64, into: &mut [u8]) -> Result<(), TranslateError> {
        match self.grants_at(addr) {
            Some(grants) => grants.fetch_table(addr, into),
            None => self.areas.fetch(addr, into),
        }
    }

    fn surroundings(&self, addr: u64) -> Option<Surroundings<'_>> {
        self.areas.surroundings(addr)
    }

    fn transient(&self) -> Option<&Arc<dyn Transient>> {
        self.grants.as_ref().map(Grants::transient)
    }
}
