//! The fields of the three parts in shared memory, each at its offset (VIRTIO 1.4, 2.7.5 to 2.7.8).
//!
//! Knows places and widths, no rules. Positions run freely modulo 65,536; the slot is the position
//! modulo the queue size. `D` is this side's right to what the driver writes: a device cannot even
//! be compiled to write there.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use guest_memory::{
    AddressSpace, LeasedRange, RangeError, ReadOnly, ReadWrite, Right, TranslateError,
};

use crate::descriptor::Descriptor;
use crate::memory::LeasedArray;
use crate::{QueueLayout, RingPart, SetupError};

/// Available ring flag: the driver wants no interrupts. Means nothing with EVENT_IDX.
pub(crate) const NO_INTERRUPT: u16 = 1;
/// Used ring flag: the device wants no notifications. Means nothing with EVENT_IDX.
pub(crate) const NO_NOTIFY: u16 = 1;

const FLAGS: usize = 0;
const IDX: usize = 1;
/// Offset of the first slot of both rings, behind flags and index.
const SLOTS: u64 = 4;

/// The ring of a device.
pub(crate) type DeviceRings = Rings<ReadOnly>;
/// The ring of a driver, which owns all of it and clears it first.
pub(crate) type DriverRings = Rings<ReadWrite>;

/// Leases of the three parts of a ring.
#[derive(Debug)]
pub(crate) struct Rings<D> {
    pub(crate) desc: LeasedArray<u64, 2, D>,
    pub(crate) avail_head: LeasedArray<u16, 1, D>,
    pub(crate) avail_slots: LeasedArray<u16, 1, D>,
    pub(crate) used_event: LeasedArray<u16, 1, D>,
    pub(crate) used_head: LeasedArray<u16, 1, ReadWrite>,
    pub(crate) used_slots: LeasedArray<u32, 2, ReadWrite>,
    pub(crate) avail_event: LeasedArray<u16, 1, ReadWrite>,
}

impl<D: Right> Rings<D> {
    pub(crate) fn open<S: AddressSpace + ?Sized>(
        space: &S,
        layout: &QueueLayout,
    ) -> Result<Self, SetupError> {
        let [desc, avail, used] = layout.locate(D::ACCESS, |addr, len, access| {
            space.translate_leased(addr, len, access)
        })?;
        let order = layout.size.trailing_zeros();
        let arrays = |part, addr| {
            move |error: RangeError| SetupError::Unreachable {
                part,
                addr,
                source: TranslateError::from_range(error, addr, part.bytes(layout.size)),
            }
        };
        let desc_error = arrays(RingPart::Desc, layout.desc);
        let avail_error = arrays(RingPart::Avail, layout.avail);
        let used_error = arrays(RingPart::Used, layout.used);
        Ok(Self {
            desc: LeasedArray::new(&desc, 0, order).map_err(desc_error)?,
            avail_head: LeasedArray::new(&avail, 0, 1).map_err(avail_error)?,
            avail_slots: LeasedArray::new(&avail, SLOTS, order).map_err(avail_error)?,
            used_event: last_u16(&avail).map_err(avail_error)?,
            used_head: LeasedArray::new(&used, 0, 1).map_err(used_error)?,
            used_slots: LeasedArray::new(&used, SLOTS, order).map_err(used_error)?,
            avail_event: last_u16(&used).map_err(used_error)?,
        })
    }

    /// Copies one descriptor, in one look; `None`: the table does not have it.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Option<Descriptor> {
        let words = self.desc.get(index.into(), Relaxed)?;
        Some(Descriptor::from_words(words))
    }

    /// As [`Rings::descriptor`], of a head that is known to be in the table.
    #[inline]
    pub(crate) fn descriptor_of_head(&self, head: u16) -> Descriptor {
        Descriptor::from_words(self.desc.load(head.into(), Relaxed))
    }

    /// The index of the last descriptor.
    #[inline]
    pub(crate) fn last_descriptor(&self) -> usize {
        self.desc.last()
    }

    #[inline]
    pub(crate) fn avail_flags(&self) -> u16 {
        let [flags] = self.avail_head.load(FLAGS, Relaxed);
        flags
    }

    /// What the driver wrote before it published this index is visible afterwards.
    #[inline]
    pub(crate) fn avail_idx(&self) -> u16 {
        let [idx] = self.avail_head.load(IDX, Acquire);
        idx
    }

    #[inline]
    pub(crate) fn avail_slot(&self, position: u16) -> u16 {
        let [head] = self.avail_slots.load(position.into(), Relaxed);
        head
    }

    #[inline]
    pub(crate) fn used_event(&self) -> u16 {
        let [event] = self.used_event.load(0, Relaxed);
        event
    }

    #[inline]
    pub(crate) fn used_flags(&self) -> u16 {
        let [flags] = self.used_head.load(FLAGS, Relaxed);
        flags
    }

    pub(crate) fn set_used_flags(&self, flags: u16) {
        self.used_head.store(FLAGS, [flags], Relaxed);
    }

    /// What the device wrote before it published this index is visible afterwards.
    #[inline]
    pub(crate) fn used_idx(&self) -> u16 {
        let [idx] = self.used_head.load(IDX, Acquire);
        idx
    }

    /// Publishes everything that was written before.
    #[inline]
    pub(crate) fn set_used_idx(&self, idx: u16) {
        self.used_head.store(IDX, [idx], Release);
    }

    /// Id and length of a used element.
    #[inline]
    pub(crate) fn used_slot(&self, position: u16) -> [u32; 2] {
        self.used_slots.load(position.into(), Relaxed)
    }

    #[inline]
    pub(crate) fn set_used_slot(&self, position: u16, head: u16, len: u32) {
        self.used_slots
            .store(position.into(), [head.into(), len], Relaxed);
    }

    #[inline]
    pub(crate) fn avail_event(&self) -> u16 {
        let [event] = self.avail_event.load(0, Relaxed);
        event
    }

    pub(crate) fn set_avail_event(&self, event: u16) {
        self.avail_event.store(0, [event], Relaxed);
    }
}

impl DriverRings {
    /// Clears all parts of a ring of `size`.
    pub(crate) fn clear(&self, size: u16) {
        for index in 0..size {
            self.set_descriptor(index, Descriptor::default());
            self.set_avail_slot(index, 0);
            self.set_used_slot(index, 0, 0);
        }
        self.set_avail_flags(0);
        self.set_avail_idx(0);
        self.set_used_event(0);
        self.set_used_flags(0);
        self.set_used_idx(0);
        self.set_avail_event(0);
    }

    #[inline]
    pub(crate) fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.desc
            .store(index.into(), descriptor.to_words(), Relaxed);
    }

    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.avail_head.store(FLAGS, [flags], Relaxed);
    }

    /// Publishes everything that was written before.
    #[inline]
    pub(crate) fn set_avail_idx(&self, idx: u16) {
        self.avail_head.store(IDX, [idx], Release);
    }

    #[inline]
    pub(crate) fn set_avail_slot(&self, position: u16, head: u16) {
        self.avail_slots.store(position.into(), [head], Relaxed);
    }

    pub(crate) fn set_used_event(&self, event: u16) {
        self.used_event.store(0, [event], Relaxed);
    }
}

/// The event field, which ends each ring.
fn last_u16<R: Right>(ring: &LeasedRange) -> Result<LeasedArray<u16, 1, R>, RangeError> {
    LeasedArray::new(ring, (ring.len() as u64).saturating_sub(2), 0)
}
