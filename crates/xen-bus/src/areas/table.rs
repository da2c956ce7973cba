//! What is shared at this moment, and the look-up of bus addresses in it (binding section 5).

use std::mem;

use guest_memory::{
    Access, AddressSpace, Area, GuestRange, LeasedRange, Surroundings, TranslateError,
};
use xen_types::{AreaId, BusAddr, Form};

use super::{AreaRefusal, ShareJob};
use crate::keys::{DEFAULT_MAX_AREA_PAGES, DEFAULT_MAX_AREAS};
use crate::messages::{AreaReply, AreaResult, AreaShare};

/// What one instance may share: what the backend offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaLimits {
    /// Areas at a time; those on their way in or out count.
    pub max_areas: u32,
    /// Data pages of all areas together; those on their way in or out count.
    pub max_area_pages: u32,
}

impl Default for AreaLimits {
    fn default() -> Self {
        Self {
            max_areas: DEFAULT_MAX_AREAS,
            max_area_pages: DEFAULT_MAX_AREA_PAGES,
        }
    }
}

/// The areas of one instance.
#[derive(Debug)]
pub struct AreaTable {
    limits: AreaLimits,
    /// Ascending by id.
    areas: Vec<(AreaId, State)>,
    /// By the low bits of an id: where it is in `areas`, perhaps. As many as areas, rounded up to
    /// a power of two: of a driver that counts its areas, from any number on, all are right.
    guesses: Vec<u16>,
    pages: u32,
    /// Pages of the same share that are mapped for something else.
    elsewhere: u32,
}

/// What stands behind an id in use.
#[derive(Debug)]
enum State {
    /// On its way in or out: mapped in part or about to be unmapped, and not to be touched.
    Pending,
    Shared {
        request: AreaShare,
        area: Area,
    },
}

/// An area that translates no more and is yet to be unmapped. Its id and pages stay taken until
/// [`AreaTable::finish_unshare`].
#[derive(Debug)]
#[must_use = "the area's id and pages stay taken until the withdrawal is finished"]
pub struct Withdrawal {
    id: AreaId,
    pages: u32,
}

impl Withdrawal {
    /// How many pages are to be unmapped: what a [`super::WorkBudget`] pays for it.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }
}

impl AreaTable {
    /// An instance that shares nothing yet.
    #[must_use]
    pub const fn new(limits: AreaLimits) -> Self {
        Self {
            limits,
            areas: Vec::new(),
            guesses: Vec::new(),
            pages: 0,
            elsewhere: 0,
        }
    }

    /// How many ids are in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.areas.len()
    }

    /// Whether no id is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }

    /// How many data pages are in use.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The requests behind the areas that are shared: what a restarted backend maps again.
    pub fn shared(&self) -> impl Iterator<Item = &AreaShare> {
        self.areas.iter().filter_map(|(_, state)| match state {
            State::Shared { request, .. } => Some(request),
            State::Pending => None,
        })
    }

    /// Tells how many pages beside the areas count against [`AreaLimits::max_area_pages`] now.
    pub fn set_elsewhere(&mut self, pages: u32) {
        self.elsewhere = pages;
    }

    /// Begins AREA_SHARE: takes id and pages. The area translates when
    /// [`AreaTable::finish_share`] has it.
    ///
    /// # Errors
    /// The request makes no sense, the id is in use, or a limit is reached.
    pub fn begin_share(&mut self, request: AreaShare) -> Result<ShareJob, AreaRefusal> {
        let job = ShareJob::new(request)?;
        let (areas, wanted) = (self.areas.len(), job.pages());
        let Err(place) = self.search(job.id()) else {
            return Err(AreaRefusal::InUse(job.id()));
        };
        let AreaLimits {
            max_areas,
            max_area_pages,
        } = self.limits;
        if areas >= max_areas as usize {
            return Err(AreaRefusal::TooManyAreas { max: max_areas });
        }
        self.pages = self
            .pages
            .checked_add(wanted)
            .filter(|pages| *pages <= max_area_pages.saturating_sub(self.elsewhere))
            .ok_or(AreaRefusal::TooManyPages {
                wanted,
                used: self.pages.saturating_add(self.elsewhere),
                max: max_area_pages,
            })?;
        self.areas.insert(place, (job.id(), State::Pending));
        self.guess();
        Ok(job)
    }

    /// Ends AREA_SHARE well: from now on addresses in `area` translate. The answer is returned.
    pub fn finish_share(&mut self, job: ShareJob, area: Area) -> AreaReply {
        let request = *job.request();
        self.set(job.id(), State::Shared { request, area });
        job.reply(AreaResult::DONE)
    }

    /// Ends AREA_SHARE with nothing shared and nothing left mapped. The answer is returned.
    pub fn abandon_share(&mut self, job: ShareJob, result: AreaResult) -> AreaReply {
        self.free(job.id(), job.pages());
        job.reply(result)
    }

    /// Begins AREA_UNSHARE: from now on the id translates no more. The area is the caller's to
    /// unmap, after every registration that names it is withdrawn.
    ///
    /// # Errors
    /// No such area is shared, or it is busy: then nothing changed.
    pub fn begin_unshare(&mut self, area_id: u16) -> Result<(Withdrawal, Area), AreaRefusal> {
        let unknown = AreaRefusal::Unknown(area_id);
        let id = AreaId::new(area_id).ok_or(unknown)?;
        let Some(State::Shared { area, .. }) = self.get(id) else {
            return Err(unknown);
        };
        match area.leases() {
            0 => {}
            leases => return Err(AreaRefusal::Busy { id, leases }),
        }
        match self.set(id, State::Pending) {
            Some(State::Shared { request, area }) => {
                let pages = request.page_count;
                Ok((Withdrawal { id, pages }, area))
            }
            Some(State::Pending) | None => Err(unknown),
        }
    }

    /// Ends AREA_UNSHARE, after the hypervisor has unmapped the area: the id is free. The answer
    /// is returned.
    pub fn finish_unshare(&mut self, withdrawal: Withdrawal) -> AreaReply {
        self.free(withdrawal.id, withdrawal.pages);
        AreaReply {
            area_id: withdrawal.id.get(),
            result: AreaResult::DONE,
        }
    }

    /// Ends the instance: every area, to be unmapped.
    pub fn into_areas(self) -> impl Iterator<Item = Area> {
        self.areas.into_iter().filter_map(|(_, state)| match state {
            State::Shared { area, .. } => Some(area),
            State::Pending => None,
        })
    }

    fn free(&mut self, id: AreaId, pages: u32) {
        if let Ok(place) = self.search(id) {
            self.areas.remove(place);
            self.guess();
        }
        self.pages = self.pages.saturating_sub(pages);
    }

    /// Where an id is, or belongs.
    fn search(&self, id: AreaId) -> Result<usize, usize> {
        self.areas.binary_search_by_key(&id, |(id, _)| *id)
    }

    /// What stands behind an id. A guess that is wrong costs a search, nothing else.
    #[inline]
    fn get(&self, id: AreaId) -> Option<&State> {
        let guess = self.guesses.get(self.low_bits(id))?;
        match self.areas.get(usize::from(*guess)) {
            Some((there, state)) if *there == id => Some(state),
            _ => self.find(id),
        }
    }

    /// As [`AreaTable::get`], by a search.
    #[cold]
    fn find(&self, id: AreaId) -> Option<&State> {
        let (_, state) = self.areas.get(self.search(id).ok()?)?;
        Some(state)
    }

    /// Puts something else behind an id in use, and returns what was there.
    fn set(&mut self, id: AreaId, state: State) -> Option<State> {
        let place = self.search(id).ok()?;
        let (_, there) = self.areas.get_mut(place)?;
        Some(mem::replace(there, state))
    }

    /// Areas have come or gone: guesses anew.
    fn guess(&mut self) {
        self.guesses.resize(self.areas.len().next_power_of_two(), 0);
        for (place, (id, _)) in (0..).zip(&self.areas) {
            let low_bits = self.low_bits(*id);
            if let Some(guess) = self.guesses.get_mut(low_bits) {
                *guess = place;
            }
        }
    }

    /// The place of an id among the guesses, of which there are a power of two, or none.
    #[inline]
    fn low_bits(&self, id: AreaId) -> usize {
        usize::from(id.get()) & self.guesses.len().wrapping_sub(1)
    }

    /// The area and the offset that an address names; one of the grant form names none.
    #[inline]
    fn look_up(&self, addr: u64) -> Result<(&Area, u64), TranslateError> {
        match BusAddr(addr).form() {
            Some(Form::Area { id, offset }) => match self.get(id) {
                Some(State::Shared { area, .. }) => Some((area, offset)),
                Some(State::Pending) | None => None,
            },
            Some(Form::Grant { .. }) | None => None,
        }
        .ok_or(TranslateError::Unknown { addr })
    }
}

impl AddressSpace for AreaTable {
    fn translate(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<GuestRange<'_>, TranslateError> {
        let (area, offset) = self.look_up(addr)?;
        area.range(offset, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    fn translate_leased(
        &self,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<LeasedRange, TranslateError> {
        let (area, offset) = self.look_up(addr)?;
        area.lease()
            .window(offset, len.into(), access)
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    fn surroundings(&self, addr: u64) -> Option<Surroundings<'_>> {
        let (area, offset) = self.look_up(addr).ok()?;
        Some(Surroundings {
            first: addr - offset,
            memory: area.whole(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use guest_memory::UnmapError;
    use proptest::prelude::*;
    use xen_types::{GrantRef, PAGE_SIZE};

    use super::*;
    use crate::messages::ShareFlags;

    const LIMITS: AreaLimits = AreaLimits {
        max_areas: 3,
        max_area_pages: 10,
    };

    fn request(area_id: u16, page_count: u32) -> AreaShare {
        AreaShare {
            area_id,
            flags: ShareFlags::DEVICE_WRITE | ShareFlags::CONSECUTIVE,
            page_count,
            first: GrantRef(8),
        }
    }

    fn share(table: &mut AreaTable, area_id: u16, pages: u32) -> Result<AreaReply, AreaRefusal> {
        let job = table.begin_share(request(area_id, pages))?;
        let area = Area::anonymous(pages as usize * PAGE_SIZE).unwrap();
        Ok(table.finish_share(job, area))
    }

    fn addr(area_id: u16, offset: u64) -> u64 {
        u64::from(area_id) << 48 | offset
    }

    fn one_area() -> AreaTable {
        let mut table = AreaTable::new(LIMITS);
        share(&mut table, 5, 2).unwrap();
        table
    }

    #[test]
    fn an_address_names_a_byte_of_its_area() {
        let mut table = one_area();
        share(&mut table, AreaId::MAX, 1).unwrap();
        let range = table.translate(addr(5, 4096), 4, Access::Write).unwrap();
        range.write(0, b"five").unwrap();
        let range = table
            .translate(addr(AreaId::MAX, 0), 4, Access::Write)
            .unwrap();
        range.write(0, b"last").unwrap();
        let range = table
            .translate_leased(addr(5, 4096), 4, Access::Read)
            .unwrap();
        assert_eq!(range.range().read_array(0), Ok(*b"five"));
    }

    #[test]
    fn what_is_not_wholly_inside_does_not_translate() {
        let table = one_area();
        for (addr, len) in [
            (0, 1),
            (addr(0, 16), 1),
            (addr(4, 0), 1),
            (addr(5, 8192), 1),
            (addr(5, 8191), 2),
            (addr(5, 0), 8193),
            (addr(5, 1), u32::MAX),
            (addr(5, (1 << 48) - 1), 1),
            (addr(5, (1 << 48) - 1), u32::MAX),
            // grant form, and neither form
            (1 << 63 | 8 << 12, 1),
            (1 << 63 | 1 << 44, 1),
            (u64::MAX, u32::MAX),
        ] {
            for access in [Access::Read, Access::Write] {
                assert!(
                    table.translate(addr, len, access).is_err(),
                    "{addr:#x} {len}"
                );
                assert!(
                    table.translate_leased(addr, len, access).is_err(),
                    "{addr:#x} {len}"
                );
            }
        }
        assert!(table.translate(addr(5, 0), 8192, Access::Write).is_ok());
    }

    #[test]
    fn a_read_only_area_is_not_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let area = Area::shared_file(file.as_fd(), 0, 4096, Access::Read).unwrap();
        let mut table = AreaTable::new(LIMITS);
        let job = table.begin_share(request(5, 1)).unwrap();
        table.finish_share(job, area);
        assert!(table.translate(addr(5, 0), 16, Access::Read).is_ok());
        let addr = addr(5, 0);
        assert_eq!(
            table.translate(addr, 16, Access::Write).unwrap_err(),
            TranslateError::ReadOnly { addr, len: 16 }
        );
    }

    #[test]
    fn an_id_is_in_use_from_the_request_to_the_answer() {
        let mut table = AreaTable::new(LIMITS);
        let used = AreaRefusal::InUse(AreaId::new(5).unwrap());
        let unknown = AreaRefusal::Unknown(5);

        let job = table.begin_share(request(5, 1)).unwrap();
        assert_eq!(table.begin_share(request(5, 1)).unwrap_err(), used);
        assert_eq!(table.begin_unshare(5).unwrap_err(), unknown);
        assert!(table.translate(addr(5, 0), 1, Access::Read).is_err());
        let reply = table.finish_share(job, Area::anonymous(PAGE_SIZE).unwrap());
        assert_eq!((reply.area_id, reply.result), (5, AreaResult::DONE));
        assert_eq!(table.begin_share(request(5, 1)).unwrap_err(), used);

        let (withdrawal, area) = table.begin_unshare(5).unwrap();
        assert!(table.translate(addr(5, 0), 1, Access::Read).is_err());
        assert_eq!(table.begin_share(request(5, 1)).unwrap_err(), used);
        assert_eq!(table.begin_unshare(5).unwrap_err(), unknown);
        area.unmap().unwrap();
        let reply = table.finish_unshare(withdrawal);
        assert_eq!((reply.area_id, reply.result), (5, AreaResult::DONE));
        assert!(table.is_empty());
        share(&mut table, 5, 1).unwrap();
    }

    #[test]
    fn a_leased_area_is_busy_and_goes_on_translating() {
        let mut table = one_area();
        let queue = table
            .translate_leased(addr(5, 0), 64, Access::Write)
            .unwrap();
        let busy = table.begin_unshare(5).unwrap_err();
        assert_eq!(busy.result(), AreaResult::BUSY);
        assert!(table.translate(addr(5, 0), 64, Access::Write).is_ok());
        drop(queue);
        assert!(table.begin_unshare(5).is_ok());
    }

    #[test]
    fn limits_count_areas_and_pages_on_their_way_too() {
        let mut table = AreaTable::new(LIMITS);
        let jobs = [1, 2, 3].map(|id| table.begin_share(request(id, 1)).unwrap());
        let refusal = table.begin_share(request(4, 1)).unwrap_err();
        assert_eq!(refusal, AreaRefusal::TooManyAreas { max: 3 });
        assert_eq!(refusal.result(), AreaResult::NO_ROOM);
        for job in jobs {
            let reply = table.abandon_share(job, AreaResult::REFUSED);
            assert_eq!(reply.result, AreaResult::REFUSED);
        }
        assert_eq!((table.len(), table.pages()), (0, 0));

        share(&mut table, 1, 6).unwrap();
        let full = AreaRefusal::TooManyPages {
            wanted: 5,
            used: 6,
            max: 10,
        };
        assert_eq!(table.begin_share(request(2, 5)).unwrap_err(), full);
        assert_eq!(full.result(), AreaResult::NO_ROOM);
        assert!(table.begin_share(request(2, u32::MAX - 8)).is_err());
        let (withdrawal, _area) = table.begin_unshare(1).unwrap();
        assert_eq!(withdrawal.pages(), 6);
        assert_eq!(table.begin_share(request(2, 5)).unwrap_err(), full);
        table.finish_unshare(withdrawal);
        share(&mut table, 2, 10).unwrap();
    }

    #[test]
    fn pages_that_are_mapped_elsewhere_are_part_of_the_share() {
        let mut table = AreaTable::new(LIMITS);
        table.set_elsewhere(4);
        let full = AreaRefusal::TooManyPages {
            wanted: 7,
            used: 4,
            max: 10,
        };
        assert_eq!(table.begin_share(request(1, 7)).unwrap_err(), full);
        share(&mut table, 1, 6).unwrap();
        table.set_elsewhere(0);
        share(&mut table, 2, 4).unwrap();
    }

    #[test]
    fn unknown_areas_are_not_unshared() {
        let mut table = one_area();
        for area_id in [0, 1, 0x8005] {
            let refusal = table.begin_unshare(area_id).unwrap_err();
            assert_eq!(refusal, AreaRefusal::Unknown(area_id));
            assert_eq!(refusal.result(), AreaResult::REFUSED);
        }
    }

    #[test]
    fn the_end_gives_every_area_back() {
        let mut table = one_area();
        share(&mut table, 6, 1).unwrap();
        let _job = table.begin_share(request(7, 1)).unwrap();
        assert_eq!(table.shared().count(), 2);
        let lease = table.translate_leased(addr(6, 0), 1, Access::Read).unwrap();
        let mut areas: Vec<_> = table.into_areas().collect();
        assert!(matches!(
            areas.pop().unwrap().unmap(),
            Err(UnmapError::Leased { leases: 1, .. })
        ));
        drop(lease);
        areas.pop().unwrap().unmap().unwrap();
        assert!(areas.is_empty());
    }

    proptest! {
        #[test]
        fn a_translation_stays_inside_its_area(
            id in 4u16..7,
            offset in 0u64..20_000,
            len in 0u32..20_000,
        ) {
            let table = one_area();
            let inside = id == 5 && offset + u64::from(len) <= 8192;
            let got = table.translate(addr(id, offset), len, Access::Write);
            prop_assert_eq!(got.is_ok(), inside);
            if let Ok(range) = got {
                prop_assert_eq!(range.len(), len as usize);
            }
        }
    }
}
