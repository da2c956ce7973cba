//! Indirect descriptor tables on the device side (VIRTIO 1.4, 2.7.5.3).
//!
//! A table is copied whole into private memory, then only the copy is followed. WRITE on the
//! descriptor that names the table means nothing (2.7.5.3.2), and neither does its alignment.

use guest_memory::AddressSpace;

use crate::descriptor::{DESCRIPTOR_BYTES, Descriptor};
use crate::walk::{Indirect, follow};
use crate::{Chain, DescriptorAt, QueueFault};

/// Most descriptors of an indirect table. Linux sends tables of up to seg_max + 2 whatever the
/// queue size, so the bound cannot be the queue size; QEMU has the same one.
pub const MAX_INDIRECT_ENTRIES: u16 = 1024;

/// Private room for the copy of one table.
#[derive(Debug)]
pub(crate) struct IndirectTable {
    room: Option<Box<[[[u8; 8]; 2]; MAX_INDIRECT_ENTRIES as usize]>>,
}

impl IndirectTable {
    /// Without room if indirect tables were not negotiated: then each is a fault.
    pub(crate) fn new(negotiated: bool) -> Self {
        Self {
            room: negotiated.then(|| Box::new([[[0; 8]; 2]; MAX_INDIRECT_ENTRIES as usize])),
        }
    }

    /// Collects the chain in the table that a ring descriptor names. Out of line, so that chains
    /// without a table keep their registers.
    #[inline(never)]
    pub(crate) fn walk<S: AddressSpace + ?Sized>(
        &mut self,
        space: &S,
        chain: &mut Chain,
        indirect: &Indirect,
    ) -> Result<(), QueueFault> {
        let Indirect {
            index: referrer,
            descriptor,
            part,
        } = *indirect;
        let at = DescriptorAt::Ring(referrer);
        let Descriptor { addr, len, .. } = descriptor;
        let Some(room) = &mut self.room else {
            return Err(QueueFault::IndirectNotNegotiated { at });
        };
        if descriptor.has(Descriptor::NEXT) {
            return Err(QueueFault::IndirectWithNext { at });
        }
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(QueueFault::IndirectLength { at, len });
        }
        let entries = match u16::try_from(len / DESCRIPTOR_BYTES) {
            Ok(entries) if entries <= MAX_INDIRECT_ENTRIES => entries,
            _ => {
                chain.oversize(len / DESCRIPTOR_BYTES);
                return Ok(());
            }
        };
        let (table, _) = room.split_at_mut(entries.into());
        space
            .fetch(addr, table.as_flattened_mut().as_flattened_mut())
            .map_err(|source| QueueFault::IndirectTable { at, source })?;
        let place = |entry| DescriptorAt::Table { referrer, entry };
        // `follow` asks for entries below `entries` only, so none is missing.
        let fetch = |entry: u16| {
            let words = table.get(usize::from(entry)).copied().unwrap_or_default();
            Descriptor::from_words(words.map(u64::from_le_bytes))
        };
        match follow(chain, part, 0, entries, place, fetch)? {
            None => Ok(()),
            Some(nested) => Err(QueueFault::IndirectNested {
                at: place(nested.index),
            }),
        }
    }
}
