//! The driver side of a split ring: offers chains, takes heads back (VIRTIO 1.4, 2.7.5 to 2.7.14).
//!
//! The device is hostile. Free descriptors, links and lengths are kept in private memory; of what
//! the device may write only used index and used elements are read, once, and checked. The numbered
//! steps are those of the barrier table in 2.7.13 and 2.7.14: 1 publish, 2 kick, 7 reap, 8 re-arm.

use std::sync::atomic::Ordering::Relaxed;

use guest_memory::{Access, AddressSpace, ReadWrite, TranslateError};

use crate::chain::MAX_CHAIN_BYTES;
use crate::descriptor::{DESCRIPTOR_BYTES, Descriptor};
use crate::memory::{LeasedArray, Step, fence};
use crate::notify::Notifier;
use crate::ring::{DriverRings, NO_INTERRUPT, NO_NOTIFY};
use crate::{MAX_INDIRECT_ENTRIES, QueueLayout, RingFeatures, RingPart, Segment, SetupError};

/// The driver's end of one queue. Holds leases of the ring's memory until it is dropped.
#[derive(Debug)]
pub struct DriverQueue {
    rings: DriverRings,
    size: u16,
    features: RingFeatures,
    tables: Option<Tables>,
    /// By descriptor: the next one of its chain, or of the free list.
    links: Box<[u16]>,
    /// By head: what is offered there.
    offers: Box<[Offer]>,
    first_free: u16,
    free: u16,
    /// Position to offer at next.
    next_avail: u16,
    /// Index that the device was last told.
    published: u16,
    /// Position to take back next.
    next_used: u16,
    /// The device's index when last looked at.
    seen_used: u16,
    kick: Notifier,
    fault: Option<DriverFault>,
}

/// A chain that the device has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head, as [`DriverQueue::add`] gave it.
    pub head: u16,
    /// Bytes from the first writable byte on that the device says it wrote; never more than the
    /// chain has.
    pub len: u32,
}

/// Why a chain was not added. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// No room now; there is when the device returns chains.
    #[error("{needed} descriptors are needed, {free} are free")]
    Full {
        /// Descriptors of the chain.
        needed: usize,
        /// Descriptors free now.
        free: u16,
    },
    /// No room ever.
    #[error("{needed} descriptors are more than the queue has")]
    TooLong {
        /// Descriptors of the chain.
        needed: usize,
    },
    /// No segment at all.
    #[error("a chain has at least one segment")]
    Empty,
    /// A segment without bytes, which devices are known to stumble over.
    #[error("a segment at address {addr:#x} has no bytes")]
    EmptySegment {
        /// Its address.
        addr: u64,
    },
    /// More than 2^32 bytes.
    #[error("a chain of {bytes} bytes is longer than {MAX_CHAIN_BYTES}")]
    TooManyBytes {
        /// Sum of all lengths.
        bytes: u64,
    },
    /// The queue has stopped.
    #[error("the queue has stopped")]
    Stopped(#[from] DriverFault),
}

/// What a device did wrong so that its ring cannot be trusted any more. Latches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverFault {
    /// More chains returned than offered, or an index that stepped back.
    #[error("used index {idx} is more than {offered} ahead of {next}, the next to take back")]
    UsedJump {
        /// The index in shared memory.
        idx: u16,
        /// The index that the driver takes back next.
        next: u16,
        /// Chains offered and not yet taken back.
        offered: u16,
    },
    /// A head that is not offered.
    #[error("used element names head {id}, which is not offered")]
    NotOffered {
        /// The head.
        id: u32,
    },
}

impl DriverQueue {
    /// Clears the ring and takes it into service. SET_VQUEUE comes after.
    ///
    /// # Errors
    /// A size that is no power of two; parts that are misaligned or not writable.
    pub fn new<S: AddressSpace + ?Sized>(
        space: &S,
        layout: QueueLayout,
        features: RingFeatures,
    ) -> Result<Self, SetupError> {
        let rings = DriverRings::open(space, &layout)?;
        rings.clear(layout.size);
        Ok(Self::over(rings, layout.size, features))
    }

    /// Begins with rings that are cleared.
    pub(crate) fn over(rings: DriverRings, size: u16, features: RingFeatures) -> Self {
        Self {
            rings,
            size,
            features,
            tables: None,
            links: (1..=size).collect(),
            offers: vec![Offer::default(); size.into()].into_boxed_slice(),
            first_free: 0,
            free: size,
            next_avail: 0,
            published: 0,
            next_used: 0,
            seen_used: 0,
            kick: Notifier::default(),
            fault: None,
        }
    }

    /// Gives the queue memory for an indirect table per head, each of `entries` descriptors (rounded
    /// up to a power of two, at most [`MAX_INDIRECT_ENTRIES`]): from `addr` on, a multiple of 16, as
    /// many bytes as [`DriverQueue::indirect_table_bytes`] says. Chains of more than one segment
    /// that fit go there, if INDIRECT_DESC was negotiated.
    ///
    /// # Errors
    /// The memory is misaligned, not writable, or not all there.
    pub fn with_indirect_tables<S: AddressSpace + ?Sized>(
        mut self,
        space: &S,
        addr: u64,
        entries: u16,
    ) -> Result<Self, SetupError> {
        if !addr.is_multiple_of(RingPart::Desc.align()) {
            return Err(SetupError::MisalignedTables { addr });
        }
        let entries = table_entries(entries);
        let len = Self::indirect_table_bytes(self.size, entries);
        let order = self.size.trailing_zeros() + entries.trailing_zeros();
        let descriptors = space
            .translate_leased(addr, len, Access::Write)
            .and_then(|memory| {
                LeasedArray::new(&memory, 0, order)
                    .map_err(|error| TranslateError::from_range(error, addr, len))
            })
            .map_err(|source| SetupError::Tables { addr, source })?;
        if self.features.indirect {
            self.tables = Some(Tables {
                descriptors,
                addr,
                entries,
            });
        }
        Ok(self)
    }

    /// Bytes that [`DriverQueue::with_indirect_tables`] takes.
    #[must_use]
    pub const fn indirect_table_bytes(size: u16, entries: u16) -> u32 {
        RingPart::Desc.bytes(size) * table_entries(entries) as u32
    }

    /// Adds a chain; the device sees it after [`DriverQueue::publish`].
    ///
    /// # Errors
    /// No room, or not a chain that a device must accept.
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment]) -> Result<u16, AddError> {
        if let Some(fault) = self.fault {
            return Err(fault.into());
        }
        let needed = readable.len() + writable.len();
        let writable_len = check_segments(readable, writable)?;
        let indirect = needed > 1 && self.tables.as_ref().is_some_and(|t| t.holds(needed));
        let in_ring = if indirect { 1 } else { needed };
        let count = match u16::try_from(in_ring) {
            Ok(count) if count <= self.size => count,
            _ => return Err(AddError::TooLong { needed }),
        };
        if count > self.free {
            return Err(AddError::Full {
                needed: in_ring,
                free: self.free,
            });
        }
        let head = self.first_free;
        let last = match &self.tables {
            Some(tables) if indirect => {
                let table = tables.fill(head, readable, writable);
                self.rings.set_descriptor(head, table);
                head
            }
            _ => self.fill_ring(head, readable, writable),
        };
        self.rings.set_avail_slot(self.next_avail, head);
        self.first_free = link(&self.links, last);
        self.free -= count;
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(offer) = self.offers.get_mut(usize::from(head)) {
            *offer = Offer {
                descriptors: count,
                last,
                writable_len,
            };
        }
        Ok(head)
    }

    /// Shows the device everything added so far, by one store. True: notify the device.
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_avail || self.fault.is_some() {
            return false;
        }
        self.rings.set_avail_idx(self.next_avail);
        self.published = self.next_avail;
        fence(Step::Kick);
        if self.features.event_idx {
            self.kick.check(self.rings.avail_event(), self.published)
        } else {
            self.rings.used_flags() & NO_NOTIFY == 0
        }
    }

    /// Takes back one chain that the device has returned.
    ///
    /// # Errors
    /// The device broke the rules of the ring. From then on every call says so.
    pub fn pop_used(&mut self) -> Result<Option<Used>, DriverFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.take_back()
            .inspect_err(|&fault| self.fault = Some(fault))
    }

    /// Asks the device for a notification of the next return. True: one is there already; take it
    /// back first, nobody will notify of it.
    pub fn rearm(&mut self) -> bool {
        if self.fault.is_some() {
            return false;
        }
        if self.features.event_idx {
            self.rings.set_used_event(self.next_used);
        } else {
            self.rings.set_avail_flags(0);
        }
        fence(Step::DriverRearm);
        self.rings.used_idx() != self.next_used
    }

    /// Tells the device that no notification is needed until [`DriverQueue::rearm`]. A hint: some
    /// may come all the same, and with EVENT_IDX nothing needs to be said.
    pub fn disarm(&mut self) {
        if !self.features.event_idx && self.fault.is_none() {
            self.rings.set_avail_flags(NO_INTERRUPT);
        }
    }

    /// Why the queue stopped, if it did.
    #[must_use]
    pub fn faulted(&self) -> Option<&DriverFault> {
        self.fault.as_ref()
    }

    /// Queue size.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that are free now.
    #[must_use]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// Chains added and not yet taken back.
    #[must_use]
    pub fn offered(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Writes a chain into the free descriptors from `head` on; returns the last one.
    fn fill_ring(&self, head: u16, readable: &[Segment], writable: &[Segment]) -> u16 {
        let (mut index, mut last) = (head, head);
        for (segment, flags) in flagged(readable, writable) {
            last = index;
            index = link(&self.links, index);
            let next = if flags & Descriptor::NEXT != 0 {
                index
            } else {
                0
            };
            let descriptor = Descriptor::new(segment.addr, segment.len, flags, next);
            self.rings.set_descriptor(last, descriptor);
        }
        last
    }

    /// Step 7.
    fn take_back(&mut self) -> Result<Option<Used>, DriverFault> {
        if self.seen_used == self.next_used {
            let (idx, next) = (self.rings.used_idx(), self.next_used);
            let offered = self.published.wrapping_sub(next);
            if idx.wrapping_sub(next) > offered {
                return Err(DriverFault::UsedJump { idx, next, offered });
            }
            self.seen_used = idx;
            if idx == next {
                return Ok(None);
            }
        }
        let [id, len] = self.rings.used_slot(self.next_used);
        let not_offered = DriverFault::NotOffered { id };
        let head = u16::try_from(id).map_err(|_| not_offered)?;
        let offer = match self.offers.get_mut(usize::from(head)) {
            Some(offer) if offer.descriptors > 0 => std::mem::take(offer),
            _ => return Err(not_offered),
        };
        if let Some(link) = self.links.get_mut(usize::from(offer.last)) {
            *link = self.first_free;
        }
        self.first_free = head;
        self.free += offer.descriptors;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used {
            head,
            len: u32::try_from(offer.writable_len).map_or(len, |most| len.min(most)),
        }))
    }
}

/// What is offered under a head; no descriptors: nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Offer {
    descriptors: u16,
    last: u16,
    writable_len: u64,
}

/// Shared memory for indirect tables, one per head, so that none is reused while in flight.
#[derive(Debug)]
struct Tables {
    descriptors: LeasedArray<u64, 2, ReadWrite>,
    addr: u64,
    entries: u16,
}

impl Tables {
    fn holds(&self, segments: usize) -> bool {
        segments <= usize::from(self.entries)
    }

    /// Writes the table of `head`; returns the descriptor that names it.
    fn fill(&self, head: u16, readable: &[Segment], writable: &[Segment]) -> Descriptor {
        let first = usize::from(head) * usize::from(self.entries);
        let mut len = 0;
        for (entry, (segment, flags)) in (0..).zip(flagged(readable, writable)) {
            let next = if flags & Descriptor::NEXT != 0 {
                entry + 1
            } else {
                0
            };
            let descriptor = Descriptor::new(segment.addr, segment.len, flags, next);
            let index = first + usize::from(entry);
            self.descriptors
                .store(index, descriptor.to_words(), Relaxed);
            len += DESCRIPTOR_BYTES;
        }
        let addr = self.addr + u64::from(DESCRIPTOR_BYTES) * first as u64;
        Descriptor::new(addr, len, Descriptor::INDIRECT, 0)
    }
}

/// Descriptors of a table for at least `entries`, as far as a device must accept so many.
const fn table_entries(entries: u16) -> u16 {
    if entries < MAX_INDIRECT_ENTRIES {
        entries.next_power_of_two()
    } else {
        MAX_INDIRECT_ENTRIES
    }
}

/// Checks what a chain is to be made of; returns the bytes of its writable part.
fn check_segments(readable: &[Segment], writable: &[Segment]) -> Result<u64, AddError> {
    if readable.is_empty() && writable.is_empty() {
        return Err(AddError::Empty);
    }
    if let Some(empty) = readable.iter().chain(writable).find(|s| s.len == 0) {
        return Err(AddError::EmptySegment { addr: empty.addr });
    }
    let sum = |segments: &[Segment]| segments.iter().map(|s| u64::from(s.len)).sum::<u64>();
    let writable_len = sum(writable);
    let bytes = sum(readable) + writable_len;
    if bytes > MAX_CHAIN_BYTES {
        return Err(AddError::TooManyBytes { bytes });
    }
    Ok(writable_len)
}

/// The segments of a chain with their flags: NEXT on all but the last.
fn flagged<'a>(
    readable: &'a [Segment],
    writable: &'a [Segment],
) -> impl Iterator<Item = (&'a Segment, u16)> {
    let last = readable.len() + writable.len() - 1;
    let readable = readable.iter().map(|segment| (segment, 0));
    let writable = writable.iter().map(|segment| (segment, Descriptor::WRITE));
    readable
        .chain(writable)
        .enumerate()
        .map(move |(at, (segment, write))| {
            let next = if at == last { 0 } else { Descriptor::NEXT };
            (segment, write | next)
        })
}

#[inline]
fn link(links: &[u16], index: u16) -> u16 {
    links.get(usize::from(index)).copied().unwrap_or_default()
}
