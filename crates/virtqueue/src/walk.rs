//! Following a chain through a table of descriptors, in the ring or copied from an indirect table
//! (VIRTIO 1.4, 2.7.5).

use crate::descriptor::Descriptor;
use crate::{Chain, DescriptorAt, QueueFault};

/// Which part of a chain a walk is in. Bytes for the device to read come first, then those for it
/// to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Readable,
    Writable,
}

/// The walk has come to an indirect descriptor.
#[derive(Debug)]
pub(crate) struct Indirect {
    /// Its place in the table.
    pub(crate) index: u16,
    pub(crate) descriptor: Descriptor,
    /// Where its table goes on.
    pub(crate) part: Part,
}

/// Collects a chain from descriptor `first` of a table of `entries` on, beginning in `part`.
/// Fetches each descriptor once and at most `entries` of them. Ends at the end of the chain, or at
/// an indirect descriptor.
///
/// One loop for each part: most of what a chain costs is here, and so no descriptor is asked
/// which part the ones before it were in.
#[inline]
pub(crate) fn follow(
    chain: &mut Chain,
    part: Part,
    first: u16,
    entries: u16,
    place: impl Fn(u16) -> DescriptorAt,
    fetch: impl Fn(u16) -> Descriptor,
) -> Result<Option<Indirect>, QueueFault> {
    const UNUSUAL: u16 = Descriptor::INDIRECT | Descriptor::WRITE;
    let head = chain.head();
    let mut left = entries;
    let mut link = |index, descriptor: &Descriptor| {
        let next = descriptor.next;
        if next >= entries {
            return Err(QueueFault::NextOutOfRange {
                at: place(index),
                next,
                entries,
            });
        }
        left -= 1;
        if left == 0 {
            return Err(QueueFault::Loop { head, entries });
        }
        Ok(next)
    };
    let mut index = first;
    let mut descriptor = fetch(index);
    if part == Part::Readable {
        while descriptor.flags & UNUSUAL == 0 {
            chain.push_readable(descriptor.addr, descriptor.len);
            if !descriptor.has(Descriptor::NEXT) {
                return Ok(None);
            }
            index = link(index, &descriptor)?;
            descriptor = fetch(index);
        }
        if descriptor.has(Descriptor::INDIRECT) {
            return Ok(Some(Indirect {
                index,
                descriptor,
                part,
            }));
        }
    }
    while descriptor.flags & UNUSUAL == Descriptor::WRITE {
        chain.push_writable(descriptor.addr, descriptor.len);
        if !descriptor.has(Descriptor::NEXT) {
            return Ok(None);
        }
        index = link(index, &descriptor)?;
        descriptor = fetch(index);
    }
    if descriptor.has(Descriptor::INDIRECT) {
        return Ok(Some(Indirect {
            index,
            descriptor,
            part: Part::Writable,
        }));
    }
    Err(QueueFault::ReadableAfterWritable { at: place(index) })
}
