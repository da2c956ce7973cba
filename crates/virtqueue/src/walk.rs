//! Following a chain through a table of descriptors, in the ring or copied from an indirect table
//! (VIRTIO 1.4, 2.7.5).

use crate::descriptor::Descriptor;
use crate::{Chain, DescriptorAt, QueueFault};

/// Collects a chain from descriptor `first` of a table of `entries` on. Fetches each descriptor
/// once and at most `entries` of them. Ends at the end of the chain, or at an indirect descriptor,
/// which it returns with its index.
#[inline]
pub(crate) fn follow(
    chain: &mut Chain,
    first: u16,
    entries: u16,
    place: impl Fn(u16) -> DescriptorAt,
    fetch: impl Fn(u16) -> Descriptor,
) -> Result<Option<(u16, Descriptor)>, QueueFault> {
    let mut index = first;
    for _ in 0..entries {
        let descriptor = fetch(index);
        if descriptor.has(Descriptor::INDIRECT) {
            return Ok(Some((index, descriptor)));
        }
        if !chain.push(descriptor) {
            return Err(QueueFault::ReadableAfterWritable { at: place(index) });
        }
        if !descriptor.has(Descriptor::NEXT) {
            return Ok(None);
        }
        let next = descriptor.next;
        if next >= entries {
            return Err(QueueFault::NextOutOfRange {
                at: place(index),
                next,
                entries,
            });
        }
        index = next;
    }
    Err(QueueFault::Loop {
        head: chain.head(),
        entries,
    })
}
