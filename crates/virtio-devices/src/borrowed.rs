//! The buffers of a queue that name transient memory: fetched many at a time before they are
//! served, stored many at a time before their return is published (binding section 5).
//!
//! A device is served as if the memory stood where it is; it only asks
//! [`RunningQueue::loan`](crate::queue::RunningQueue::loan) where that is.

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
        if chain
            .segments()
            .any(|(_, segment)| source.names(segment.addr))
        {
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use guest_memory::{Access, Area, FlatSpace, GuestRange, LeasedRange, NoRoom, TranslateError};
    use virtqueue::{DriverQueue, QueueLayout, RingFeatures};

    use super::*;
    use crate::model::{DeviceEvent, ResetReason};
    use crate::queue::Queues;

    const RING: u64 = 1 << 48;
    const LENT: u64 = 1 << 63;
    const FAILED: u8 = 0xee;

    /// Lends from a page for each loan, and writes down what it is asked for.
    #[derive(Debug)]
    struct Lender {
        pages: Area,
        state: Mutex<State>,
    }

    #[derive(Debug, Default)]
    struct State {
        /// Fetched and stored, for each call.
        exchanges: Vec<[usize; 2]>,
        lent: usize,
        room: usize,
        /// Parts of this length cannot be stored.
        lost: u32,
        stored: Vec<u8>,
    }

    impl Transient for Lender {
        fn names(&self, addr: u64) -> bool {
            addr >= LENT
        }

        fn prefetch(&self, _tables: &mut dyn Iterator<Item = (u64, u32)>) {}

        fn lend(&self, _standing: &dyn AddressSpace, loan: &mut Loan) -> Result<(), NoRoom> {
            let mut state = self.state.lock().unwrap();
            if state.lent == state.room {
                return Err(NoRoom);
            }
            state.lent += 1;
            for part in loan.parts_mut() {
                let lease = self.pages.lease();
                part.memory = lease.window(0, part.len.into(), Access::Write).ok();
                part.ticket = Some(0);
            }
            Ok(())
        }

        fn exchange(&self, fetch: &mut [&mut Loan], store: &mut [Return<'_>]) {
            let mut state = self.state.lock().unwrap();
            state.exchanges.push([fetch.len(), store.len()]);
            for back in store {
                for part in back.loan.parts_mut() {
                    if back.written > 0 && part.len == state.lost {
                        part.memory = None;
                    }
                }
                let last = back
                    .loan
                    .parts()
                    .last()
                    .and_then(|part| part.memory.as_ref());
                let last = last.map(|memory| {
                    let [byte] = memory.range().read_array(memory.len() as u64 - 1).unwrap();
                    byte
                });
                state.stored.extend(last.filter(|_| back.status));
            }
        }

        fn end(&self, loan: &mut Loan) {
            let mut state = self.state.lock().unwrap();
            state.lent -= usize::from(loan.parts().iter().any(|part| part.ticket.is_some()));
            for part in loan.parts_mut() {
                (part.memory, part.ticket) = (None, None);
            }
        }
    }

    struct Space {
        flat: FlatSpace,
        source: Arc<dyn Transient>,
    }

    impl AddressSpace for Space {
        fn translate(
            &self,
            a: u64,
            len: u32,
            access: Access,
        ) -> Result<GuestRange<'_>, TranslateError> {
            self.flat.translate(a, len, access)
        }

        fn translate_leased(
            &self,
            a: u64,
            len: u32,
            access: Access,
        ) -> Result<LeasedRange, TranslateError> {
            self.flat.translate_leased(a, len, access)
        }

        fn transient(&self) -> Option<&Arc<dyn Transient>> {
            Some(&self.source)
        }
    }

    struct Rig {
        space: Space,
        lender: Arc<Lender>,
        driver: DriverQueue,
        queues: Queues,
        chain: Chain,
        out: Vec<DeviceEvent>,
    }

    impl Rig {
        /// A driver that has made `chains` buffers available, and room for `room` of them.
        fn new(chains: usize, room: usize) -> Self {
            let ring = Area::anonymous(4096).unwrap();
            let flat = FlatSpace::new(RING, &ring);
            let layout = QueueLayout::contiguous(RING, 8);
            let features = RingFeatures::default();
            let mut driver = DriverQueue::new(&flat, layout, features).unwrap();
            let state = State {
                room,
                ..State::default()
            };
            let lender = Arc::new(Lender {
                pages: Area::anonymous(4096).unwrap(),
                state: Mutex::new(state),
            });
            let source = Arc::clone(&lender) as Arc<dyn Transient>;
            let space = Space { flat, source };
            let segment = |len| Segment { addr: LENT, len };
            for _ in 0..chains {
                driver
                    .add(&[segment(16)], &[segment(64), segment(1)])
                    .unwrap();
            }
            driver.publish();
            let mut queues = Queues::new(1, Some(FAILED));
            let device = DeviceQueue::new(&space, layout, features).unwrap();
            queues.start(0, device, 0);
            queues.get_mut(0).unwrap().begin_turn(&space);
            Self {
                space,
                lender,
                driver,
                queues,
                chain: Chain::new(),
                out: Vec::new(),
            }
        }

        /// Takes what there is; the heads.
        fn take(&mut self) -> Vec<u16> {
            let mut heads = Vec::new();
            self.queues.resume();
            let queue = self.queues.get_mut(0).unwrap();
            while queue.is_ready() {
                if queue.pop(&self.space, &mut self.chain, &mut self.out, |_, _| {}) {
                    heads.push(self.chain.head());
                }
            }
            heads
        }

        fn give_back(&mut self, heads: &[u16]) {
            let queue = self.queues.get_mut(0).unwrap();
            for head in heads {
                queue.give_back(*head, 65, &mut self.out);
            }
            self.queues.settle(&self.space, &mut self.out);
        }

        fn used(&mut self) -> Vec<u32> {
            std::iter::from_fn(|| self.driver.pop_used().unwrap())
                .map(|used| used.len)
                .collect()
        }

        fn state<T>(&self, read: impl FnOnce(&mut State) -> T) -> T {
            read(&mut self.lender.state.lock().unwrap())
        }
    }

    #[test]
    fn a_drain_is_one_exchange_each_way() {
        let mut rig = Rig::new(2, 8);
        let heads = rig.take();
        assert_eq!(heads.len(), 2);
        assert_eq!(rig.state(|state| state.exchanges.clone()), [[2, 0]]);
        rig.give_back(&heads);
        assert_eq!(rig.state(|state| state.exchanges.clone()), [[2, 0], [0, 2]]);
        assert_eq!(rig.state(|state| state.lent), 0);
        assert_eq!(rig.used(), [65, 65]);
    }

    #[test]
    fn a_buffer_is_served_in_the_memory_that_it_was_lent() {
        let mut rig = Rig::new(1, 8);
        let heads = rig.take();
        let queue = rig.queues.get_mut(0).unwrap();
        let space = queue.loan(heads[0]).unwrap();
        let data = rig.chain.writable()[0];
        let range = space.translate(data.addr, data.len, Access::Write).unwrap();
        range.write(0, b"data").unwrap();
        let lent = rig.lender.pages.range(0, 4, Access::Read).unwrap();
        assert_eq!(lent.read_array(0), Ok(*b"data"));
        assert!(space.translate(LENT, 16, Access::Read).is_err());
    }

    #[test]
    fn a_buffer_that_needs_no_loan_is_told_where_it_stands() {
        let mut rig = Rig::new(1, 8);
        let standing = Segment {
            addr: RING + 1024,
            len: 8,
        };
        rig.driver.add(&[standing], &[standing]).unwrap();
        rig.driver.publish();
        let queue = rig.queues.get_mut(0).unwrap();
        let mut told = Vec::new();
        for expected in [
            &[][..],
            &[(Access::Read, standing), (Access::Write, standing)],
        ] {
            let each = |access, segment| told.push((access, segment));
            assert!(queue.pop(&rig.space, &mut rig.chain, &mut rig.out, each));
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn without_room_buffers_wait_and_are_served_later() {
        let mut rig = Rig::new(2, 1);
        let first = rig.take();
        assert_eq!(first.len(), 1);
        assert!(!rig.queues.any_ready(), "it would only spin");
        assert_eq!(rig.take(), []);
        rig.give_back(&first);
        let second = rig.take();
        assert_eq!(second.len(), 1);
        rig.give_back(&second);
        assert_eq!(rig.used(), [65, 65]);
    }

    #[test]
    fn a_queue_that_stops_gives_back_what_nobody_saw() {
        let mut rig = Rig::new(2, 8);
        let queue = rig.queues.get_mut(0).unwrap();
        assert!(queue.pop(&rig.space, &mut rig.chain, &mut rig.out, |_, _| {}));
        assert_eq!(rig.state(|state| state.lent), 2);
        rig.queues.stop(0);
        assert_eq!(rig.state(|state| state.lent), 1);
        rig.queues.report_stopped(&mut rig.out);
        assert!(rig.out.is_empty(), "one is with the device");
        rig.give_back(&[rig.chain.head()]);
        assert_eq!(rig.state(|state| state.lent), 0);
        rig.queues.report_stopped(&mut rig.out);
        assert!(matches!(rig.out.pop(), Some(DeviceEvent::Stopped(0, _))));
    }

    #[test]
    fn data_that_cannot_be_stored_fails_its_buffer() {
        let mut rig = Rig::new(1, 8);
        let heads = rig.take();
        rig.state(|state| state.lost = 64);
        rig.give_back(&heads);
        // The status that the device wrote, then the failure in its place.
        assert_eq!(rig.state(|state| state.stored.clone()), [0, FAILED]);
        assert_eq!(rig.used(), [0]);
        assert!(
            rig.out
                .iter()
                .all(|event| matches!(event, DeviceEvent::Used(0)))
        );
    }

    #[test]
    fn a_status_that_cannot_be_stored_needs_a_reset() {
        let mut rig = Rig::new(1, 8);
        let heads = rig.take();
        rig.state(|state| state.lost = 1);
        rig.give_back(&heads);
        assert_eq!(rig.used(), [0]);
        let told = |event: &DeviceEvent| {
            matches!(event, DeviceEvent::NeedsReset(ResetReason::Status { .. }))
        };
        assert_eq!(rig.out.iter().filter(|event| told(event)).count(), 1);
    }
}
