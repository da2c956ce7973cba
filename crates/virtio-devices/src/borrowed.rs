//! The buffers of a queue that name transient memory: fetched many at a time before they are
//! served, stored many at a time before their return is published (binding section 5).
//!
//! A device is served as if the memory stood where it is; it only asks
//! [`RunningQueue::space`](crate::queue::RunningQueue::space) where that is.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use guest_memory::{AddressSpace, Loan, Return, Transient};
use virtqueue::{Chain, DeviceQueue, QueueFault, Segment};

/// Buffers that are fetched with one call: what a turn of the backend serves of a device.
const BATCH: u16 = 64;

/// What a queue has borrowed.
#[derive(Debug)]
pub(crate) struct Borrowed {
    source: Arc<dyn Transient>,
    /// Taken from the ring and not yet given to the device.
    taken: VecDeque<Buffer>,
    /// How many of them, at the end, are not fetched.
    fresh: usize,
    /// Taken from the ring, but there was no room for it.
    held: Option<Buffer>,
    /// What the device works on, by head.
    lent: HashMap<u16, Loan>,
    /// What it has given back.
    returned: Vec<Returned>,
    /// For the next ones.
    spare: Vec<Buffer>,
    /// Indirect tables of the next ones; empty between calls.
    tables: Vec<Segment>,
}

/// A buffer, and what it names if that is not all standing memory.
#[derive(Debug, Default)]
struct Buffer {
    chain: Chain,
    loan: Loan,
}

/// A buffer that goes back.
#[derive(Debug)]
pub(crate) struct Returned {
    /// The head.
    pub(crate) head: u16,
    /// Bytes written.
    pub(crate) written: u32,
    /// Not even the status byte could be stored.
    pub(crate) unanswered: bool,
    loan: Loan,
    /// Parts without memory when it was last looked at.
    missing: usize,
}

/// Why no more buffers were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    /// There are enough for now.
    Enough,
    /// The ring has no more.
    All,
    /// There is no room for the next one.
    UpToRoom,
}

impl Borrowed {
    pub(crate) fn new(source: &Arc<dyn Transient>) -> Self {
        Self {
            source: Arc::clone(source),
            taken: VecDeque::new(),
            fresh: 0,
            held: None,
            lent: HashMap::new(),
            returned: Vec::new(),
            spare: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// Whether a buffer can be given to the device.
    pub(crate) fn has_next(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Whether the device has given buffers back that are not stored.
    pub(crate) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Takes buffers from the ring, as many as one call is to fetch, and finds room for them.
    ///
    /// # Errors
    /// The driver broke the ring. What came before can be served.
    pub(crate) fn take(
        &mut self,
        ring: &mut DeviceQueue,
        space: &dyn AddressSpace,
    ) -> Result<Took, QueueFault> {
        self.prefetch(ring);
        while self.taken.len() < usize::from(BATCH) {
            let mut buffer = match self.held.take() {
                Some(buffer) => buffer,
                None => {
                    let mut buffer = self.spare.pop().unwrap_or_default();
                    if !ring.pop(space, &mut buffer.chain)? {
                        self.spare.push(buffer);
                        return Ok(Took::All);
                    }
                    buffer.borrow_from(&*self.source);
                    buffer
                }
            };
            let needs = !buffer.loan.parts().is_empty();
            if needs && self.source.lend(space, &mut buffer.loan).is_err() {
                self.held = Some(buffer);
                return Ok(Took::UpToRoom);
            }
            self.taken.push_back(buffer);
            self.fresh += 1;
        }
        Ok(Took::Enough)
    }

    fn prefetch(&mut self, ring: &DeviceQueue) {
        ring.upcoming_tables(BATCH, &mut self.tables);
        let source = &self.source;
        self.tables.retain(|table| source.names(table.addr));
        if !self.tables.is_empty() {
            let mut tables = self.tables.drain(..).map(|table| (table.addr, table.len));
            source.prefetch(&mut tables);
        }
    }

    /// Fetches what was taken and stores what was given back, with one call. If parts cannot be
    /// stored, `failure` goes into the status byte, in a second one.
    pub(crate) fn exchange(&mut self, failure: Option<u8>) {
        let old = self.taken.len() - mem::take(&mut self.fresh);
        let mut fetch: Vec<&mut Loan> = self
            .taken
            .iter_mut()
            .skip(old)
            .map(|buffer| &mut buffer.loan)
            .collect();
        let status = failure.is_some();
        let mut store: Vec<Return<'_>> = self
            .returned
            .iter_mut()
            .map(|back| back.storing(status))
            .collect();
        if !(fetch.is_empty() && store.is_empty()) {
            self.source.exchange(&mut fetch, &mut store);
        }
        let mut again = Vec::new();
        for back in self.returned.iter_mut().filter_map(Returned::lost) {
            back.written = 0;
            if let Some(failure) = failure {
                back.unanswered = !back.loan.put_last(failure);
                again.push(back);
            }
        }
        let mut store: Vec<Return<'_>> =
            again.iter_mut().map(|back| back.storing(status)).collect();
        if !store.is_empty() {
            self.source.exchange(&mut [], &mut store);
            for back in again.into_iter().filter_map(Returned::lost) {
                back.unanswered = true;
            }
        }
    }

    /// The next buffer for the device, if there is one.
    pub(crate) fn next(&mut self, chain: &mut Chain) -> bool {
        let Some(mut buffer) = self.taken.pop_front() else {
            return false;
        };
        mem::swap(chain, &mut buffer.chain);
        if !buffer.loan.parts().is_empty() {
            self.lent.insert(chain.head(), mem::take(&mut buffer.loan));
        }
        self.spare.push(buffer);
        true
    }

    /// Where the memory of a buffer is, if it was lent.
    pub(crate) fn loan(&self, head: u16) -> Option<&Loan> {
        self.lent.get(&head)
    }

    /// The device gives a buffer back; false: it was lent nothing, and can be returned at once.
    pub(crate) fn give_back(&mut self, head: u16, written: u32) -> bool {
        let Some(loan) = self.lent.remove(&head) else {
            return false;
        };
        self.returned.push(Returned {
            head,
            written,
            unanswered: false,
            missing: loan.missing(),
            loan,
        });
        true
    }

    /// The memory of what was given back goes back; then the heads may.
    pub(crate) fn end_returned(&mut self) -> impl Iterator<Item = Returned> + use<> {
        let mut returned = mem::take(&mut self.returned);
        for back in &mut returned {
            self.source.end(&mut back.loan);
        }
        returned.into_iter()
    }

    /// Forgets what the device has not seen.
    pub(crate) fn cancel(&mut self) {
        self.fresh = 0;
        for mut buffer in self.taken.drain(..).chain(self.held.take()) {
            self.source.end(&mut buffer.loan);
        }
    }
}

/// What the device still works on keeps its memory: see [`Transient::end`].
impl Drop for Borrowed {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Buffer {
    /// Names the parts of the loan, if the chain names any transient memory.
    fn borrow_from(&mut self, source: &dyn Transient) {
        let Self { chain, loan } = self;
        loan.clear();
        let mut segments = chain.readable().iter().chain(chain.writable());
        if segments.any(|segment| source.names(segment.addr)) {
            chain.readdress(|segment, access| loan.add(segment.addr, segment.len, access));
        }
    }
}

impl Returned {
    fn storing(&mut self, status: bool) -> Return<'_> {
        Return {
            loan: &mut self.loan,
            written: self.written.into(),
            status,
        }
    }

    /// Itself, if parts lost their memory since it was last looked at.
    fn lost(&mut self) -> Option<&mut Self> {
        let before = mem::replace(&mut self.missing, self.loan.missing());
        (self.missing > before).then_some(self)
    }
}
