//! Areas: memory that a driver shares with the whole bus instance, by id, and what a bus address
//! means at this moment (binding sections 5 and 6).
//!
//! [`AreaTable`] holds what is shared and looks addresses up; it maps and unmaps nothing. Whoever
//! owns it does that, as the jobs say. Sharing an area is this loop, once per turn:
//!
//! ```
//! # use guest_memory::{Access, Area};
//! # use xen_bus::areas::{AreaLimits, AreaRefusal, AreaTable, ShareJob, ShareStep, WorkBudget};
//! # use xen_bus::messages::{AreaReply, AreaResult, AreaShare, ShareFlags};
//! # use xen_types::{GrantRef, PAGE_SIZE};
//! # struct Builder(usize);
//! # impl Builder {
//! #     fn map(&mut self, refs: &[GrantRef]) { self.0 += refs.len() }
//! #     fn finish(self) -> Area { Area::anonymous(self.0 * PAGE_SIZE).unwrap() }
//! # }
//! # fn copy_of_page(_: GrantRef) -> [u8; PAGE_SIZE] { let mut page = [0; PAGE_SIZE]; page[4] = 8; page }
//! # let mut table = AreaTable::new(AreaLimits::default());
//! # let request = AreaShare { area_id: 1, flags: ShareFlags::empty(), page_count: 1, first: GrantRef(9) };
//! let mut job = table.begin_share(request)?;
//! let mut mapping = Builder(0); // of job.pages() pages, for job.access()
//! let mut budget = WorkBudget::new();
//! let reply = loop {
//!     match job.step(&mut budget) {
//!         ShareStep::MapDirectory(gref) => match job.directory(&copy_of_page(gref)) {
//!             Ok(()) => {}
//!             Err(refusal) => break table.abandon_share(job, refusal.result()),
//!         },
//!         ShareStep::MapData(refs) => mapping.map(&refs),
//!         ShareStep::NextTurn => budget.next_turn(), // or come back when the loop has come round
//!         ShareStep::Mapped => break table.finish_share(job, mapping.finish()),
//!     }
//! };
//! # assert_eq!(reply, AreaReply { area_id: 1, result: AreaResult::DONE });
//! # Ok::<(), AreaRefusal>(())
//! ```

mod budget;
mod share;
mod table;

pub use budget::{PAGES_PER_TURN, WorkBudget};
pub use share::{ShareJob, ShareStep};
pub use table::{AreaLimits, AreaTable, Withdrawal};

use xen_types::AreaId;

use crate::messages::AreaResult;

/// Why a request about an area is not done. The peer gets [`AreaRefusal::result`], the log the
/// text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AreaRefusal {
    /// Not an id that an area can have.
    #[error("area id is {_0}, 1 to {max} is possible", max = AreaId::MAX)]
    Id(u16),
    /// The id belongs to an area that is shared, being shared or being unshared.
    #[error("area id {0} is in use")]
    InUse(AreaId),
    /// Flags that this binding does not have.
    #[error("area flags {0:#x} are not known")]
    Flags(u16),
    /// An area of no pages.
    #[error("an area has at least one page")]
    Empty,
    /// Xen keeps reference 0 for itself.
    #[error("grant reference 0 is reserved")]
    ReservedReference,
    /// Consecutive references that go beyond 32 bits.
    #[error("consecutive grant references wrap")]
    ReferencesWrap,
    /// A directory page says that it is the last, and is not.
    #[error("the directory ends while {missing} pages are missing")]
    DirectoryEnds {
        /// Data pages that it does not name.
        missing: u32,
    },
    /// The last directory page that the page count needs names another.
    #[error("the directory goes on after its last page")]
    DirectoryGoesOn,
    /// As many areas as the backend offered are in use.
    #[error("{max} areas are in use, max-areas allows no more")]
    TooManyAreas {
        /// The limit.
        max: u32,
    },
    /// More pages than the backend offered.
    #[error("{wanted} pages do not fit: {used} of max-area-pages {max} are in use")]
    TooManyPages {
        /// Pages of the request.
        wanted: u32,
        /// Pages of all areas now.
        used: u32,
        /// The limit.
        max: u32,
    },
    /// No such area is shared.
    #[error("no area {0} is shared")]
    Unknown(u16),
    /// Queues or taken chains lie in the area.
    #[error("area {id} is in use: {leases} leases are out")]
    Busy {
        /// The area.
        id: AreaId,
        /// How many queues and chains, at least.
        leases: usize,
    },
}

impl AreaRefusal {
    /// What the peer is told.
    #[must_use]
    pub const fn result(&self) -> AreaResult {
        match self {
            Self::Busy { .. } => AreaResult::BUSY,
            Self::TooManyAreas { .. } | Self::TooManyPages { .. } => AreaResult::NO_ROOM,
            _ => AreaResult::REFUSED,
        }
    }
}
