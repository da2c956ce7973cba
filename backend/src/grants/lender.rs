//! Lends memory for the buffers of one connection, in either way, within a bound.

use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_memory::{
    AddressSpace, LeasedRange, Loan, NoRoom, Part, Return, Transient, TranslateError, UnmapError,
};
use xen_bus::grants::GrantRange;
use xen_hal::Platform;
use xen_types::DomId;

use super::GrantBuffers;
use super::mapped::Mapped;
use super::staging::{self, Staging};
use super::tables::Tables;

/// Pages lent at a time for all buffers of a connection: 4 MiB. A buffer that needs more on its own
/// fails; one that needs more than is left waits in its queue. It bounds what a guest makes the
/// backend hold, and leaves room for three requests of a MiB with their headers.
pub(super) const LENT_PAGES_MAX: u32 = 1024;

/// Lends memory to buffers.
#[derive(Debug)]
pub(super) struct Lender {
    platform: Platform,
    peer: DomId,
    state: Mutex<State>,
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct State {
    way: Way,
    pages: u32,
    /// Somebody found no room.
    starved: bool,
    /// Room came since.
    relieved: bool,
    /// What could not be unmapped since that was last asked for.
    fault: Option<UnmapError>,
}

#[derive(Debug)]
enum Way {
    Copied(Staging),
    Mapped(Mapped),
}

/// Why a part gets no memory.
enum Lack {
    /// Not before another part goes back.
    Room(NoRoom),
    /// It never will.
    Reach,
}

impl Lender {
    pub(super) fn new(platform: Platform, peer: DomId, buffers: GrantBuffers) -> Self {
        let way = match buffers {
            GrantBuffers::Copied => Way::Copied(Staging::default()),
            GrantBuffers::Mapped => Way::Mapped(Mapped::default()),
        };
        Self {
            platform,
            peer,
            state: Mutex::new(State {
                way,
                pages: 0,
                starved: false,
                relieved: false,
                fault: None,
            }),
            tables: Mutex::default(),
        }
    }

    /// Copies an indirect table.
    pub(super) fn fetch_table(&self, addr: u64, into: &mut [u8]) -> Result<(), TranslateError> {
        self.tables().fetch(&self.platform, self.peer, addr, into)
    }

    /// Pages that are lent.
    pub(super) fn pages(&self) -> u32 {
        self.state().pages
    }

    /// Whether room came after somebody had found none. Says so once.
    pub(super) fn take_relief(&self) -> bool {
        std::mem::take(&mut self.state().relieved)
    }

    /// What could not be unmapped since this was last asked for.
    pub(super) fn fault(&self) -> Result<(), UnmapError> {
        self.state().fault.take().map_or(Ok(()), Err)
    }

    /// Unmaps what is still lent, at the end of the connection.
    pub(super) fn unmap_all(&self) -> Result<(), UnmapError> {
        let mut state = self.state();
        let fault = state.fault.take().map_or(Ok(()), Err);
        match &mut state.way {
            Way::Copied(_) => fault,
            Way::Mapped(mapped) => fault.and(mapped.unmap_all()),
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transient for Lender {
    /// Also for addresses that are of neither form: nobody else translates them.
    fn names(&self, addr: u64) -> bool {
        addr >> 63 == 1
    }

    fn prefetch(&self, tables: &mut dyn Iterator<Item = (u64, u32)>) {
        self.tables().prefetch(&self.platform, self.peer, tables);
    }

    fn lend(&self, standing: &dyn AddressSpace, loan: &mut Loan) -> Result<(), NoRoom> {
        let state = &mut *self.state();
        let pages = loan.parts().iter().filter_map(range_of);
        let pages = pages.fold(0, |sum: u32, range| sum.saturating_add(range.pages()));
        let last = loan.parts().len().saturating_sub(1);
        let first = if pages > LENT_PAGES_MAX { last } else { 0 };
        for (index, part) in loan.parts_mut().iter_mut().enumerate().skip(first) {
            if !self.names(part.addr) {
                let memory = standing.translate_leased(part.addr, part.len, part.access);
                part.memory = memory.ok();
                continue;
            }
            match state.lend(&self.platform, self.peer, part) {
                Ok((memory, ticket)) => (part.memory, part.ticket) = (Some(memory), Some(ticket)),
                Err(Lack::Reach) => {}
                Err(Lack::Room(no_room)) => {
                    state.starved = true;
                    for part in loan.parts_mut().iter_mut().take(index) {
                        state.give_back(part);
                    }
                    return Err(no_room);
                }
            }
        }
        Ok(())
    }

    fn exchange(&self, fetch: &mut [&mut Loan], store: &mut [Return<'_>]) {
        // The lock is not held: the memory is the loans', and a call may take its time.
        let copied = matches!(self.state().way, Way::Copied(_));
        if copied {
            staging::exchange(&self.platform, self.peer, fetch, store);
        }
    }

    fn end(&self, loan: &mut Loan) {
        let state = &mut *self.state();
        for part in loan.parts_mut() {
            state.give_back(part);
        }
        if std::mem::take(&mut state.starved) {
            state.relieved = true;
        }
    }
}

impl State {
    fn lend(
        &mut self,
        platform: &Platform,
        peer: DomId,
        part: &Part,
    ) -> Result<(LeasedRange, usize), Lack> {
        let range = range_of(part)
            .filter(|range| range.pages() <= LENT_PAGES_MAX)
            .ok_or(Lack::Reach)?;
        let lent = match &mut self.way {
            Way::Copied(staging) => staging.lend(range).map_err(|error| {
                tracing::error!(%peer, %error, "no memory for the guest's buffers");
                Lack::Reach
            }),
            Way::Mapped(mapped) => {
                mapped
                    .lend(platform, peer, range, part.access)
                    .map_err(|error| {
                        tracing::debug!(%peer, %error, "part of a buffer is out of reach");
                        Lack::Reach
                    })
            }
        };
        let lent = lent?.ok_or(Lack::Room(NoRoom))?;
        self.pages += range.pages();
        Ok(lent)
    }

    fn give_back(&mut self, part: &mut Part) {
        part.memory = None;
        let (Some(ticket), Some(range)) = (part.ticket.take(), range_of(part)) else {
            return;
        };
        self.pages = self.pages.saturating_sub(range.pages());
        match &mut self.way {
            Way::Copied(staging) => staging.give_back(ticket, range),
            Way::Mapped(mapped) => {
                if let Err(error) = mapped.give_back(ticket, range) {
                    self.fault = Some(error);
                }
            }
        }
    }
}

fn range_of(part: &Part) -> Option<GrantRange> {
    GrantRange::new(part.addr, part.len)
}
