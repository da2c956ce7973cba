//! Indirect descriptor tables on the device side (VIRTIO 1.4, 2.7.5.3).
//!
//! A table is copied whole into private memory, then only the copy is followed. WRITE on the
//! descriptor that names the table means nothing (2.7.5.3.2), and neither does its alignment.

use std::mem;

use guest_memory::{AddressSpace, TranslateError};

use crate::descriptor::{DESCRIPTOR_BYTES, Descriptor};
use crate::walk::{Indirect, Part, follow};
use crate::{Chain, DescriptorAt, QueueFault};

/// Most descriptors of an indirect table. Linux sends tables of up to seg_max + 2 whatever the
/// queue size, so the bound cannot be the queue size; QEMU has the same one.
pub const MAX_INDIRECT_ENTRIES: u16 = 1024;

/// One descriptor as it stands in memory: two halves, little-endian.
pub(crate) type RawDescriptor = [[u8; 8]; 2];

/// Collects the chain in the table that a ring descriptor names. Out of line, so that chains
/// without a table keep their registers.
#[inline(never)]
pub(crate) fn walk<S: AddressSpace + ?Sized>(
    space: &S,
    negotiated: bool,
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
    if !negotiated {
        return Err(QueueFault::IndirectNotNegotiated { at });
    }
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
    let mut room = mem::take(&mut chain.table);
    let result = copy(space, &mut room, addr, len)
        .map_err(|source| QueueFault::IndirectTable { at, source })
        .and_then(|table| follow_copy(chain, part, table, referrer, entries));
    chain.table = room;
    result
}

/// Copies the `len` bytes at `addr`, a multiple of 16, into room that grows with the longest table.
fn copy<'r, S: AddressSpace + ?Sized>(
    space: &S,
    room: &'r mut Vec<RawDescriptor>,
    addr: u64,
    len: u32,
) -> Result<&'r [RawDescriptor], TranslateError> {
    let entries = (len / DESCRIPTOR_BYTES) as usize;
    if room.len() < entries {
        room.resize(entries, RawDescriptor::default());
    }
    let (table, _) = room.split_at_mut(entries);
    space.fetch(addr, table.as_flattened_mut().as_flattened_mut())?;
    Ok(table)
}

fn follow_copy(
    chain: &mut Chain,
    part: Part,
    table: &[RawDescriptor],
    referrer: u16,
    entries: u16,
) -> Result<(), QueueFault> {
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
