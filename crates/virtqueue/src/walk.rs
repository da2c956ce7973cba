//! Following a chain through a table of descriptors, in the ring or copied from an indirect table
//! (VIRTIO 1.4, 2.7.5).

use guest_memory::Access;

use crate::descriptor::Descriptor;
use crate::{DescriptorAt, QueueFault, Segment, Taken};

/// The walk has come to an indirect descriptor.
#[derive(Debug)]
pub(crate) struct Indirect {
    /// Its place in the table.
    pub(crate) index: u16,
    pub(crate) descriptor: Descriptor,
    /// The part of the chain that its table goes on with.
    pub(crate) part: Access,
}

/// A table of descriptors, in the ring or copied.
pub(crate) struct Table<P, F> {
    /// The index of the last one.
    pub(crate) last: usize,
    /// Where one stands, for an error.
    pub(crate) place: P,
    /// A copy of one; nothing outside of the table.
    pub(crate) fetch: F,
}

/// Goes through a chain from its descriptor `index` in a table on, beginning in the part that is
/// for `part`, and tells `each` of its segments. Bytes for the device to read come first, then
/// those for it to write. Fetches each descriptor once, and no more of them than there are. Ends
/// at the end of the chain, or at an indirect descriptor.
///
/// One loop for each part: most of what a chain costs is here, and so no descriptor is asked
/// which part the ones before it were in. Faults are made out of line, of plain numbers, so that
/// the loops keep their registers.
#[inline]
pub(crate) fn follow<P, F>(
    taken: &mut Taken,
    part: Access,
    table: Table<P, F>,
    mut index: u16,
    mut descriptor: Descriptor,
    each: &mut impl FnMut(Access, Segment),
) -> Result<Option<Indirect>, QueueFault>
where
    P: Fn(u16) -> DescriptorAt,
    F: Fn(u16) -> Option<Descriptor>,
{
    let Table { last, place, fetch } = table;
    let mut left = last;
    let mut go_on = |taken: &Taken, index: &mut u16, descriptor: Descriptor| {
        let next = descriptor.next();
        left = left
            .checked_sub(1)
            .ok_or_else(|| one_too_many(taken.head(), place(*index), next, last))?;
        let descriptor = fetch(next).ok_or_else(|| no_such(place(*index), next, last))?;
        *index = next;
        Ok(descriptor)
    };
    let indirect = |index, descriptor, part| {
        Ok(Some(Indirect {
            index,
            descriptor,
            part,
        }))
    };
    if part == Access::Read && !descriptor.has(Descriptor::INDIRECT | Descriptor::NEXT) {
        // A chain of one needs none of what the loops carry along.
        if descriptor.has(Descriptor::WRITE) {
            taken.tell(Access::Write, descriptor, each);
        } else {
            taken.tell(Access::Read, descriptor, each);
        }
        return Ok(None);
    }
    if part == Access::Read {
        while !descriptor.has(Descriptor::INDIRECT | Descriptor::WRITE) {
            taken.tell(Access::Read, descriptor, each);
            if !descriptor.has(Descriptor::NEXT) {
                return Ok(None);
            }
            descriptor = go_on(taken, &mut index, descriptor)?;
        }
    } else if !descriptor.has(Descriptor::INDIRECT | Descriptor::WRITE) {
        return Err(readable_last(place(index)));
    }
    if descriptor.has(Descriptor::INDIRECT) {
        return indirect(index, descriptor, part);
    }
    loop {
        taken.tell(Access::Write, descriptor, each);
        if !descriptor.has(Descriptor::NEXT) {
            return Ok(None);
        }
        descriptor = go_on(taken, &mut index, descriptor)?;
        if descriptor.has(Descriptor::INDIRECT) {
            return indirect(index, descriptor, Access::Write);
        }
        if !descriptor.has(Descriptor::WRITE) {
            return Err(readable_last(place(index)));
        }
    }
}

impl Taken {
    /// Counts the segment of a descriptor, and tells `each` of it. Empty ones are skipped: VIRTIO
    /// does not forbid them.
    #[inline]
    fn tell(
        &mut self,
        access: Access,
        descriptor: Descriptor,
        each: &mut impl FnMut(Access, Segment),
    ) {
        let (addr, len) = (descriptor.addr(), descriptor.len());
        if len != 0 {
            self.count(len);
            each(access, Segment { addr, len });
        }
    }
}

#[cold]
#[inline(never)]
fn readable_last(at: DescriptorAt) -> QueueFault {
    QueueFault::ReadableAfterWritable { at }
}

/// A link out of a table with this `last` index.
#[cold]
#[inline(never)]
fn no_such(at: DescriptorAt, next: u16, last: usize) -> QueueFault {
    let entries = u16::try_from(last + 1).unwrap_or(u16::MAX);
    QueueFault::NextOutOfRange { at, next, entries }
}

/// As many links as the table has descriptors: this one leads out of it, or back.
#[cold]
#[inline(never)]
fn one_too_many(head: u16, at: DescriptorAt, next: u16, last: usize) -> QueueFault {
    let entries = u16::try_from(last + 1).unwrap_or(u16::MAX);
    if next < entries {
        QueueFault::Loop { head, entries }
    } else {
        no_such(at, next, last)
    }
}
