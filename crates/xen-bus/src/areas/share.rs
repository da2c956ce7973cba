//! AREA_SHARE as a job in steps (binding section 6): which page to map next, until all are mapped.
//!
//! The job maps nothing itself, and never holds more references than one directory page has. A
//! chain of directory pages is followed exactly as far as the page count needs, so that one that
//! loops ends like any other.

use std::ops::Range;

use guest_memory::Access;
use xen_types::{AreaId, GrantRef, PAGE_SIZE};

use super::{AreaRefusal, WorkBudget};
use crate::directory::{self, REFS_PER_DIRECTORY};
use crate::messages::{AreaReply, AreaResult, AreaShare, ShareFlags};

/// What the owner of a [`ShareJob`] does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareStep {
    /// Map this page for reading, copy it once, unmap it, and give the copy to
    /// [`ShareJob::directory`].
    MapDirectory(GrantRef),
    /// Map these pages, in order, behind those mapped before.
    MapData(Vec<GrantRef>),
    /// The turn's pages are used up: go on in the next.
    NextTurn,
    /// All pages are mapped: hand the area to [`super::AreaTable::finish_share`].
    Mapped,
}

/// An area on its way from request to answer. Goes back to its table by
/// [`super::AreaTable::finish_share`] or [`super::AreaTable::abandon_share`].
#[derive(Debug)]
#[must_use = "the area's id and pages stay taken until the job is finished or abandoned"]
pub struct ShareJob {
    id: AreaId,
    request: AreaShare,
    /// Data pages that no step has named yet.
    left: u32,
    source: Source,
}

/// References of data pages that are known and that no step has named yet.
#[derive(Debug)]
enum Source {
    /// All of them, consecutive.
    Run(Range<u32>),
    /// Those of the directory page read last, and the page that has the next ones.
    Directory {
        refs: std::vec::IntoIter<GrantRef>,
        next: GrantRef,
    },
}

impl ShareJob {
    /// Checks all of a request that does not depend on other areas.
    pub(super) fn new(request: AreaShare) -> Result<Self, AreaRefusal> {
        let AreaShare {
            area_id,
            flags,
            page_count,
            first,
        } = request;
        let id = AreaId::new(area_id).ok_or(AreaRefusal::Id(area_id))?;
        let unknown = flags.difference(ShareFlags::all());
        if !unknown.is_empty() {
            return Err(AreaRefusal::Flags(unknown.bits()));
        }
        if page_count == 0 {
            return Err(AreaRefusal::Empty);
        }
        if first == GrantRef(0) {
            return Err(AreaRefusal::ReservedReference);
        }
        let source = if flags.contains(ShareFlags::CONSECUTIVE) {
            // no grant table has 2^32 entries, so a run that ends there is none
            let end = first.0.checked_add(page_count);
            Source::Run(first.0..end.ok_or(AreaRefusal::ReferencesWrap)?)
        } else {
            Source::Directory {
                refs: Vec::new().into_iter(),
                next: first,
            }
        };
        Ok(Self {
            id,
            request,
            left: page_count,
            source,
        })
    }

    /// The area's id.
    #[must_use]
    pub fn id(&self) -> AreaId {
        self.id
    }

    /// What was asked for.
    #[must_use]
    pub fn request(&self) -> &AreaShare {
        &self.request
    }

    /// How many data pages the area has.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.request.page_count
    }

    /// How the data pages are to be mapped.
    #[must_use]
    pub fn access(&self) -> Access {
        if self.request.flags.contains(ShareFlags::DEVICE_WRITE) {
            Access::Write
        } else {
            Access::Read
        }
    }

    /// The answer to the request.
    #[must_use]
    pub fn reply(&self, result: AreaResult) -> AreaReply {
        AreaReply {
            area_id: self.id.get(),
            result,
        }
    }

    /// What to do next, at the cost of `budget`.
    pub fn step(&mut self, budget: &mut WorkBudget) -> ShareStep {
        if self.left == 0 {
            return ShareStep::Mapped;
        }
        let chunk: Vec<_> = match &mut self.source {
            Source::Directory { refs, next } if refs.len() == 0 => {
                return match budget.take(1) {
                    0 => ShareStep::NextTurn,
                    _ => ShareStep::MapDirectory(*next),
                };
            }
            Source::Directory { refs, .. } => {
                let count = budget.take(count(refs.len()));
                refs.take(count as usize).collect()
            }
            Source::Run(refs) => {
                let count = budget.take(count(refs.len()));
                refs.take(count as usize).map(GrantRef).collect()
            }
        };
        if chunk.is_empty() {
            return ShareStep::NextTurn;
        }
        self.left = self.left.saturating_sub(count(chunk.len()));
        ShareStep::MapData(chunk)
    }

    /// Takes over the copy of the directory page that [`ShareStep::MapDirectory`] asked for.
    ///
    /// # Errors
    /// The page makes no directory of the area: abandon the job.
    pub fn directory(&mut self, page: &[u8; PAGE_SIZE]) -> Result<(), AreaRefusal> {
        let mut words = directory::parse(page);
        let next = words.next().unwrap_or_default();
        let here = (self.left as usize).min(REFS_PER_DIRECTORY);
        let refs: Vec<_> = words.take(here).collect();
        let more = self.left - count(here);
        match (more, next) {
            (1.., GrantRef(0)) => return Err(AreaRefusal::DirectoryEnds { missing: more }),
            (0, GrantRef(1..)) => return Err(AreaRefusal::DirectoryGoesOn),
            _ => {}
        }
        if refs.contains(&GrantRef(0)) {
            return Err(AreaRefusal::ReservedReference);
        }
        self.source = Source::Directory {
            refs: refs.into_iter(),
            next,
        };
        Ok(())
    }
}

/// A number of pages, none of which exceeds the 32-bit page count of a request.
fn count(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use guest_memory::Area;

    use super::*;
    use crate::areas::PAGES_PER_TURN;
    use crate::directory::{directory_pages, write_directory};

    fn request(flags: ShareFlags, page_count: u32, first: u32) -> AreaShare {
        AreaShare {
            area_id: 1,
            flags,
            page_count,
            first: GrantRef(first),
        }
    }

    /// Runs a job to its end: the data pages in the order in which they were mapped, and the
    /// turns that it took.
    fn run(
        mut job: ShareJob,
        directory: impl Fn(GrantRef) -> [u8; PAGE_SIZE],
    ) -> Result<(Vec<GrantRef>, usize), AreaRefusal> {
        let (mut mapped, mut turns, mut in_turn) = (Vec::new(), 1, 0);
        let mut budget = WorkBudget::new();
        loop {
            match job.step(&mut budget) {
                ShareStep::MapDirectory(gref) => {
                    in_turn += 1;
                    job.directory(&directory(gref))?;
                }
                ShareStep::MapData(refs) => {
                    assert!(!refs.is_empty());
                    in_turn += count(refs.len());
                    mapped.extend(refs);
                }
                ShareStep::NextTurn => {
                    budget.next_turn();
                    (turns, in_turn) = (turns + 1, 0);
                }
                ShareStep::Mapped => return Ok((mapped, turns)),
            }
            assert!(in_turn <= PAGES_PER_TURN);
        }
    }

    fn no_directory(gref: GrantRef) -> [u8; PAGE_SIZE] {
        panic!("{gref:?} is no directory page");
    }

    /// The pages of a directory that starts at reference 900,000.
    fn pages_of(data: &[GrantRef]) -> impl Fn(GrantRef) -> [u8; PAGE_SIZE] {
        const FIRST: u32 = 900_000;
        let pages = directory_pages(data.len());
        let area = Area::anonymous(pages * PAGE_SIZE).unwrap();
        let refs: Vec<_> = (FIRST..).map(GrantRef).take(pages).collect();
        let window = area.range(0, area.len() as u64, Access::Write).unwrap();
        write_directory(data, &refs, window).unwrap();
        move |gref| {
            let window = area.range(0, area.len() as u64, Access::Read).unwrap();
            window.read_array(u64::from(gref.0 - FIRST) * 4096).unwrap()
        }
    }

    #[test]
    fn a_run_is_mapped_in_chunks_over_turns() {
        let job = ShareJob::new(request(ShareFlags::CONSECUTIVE, 1000, 50)).unwrap();
        let (mapped, turns) = run(job, no_directory).unwrap();
        assert_eq!(mapped, (50..1050).map(GrantRef).collect::<Vec<_>>());
        assert_eq!(turns, 4);
    }

    #[test]
    fn a_run_ends_below_the_highest_reference() {
        for (page_count, first, result) in [
            (1, u32::MAX - 1, Ok(1)),
            (1, u32::MAX, Err(AreaRefusal::ReferencesWrap)),
            (u32::MAX, 1, Err(AreaRefusal::ReferencesWrap)),
        ] {
            let job = ShareJob::new(request(ShareFlags::CONSECUTIVE, page_count, first));
            assert_eq!(job.map(|job| job.pages()), result);
        }
    }

    #[test]
    fn what_a_frontend_writes_is_what_is_mapped() {
        for pages in [1, 2, 255, 256, 1022, 1023, 1024, 2046, 2047, 4096] {
            // any order, and the same page twice
            let mut data: Vec<_> = (0..pages).map(|i| GrantRef(8 + i * 7919 % pages)).collect();
            if let [first, .., last] = &mut data[..] {
                *last = *first;
            }
            let job = ShareJob::new(request(ShareFlags::empty(), pages, 900_000)).unwrap();
            let (mapped, turns) = run(job, pages_of(&data)).unwrap();
            assert_eq!(mapped, data);
            assert!(
                turns >= pages.div_ceil(PAGES_PER_TURN) as usize,
                "{pages}: {turns}"
            );
        }
    }

    #[test]
    fn a_directory_that_ends_early_or_goes_on_is_refused() {
        let data: Vec<_> = (1..=1024).map(GrantRef).collect();
        let job = ShareJob::new(request(ShareFlags::empty(), 2047, 900_000)).unwrap();
        let error = run(job, pages_of(&data)).unwrap_err();
        assert_eq!(error, AreaRefusal::DirectoryEnds { missing: 1 });

        let job = ShareJob::new(request(ShareFlags::empty(), 1023, 900_000)).unwrap();
        let error = run(job, pages_of(&data)).unwrap_err();
        assert_eq!(error, AreaRefusal::DirectoryGoesOn);
    }

    #[test]
    fn a_directory_that_loops_ends_at_the_page_count() {
        let mut page = [1; PAGE_SIZE];
        page[..4].copy_from_slice(&7u32.to_le_bytes());
        let asked = std::cell::Cell::new(0);
        let looping = |gref| {
            assert_eq!(gref, GrantRef(7));
            asked.set(asked.get() + 1);
            page
        };
        let job = ShareJob::new(request(ShareFlags::empty(), 4096, 7)).unwrap();
        assert_eq!(run(job, looping).unwrap_err(), AreaRefusal::DirectoryGoesOn);
        assert_eq!(asked.get(), 5);
    }

    #[test]
    fn reference_zero_is_refused_among_those_that_count() {
        let data = [GrantRef(8), GrantRef(0), GrantRef(9)];
        for (pages, result) in [
            (1, Ok(vec![GrantRef(8)])),
            (2, Err(AreaRefusal::ReservedReference)),
            (3, Err(AreaRefusal::ReservedReference)),
        ] {
            let job = ShareJob::new(request(ShareFlags::empty(), pages, 900_000)).unwrap();
            assert_eq!(run(job, pages_of(&data)).map(|(mapped, _)| mapped), result);
        }
        for flags in [ShareFlags::empty(), ShareFlags::CONSECUTIVE] {
            let error = ShareJob::new(request(flags, 1, 0)).unwrap_err();
            assert_eq!(error, AreaRefusal::ReservedReference);
        }
    }

    #[test]
    fn senseless_requests_are_refused() {
        let sound = request(ShareFlags::CONSECUTIVE, 1, 8);
        for (area_id, error) in [(0, AreaRefusal::Id(0)), (0x8000, AreaRefusal::Id(0x8000))] {
            let request = AreaShare { area_id, ..sound };
            assert_eq!(ShareJob::new(request).unwrap_err(), error);
        }
        let flags = ShareFlags::from_bits_retain(0x8003);
        let error = ShareJob::new(AreaShare { flags, ..sound }).unwrap_err();
        assert_eq!(error, AreaRefusal::Flags(0x8000));
        let error = ShareJob::new(AreaShare {
            page_count: 0,
            ..sound
        })
        .unwrap_err();
        assert_eq!(error, AreaRefusal::Empty);
    }

    #[test]
    fn only_a_flag_lets_the_device_write() {
        let job = ShareJob::new(request(ShareFlags::empty(), 1, 8)).unwrap();
        assert_eq!(job.access(), Access::Read);
        let job = ShareJob::new(request(ShareFlags::DEVICE_WRITE, 1, 8)).unwrap();
        assert_eq!(job.access(), Access::Write);
    }
}
