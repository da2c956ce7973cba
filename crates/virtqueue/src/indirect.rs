//! Indirect descriptor tables on the device side (VIRTIO 1.4, 2.7.5.3).
//!
//! A table is copied whole into private memory, then only the copy is followed. WRITE on the
//! descriptor that names the table means nothing (2.7.5.3.2), and neither does its alignment.

use guest_memory::{Access, AddressSpace, TranslateError};

use crate::descriptor::{DESCRIPTOR_BYTES, Descriptor};
use crate::walk::{Indirect, Table, follow};
use crate::{DescriptorAt, QueueFault, Segment, Taken};

/// Most descriptors of an indirect table. Linux sends tables of up to seg_max + 2 whatever the
/// queue size, so the bound cannot be the queue size; QEMU has the same one.
pub const MAX_INDIRECT_ENTRIES: u16 = 1024;

/// One descriptor as it stands in memory: two halves, little-endian.
pub(crate) type RawDescriptor = [[u8; 8]; 2];

/// Goes on in the table that a ring descriptor names, unless that has too many entries to be read.
pub(crate) fn follow_table<S: AddressSpace + ?Sized>(
    space: &S,
    room: &mut Vec<RawDescriptor>,
    mut taken: Taken,
    indirect: Indirect,
    mut each: impl FnMut(Access, Segment),
) -> Result<Taken, QueueFault> {
    let referrer = indirect.index;
    let at = DescriptorAt::Ring(referrer);
    let (addr, len) = (indirect.descriptor.addr(), indirect.descriptor.len());
    if indirect.descriptor.has(Descriptor::NEXT) {
        return Err(QueueFault::IndirectWithNext { at });
    }
    if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) {
        return Err(QueueFault::IndirectLength { at, len });
    }
    let entries = len / DESCRIPTOR_BYTES;
    if entries > MAX_INDIRECT_ENTRIES.into() {
        taken.oversize(entries);
        return Ok(taken);
    }
    let copy = copy(space, room, addr, entries as usize)
        .map_err(|source| QueueFault::IndirectTable { at, source })?;
    let Some(first) = copy.first() else {
        return Err(QueueFault::IndirectLength { at, len });
    };
    let place = |entry| DescriptorAt::Table { referrer, entry };
    let table = Table {
        last: copy.len() - 1,
        place,
        fetch: |entry| copy.get(usize::from(entry)).map(descriptor),
    };
    match follow(
        &mut taken,
        indirect.part,
        table,
        0,
        descriptor(first),
        &mut each,
    )? {
        None => Ok(taken),
        Some(nested) => Err(QueueFault::IndirectNested {
            at: place(nested.index),
        }),
    }
}

fn descriptor(words: &RawDescriptor) -> Descriptor {
    Descriptor::from_words(words.map(u64::from_le_bytes))
}

/// Copies the descriptors at `addr` into room that grows with the longest table.
fn copy<'r, S: AddressSpace + ?Sized>(
    space: &S,
    room: &'r mut Vec<RawDescriptor>,
    addr: u64,
    entries: usize,
) -> Result<&'r [RawDescriptor], TranslateError> {
    if room.len() < entries {
        room.resize(entries, RawDescriptor::default());
    }
    let (table, _) = room.split_at_mut(entries);
    space.fetch(addr, table.as_flattened_mut().as_flattened_mut())?;
    Ok(table)
}
