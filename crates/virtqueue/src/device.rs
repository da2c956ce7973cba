//! The device side of a split ring: takes chains, returns heads (VIRTIO 1.4, 2.7.5 to 2.7.10).
//!
//! The driver is hostile. Every index is checked against private ones, every descriptor is copied
//! once. The numbered steps are those of the barrier table in 2.7.13 and 2.7.14: 3 take, 4 re-arm,
//! 5 publish, 6 signal.

use guest_memory::{Access, AddressSpace};

use crate::descriptor::Descriptor;
use crate::indirect::{self, RawDescriptor};
use crate::memory::{Step, fence};
use crate::notify::Notifier;
use crate::ring::{DeviceRings, NO_INTERRUPT, NO_NOTIFY};
use crate::walk::{Indirect, Table, follow};
use crate::{
    Chain, DescriptorAt, QueueFault, QueueLayout, QueueState, RingFeatures, Segment, SetupError,
    StateError, Taken,
};

/// The device's end of one queue. Holds leases of the ring's memory until it is dropped.
#[derive(Debug)]
pub struct DeviceQueue {
    rings: DeviceRings,
    size: u16,
    features: RingFeatures,
    /// Position to take next.
    next_avail: u16,
    /// The driver's index when last looked at; everything before it may be taken.
    seen_avail: u16,
    /// Position to return to next.
    next_used: u16,
    /// Index that the driver was last told.
    published: u16,
    /// Publish even if nothing was returned: the process before may have died in between.
    republish: bool,
    /// By head: taken and not yet returned.
    in_flight: Box<[bool]>,
    /// Room for the copy of an indirect table, as long as the longest so far.
    table: Vec<RawDescriptor>,
    signal: Notifier,
    fault: Option<QueueFault>,
}

impl DeviceQueue {
    /// Takes a queue into service whose parts the driver has just cleared.
    ///
    /// # Errors
    /// As [`DeviceQueue::check`].
    pub fn new<S: AddressSpace + ?Sized>(
        space: &S,
        layout: QueueLayout,
        features: RingFeatures,
    ) -> Result<Self, SetupError> {
        let rings = DeviceRings::open(space, &layout)?;
        Ok(Self::over(rings, layout.size, features))
    }

    /// Begins with rings that the driver has cleared.
    pub(crate) fn over(rings: DeviceRings, size: u16, features: RingFeatures) -> Self {
        Self {
            rings,
            size,
            features,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            published: 0,
            republish: false,
            in_flight: vec![false; size.into()].into_boxed_slice(),
            table: Vec::new(),
            signal: Notifier::default(),
            fault: None,
        }
    }

    /// Takes a queue into service where another process left it. The first
    /// [`DeviceQueue::publish`] tells the driver everything once more.
    ///
    /// # Errors
    /// As [`DeviceQueue::new`], and if the state does not describe a queue of this size.
    pub fn from_state<S: AddressSpace + ?Sized>(
        space: &S,
        layout: QueueLayout,
        features: RingFeatures,
        state: &QueueState,
    ) -> Result<Self, SetupError> {
        if state.size != layout.size {
            return Err(SetupError::State(StateError::Size {
                state: state.size,
                layout: layout.size,
            }));
        }
        let mut queue = Self::new(space, layout, features)?;
        queue.restore(state)?;
        Ok(queue)
    }

    /// What SET_VQUEUE accepts or refuses: checks a layout without taking it into service.
    ///
    /// # Errors
    /// The size is no power of two, or a part is misaligned, or not shared with the access that a
    /// device needs.
    pub fn check<S: AddressSpace + ?Sized>(
        space: &S,
        layout: QueueLayout,
    ) -> Result<(), SetupError> {
        layout.locate(Access::Read, |addr, len, access| {
            space.translate(addr, len, access)
        })?;
        Ok(())
    }

    /// Takes the next chain into `chain`. False: there is none, or the queue has stopped.
    ///
    /// A chain with a [`Chain::refusal`] is taken, too: its head must go back like any other.
    ///
    /// # Errors
    /// As [`DeviceQueue::pop_each`].
    #[inline]
    pub fn pop<S: AddressSpace + ?Sized>(
        &mut self,
        space: &S,
        chain: &mut Chain,
    ) -> Result<bool, QueueFault> {
        self.pop_telling(space, chain, |_, _| {})
    }

    /// Takes the next chain into `chain`, and tells `each` of its segments as they are found: as
    /// [`DeviceQueue::pop`] and [`DeviceQueue::pop_each`] at once.
    ///
    /// # Errors
    /// As [`DeviceQueue::pop_each`].
    #[inline]
    pub fn pop_telling<S: AddressSpace + ?Sized>(
        &mut self,
        space: &S,
        chain: &mut Chain,
        mut each: impl FnMut(Access, Segment),
    ) -> Result<bool, QueueFault> {
        chain.clear();
        let taken = self.pop_each(space, |access, segment| {
            chain.push(access, segment);
            each(access, segment);
        })?;
        if let Some(taken) = taken {
            chain.finish(taken);
        }
        Ok(taken.is_some())
    }

    /// Takes the next chain, and tells `each` of its segments as they are found, with what they
    /// are for: first all to read, then all to write. `None`: there is none, or the queue has
    /// stopped.
    ///
    /// What `each` was told counts for nothing unless a chain comes out of it, as a chain may turn
    /// out to be broken behind its first segments. With
    /// [`TooManyEntries`](crate::ChainRefusal::TooManyEntries) segments are missing.
    ///
    /// # Errors
    /// The driver broke the rules of the ring. Said once; from then on nothing is taken, while
    /// chains in flight can still be returned.
    #[inline]
    pub fn pop_each<S: AddressSpace + ?Sized>(
        &mut self,
        space: &S,
        each: impl FnMut(Access, Segment),
    ) -> Result<Option<Taken>, QueueFault> {
        self.take(space, each).map_err(|fault| *fault)
    }

    /// The indirect tables that the next chains name, of at most `most` of them: a hint for who can
    /// fetch many at once. Nothing is checked or remembered; [`DeviceQueue::pop`] looks for itself.
    pub fn upcoming_tables(&self, most: u16, out: &mut Vec<Segment>) {
        if !self.features.indirect || self.fault.is_some() {
            return;
        }
        let new = self.rings.avail_idx().wrapping_sub(self.next_avail);
        for ahead in 0..new.min(most).min(self.size) {
            let head = self.rings.avail_slot(self.next_avail.wrapping_add(ahead));
            let Some(descriptor) = self.rings.descriptor(head) else {
                return;
            };
            if descriptor.has(Descriptor::INDIRECT) {
                out.push(Segment {
                    addr: descriptor.addr(),
                    len: descriptor.len(),
                });
            }
        }
    }

    /// Returns a chain of which the first `written` writable bytes were written. The driver sees it
    /// after [`DeviceQueue::publish`].
    ///
    /// # Errors
    /// The head is not in flight.
    #[inline]
    pub fn push_used(&mut self, head: u16, written: u32) -> Result<(), QueueFault> {
        match self.in_flight.get_mut(usize::from(head)) {
            Some(taken) if *taken => *taken = false,
            _ => return Err(QueueFault::NotInFlight { head }),
        }
        self.rings.set_used_slot(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver everything returned so far, by one store. True: notify the driver.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_used && !self.republish {
            return false;
        }
        self.rings.set_used_idx(self.next_used);
        self.published = self.next_used;
        self.republish = false;
        fence(Step::Signal);
        if self.features.event_idx {
            self.signal.check(self.rings.used_event(), self.published)
        } else {
            self.rings.avail_flags() & NO_INTERRUPT == 0
        }
    }

    /// Asks the driver for a notification of the next chain. True: one is there already, or more
    /// than one; take it first, nobody will notify of it.
    pub fn rearm(&mut self) -> bool {
        if self.fault.is_some() {
            return false;
        }
        if self.features.event_idx {
            self.rings.set_avail_event(self.next_avail);
        } else {
            self.rings.set_used_flags(0);
        }
        fence(Step::DeviceRearm);
        self.rings.avail_idx() != self.next_avail
    }

    /// Tells the driver that no notification is needed until [`DeviceQueue::rearm`]. A hint: some
    /// may come all the same, and with EVENT_IDX nothing needs to be said.
    pub fn disarm(&mut self) {
        if !self.features.event_idx && self.fault.is_none() {
            self.rings.set_used_flags(NO_NOTIFY);
        }
    }

    /// Why the queue stopped, if it did.
    #[must_use]
    pub fn faulted(&self) -> Option<&QueueFault> {
        self.fault.as_ref()
    }

    /// Queue size.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Chains taken and not yet returned.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// What another process needs to go on from here.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            in_flight: (0..self.size)
                .zip(&self.in_flight)
                .filter_map(|(head, &taken)| taken.then_some(head))
                .collect(),
        }
    }

    fn restore(&mut self, state: &QueueState) -> Result<(), StateError> {
        let indexes = state.next_avail.wrapping_sub(state.next_used);
        if state.in_flight.len() != usize::from(indexes) {
            return Err(StateError::Count {
                indexes,
                heads: state.in_flight.len(),
            });
        }
        for &head in &state.in_flight {
            match self.in_flight.get_mut(usize::from(head)) {
                Some(taken) if !*taken => *taken = true,
                Some(_) => return Err(StateError::HeadTwice { head }),
                None => {
                    return Err(StateError::HeadOutOfRange {
                        head,
                        size: state.size,
                    });
                }
            }
        }
        self.next_avail = state.next_avail;
        self.seen_avail = state.next_avail;
        self.next_used = state.next_used;
        self.published = state.next_used;
        self.republish = true;
        Ok(())
    }

    /// As [`DeviceQueue::pop_each`]; a fault stays where it is latched, out of the usual way.
    #[inline]
    fn take<S: AddressSpace + ?Sized>(
        &mut self,
        space: &S,
        mut each: impl FnMut(Access, Segment),
    ) -> Result<Option<Taken>, &QueueFault> {
        // A queue that has stopped has seen nothing, and looks no more.
        if self.next_avail == self.seen_avail {
            if let Err(fault) = self.look() {
                return Err(self.stop(fault));
            }
            if self.next_avail == self.seen_avail {
                return Ok(None);
            }
        }
        let head = self.rings.avail_slot(self.next_avail);
        match self.in_flight.get_mut(usize::from(head)) {
            Some(in_flight) if !*in_flight => *in_flight = true,
            _ => return Err(self.stop(self.bad_head(head))),
        }
        let ring = Table {
            last: self.rings.last_descriptor(),
            place: DescriptorAt::Ring,
            fetch: |index| self.rings.descriptor(index),
        };
        let mut taken = Taken::new(head);
        let first = self.rings.descriptor_of_head(head);
        match follow(&mut taken, Access::Read, ring, head, first, &mut each) {
            Ok(None) => {}
            Ok(Some(indirect)) => match self.follow_table(space, taken, indirect, each) {
                Ok(end) => taken = end,
                Err(fault) => return Err(self.leave(head, fault)),
            },
            Err(fault) => return Err(self.leave(head, fault)),
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(taken))
    }

    /// Goes on in an indirect table. Out of line, so that chains without one keep their registers.
    #[inline(never)]
    fn follow_table<S: AddressSpace + ?Sized>(
        &mut self,
        space: &S,
        taken: Taken,
        indirect: Indirect,
        each: impl FnMut(Access, Segment),
    ) -> Result<Taken, QueueFault> {
        if self.features.indirect {
            indirect::follow_table(space, &mut self.table, taken, indirect, each)
        } else {
            let at = DescriptorAt::Ring(indirect.index);
            Err(QueueFault::IndirectNotNegotiated { at })
        }
    }

    #[cold]
    #[inline(never)]
    fn bad_head(&self, head: u16) -> QueueFault {
        let size = self.size;
        if head < size {
            QueueFault::HeadInFlight { head }
        } else {
            QueueFault::HeadOutOfRange { head, size }
        }
    }

    /// Stops at a broken chain, which is not taken.
    #[cold]
    fn leave(&mut self, head: u16, fault: QueueFault) -> &QueueFault {
        if let Some(in_flight) = self.in_flight.get_mut(usize::from(head)) {
            *in_flight = false;
        }
        self.stop(fault)
    }

    /// For good. What was seen and not taken is forgotten, so that nothing is left to take.
    #[cold]
    #[inline(never)]
    fn stop(&mut self, fault: QueueFault) -> &QueueFault {
        self.seen_avail = self.next_avail;
        self.fault.insert(fault)
    }

    /// Step 3: looks at the driver's index. Out of line: once for a batch.
    #[inline(never)]
    fn look(&mut self) -> Result<(), QueueFault> {
        if self.fault.is_some() {
            return Ok(());
        }
        let (idx, next, size) = (self.rings.avail_idx(), self.next_avail, self.size);
        let new = idx.wrapping_sub(next);
        if new > size {
            return Err(QueueFault::AvailJump { idx, next, size });
        }
        // Every chain takes a descriptor of the ring until its return is published.
        let outstanding = next.wrapping_sub(self.published);
        if u32::from(outstanding) + u32::from(new) > u32::from(size) {
            return Err(QueueFault::TooManyOutstanding {
                outstanding,
                new,
                size,
            });
        }
        self.seen_avail = idx;
        Ok(())
    }
}
