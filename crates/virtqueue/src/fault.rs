//! What a driver can do wrong so that its ring cannot be trusted any more (VIRTIO 1.4, 2.7).
//!
//! A fault stops the queue for good. What makes only one request unacceptable is a
//! [`crate::ChainRefusal`].

use std::fmt;

use guest_memory::TranslateError;

/// Why a queue stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFault {
    /// More new entries than the ring has, or an index that stepped back.
    #[error("available index {idx} is more than {size} ahead of {next}, the next to take")]
    AvailJump {
        /// The index in shared memory.
        idx: u16,
        /// The index that the device takes next.
        next: u16,
        /// Queue size.
        size: u16,
    },
    /// The driver cannot have so many descriptors: too many are not yet returned.
    #[error("{outstanding} chains are not yet returned and {new} are new, in a ring of {size}")]
    TooManyOutstanding {
        /// Chains taken and not yet published as used.
        outstanding: u16,
        /// Chains newly available.
        new: u16,
        /// Queue size.
        size: u16,
    },
    /// The available ring names a descriptor that the table does not have.
    #[error("head {head} is outside of a table of {size} descriptors")]
    HeadOutOfRange {
        /// The head.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// A head given again before it was returned.
    #[error("head {head} is given while it is in flight")]
    HeadInFlight {
        /// The head.
        head: u16,
    },
    /// A link to a descriptor that the table does not have.
    #[error("{at} links to {next}, outside of a table of {entries}")]
    NextOutOfRange {
        /// The descriptor with the link.
        at: DescriptorAt,
        /// The link.
        next: u16,
        /// Descriptors of the table.
        entries: u16,
    },
    /// More descriptors than the table has: a loop.
    #[error("the chain of head {head} loops: it is longer than its table of {entries}")]
    Loop {
        /// The head.
        head: u16,
        /// Descriptors of the table.
        entries: u16,
    },
    /// A part for the device to read behind one for it to write.
    #[error("{at} is readable and follows a writable one")]
    ReadableAfterWritable {
        /// The readable descriptor.
        at: DescriptorAt,
    },
    /// An indirect table without INDIRECT_DESC.
    #[error("{at} is indirect, which was not negotiated")]
    IndirectNotNegotiated {
        /// The descriptor.
        at: DescriptorAt,
    },
    /// An indirect table with a link beside it.
    #[error("{at} is indirect and has a next descriptor")]
    IndirectWithNext {
        /// The descriptor.
        at: DescriptorAt,
    },
    /// An indirect table inside of an indirect table.
    #[error("{at} is indirect")]
    IndirectNested {
        /// The descriptor.
        at: DescriptorAt,
    },
    /// A table that is empty or ends inside of a descriptor.
    #[error("{at} names an indirect table of {len} bytes, not a positive multiple of 16")]
    IndirectLength {
        /// The descriptor.
        at: DescriptorAt,
        /// Its length field.
        len: u32,
    },
    /// A table that cannot be read.
    #[error("{at} names an indirect table that cannot be read")]
    IndirectTable {
        /// The descriptor.
        at: DescriptorAt,
        /// Why.
        source: TranslateError,
    },
    /// The device returned a head that it did not take, or returned it twice: a mistake of the
    /// device, not of the driver. Does not latch.
    #[error("head {head} is returned but not in flight")]
    NotInFlight {
        /// The head.
        head: u16,
    },
}

/// Where a descriptor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorAt {
    /// In the ring's descriptor table, at this index.
    Ring(u16),
    /// In an indirect table.
    Table {
        /// The ring descriptor that names the table.
        referrer: u16,
        /// The index in the table.
        entry: u16,
    },
}

impl fmt::Display for DescriptorAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DescriptorAt::Ring(index) => write!(f, "descriptor {index}"),
            DescriptorAt::Table { referrer, entry } => {
                write!(f, "entry {entry} of the table of descriptor {referrer}")
            }
        }
    }
}
