//! One request as a device sees it: a stream of bytes to read, then a stream of bytes to write
//! (VIRTIO 1.4, 2.7.4).
//!
//! Framing carries no meaning: where one segment ends and the next begins says nothing about the
//! fields inside. Addresses are bus addresses, not yet looked up.

use guest_memory::Access;

use crate::MAX_INDIRECT_ENTRIES;

/// Most bytes of a chain (VIRTIO 1.4, 2.7.5: a driver must not add longer ones).
pub const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// Bytes that are contiguous on the bus. Never empty in a [`Chain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bus address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// What is known of a chain beside its segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    head: u16,
    /// Sum of all lengths, which needs no more than 48 bits. Or [`OVERSIZE`], and how many
    /// descriptors the table has that was too long to be read: one number that is too large says
    /// that something is wrong.
    bytes: u64,
}

/// See [`Taken::bytes`].
const OVERSIZE: u64 = 1 << 63;

impl Taken {
    /// A chain of which nothing is known but its head.
    #[inline]
    pub(crate) fn new(head: u16) -> Self {
        Self {
            head,
            ..Self::default()
        }
    }

    /// The head: what goes back to the driver when the request is done.
    #[inline]
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Why the request must not be executed, if so.
    #[inline]
    #[must_use]
    pub fn refusal(&self) -> Option<ChainRefusal> {
        (self.bytes > MAX_CHAIN_BYTES).then(|| self.why_refused())
    }

    #[cold]
    fn why_refused(&self) -> ChainRefusal {
        let bytes = self.bytes;
        match u32::try_from(bytes ^ OVERSIZE) {
            Ok(entries) => ChainRefusal::TooManyEntries {
                entries,
                limit: MAX_INDIRECT_ENTRIES,
            },
            Err(_) => ChainRefusal::TooManyBytes { bytes },
        }
    }

    /// Another segment.
    #[inline]
    pub(crate) fn count(&mut self, len: u32) {
        self.bytes += u64::from(len);
    }

    /// A table that is too long.
    pub(crate) fn oversize(&mut self, entries: u32) {
        self.bytes = OVERSIZE | u64::from(entries);
    }
}

/// A chain taken from a queue. A buffer to be used again: [`crate::DeviceQueue::pop`] overwrites it.
#[derive(Debug, Default)]
pub struct Chain {
    taken: Taken,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: u64,
    writable_len: u64,
}

/// Why a well-formed chain must not be executed. Its head goes back; the ring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainRefusal {
    /// The segments are complete, so that a device can still write a status.
    #[error("a chain of {bytes} bytes is longer than {MAX_CHAIN_BYTES}")]
    TooManyBytes {
        /// Sum of all lengths.
        bytes: u64,
    },
    /// The table was not read, so segments are missing.
    #[error("an indirect table of {entries} descriptors is longer than {limit}")]
    TooManyEntries {
        /// Descriptors of the table.
        entries: u32,
        /// Most that a device reads.
        limit: u16,
    },
}

impl Chain {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The head: what goes back to the driver when the request is done.
    #[inline]
    #[must_use]
    pub fn head(&self) -> u16 {
        self.taken.head
    }

    /// What the driver wrote for the device.
    #[inline]
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        &self.readable
    }

    /// What the device is to write.
    #[inline]
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// All segments with what they are for: the readable ones, then the writable ones.
    pub fn segments(&self) -> impl Iterator<Item = (Access, Segment)> {
        let readable = self.readable.iter().map(|segment| (Access::Read, *segment));
        let writable = self
            .writable
            .iter()
            .map(|segment| (Access::Write, *segment));
        readable.chain(writable)
    }

    /// Bytes of all readable segments.
    #[inline]
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes of all writable segments.
    #[inline]
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Why the request must not be executed, if so.
    #[inline]
    #[must_use]
    pub fn refusal(&self) -> Option<ChainRefusal> {
        self.taken.refusal()
    }

    /// Gives every segment another address: what each is, and how it will be used, goes in, the
    /// readable ones first.
    pub fn readdress(&mut self, mut address: impl FnMut(Segment, Access) -> u64) {
        for (segments, access) in [
            (&mut self.readable, Access::Read),
            (&mut self.writable, Access::Write),
        ] {
            for segment in segments {
                segment.addr = address(*segment, access);
            }
        }
    }

    /// Forgets all segments.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
    }

    /// Adds a segment of the part that is used for `access`.
    #[inline]
    pub(crate) fn push(&mut self, access: Access, segment: Segment) {
        let part = match access {
            Access::Read => {
                self.readable_len += u64::from(segment.len);
                &mut self.readable
            }
            Access::Write => {
                self.writable_len += u64::from(segment.len);
                &mut self.writable
            }
        };
        if part.len() == part.capacity() {
            grow(part);
        }
        part.push(segment);
    }

    /// All segments are there. Of a table that was too long to be read they are not: then there
    /// are none, so that a device cannot take what there is for the whole.
    #[inline]
    pub(crate) fn finish(&mut self, taken: Taken) {
        self.taken = taken;
        if taken.bytes >= OVERSIZE {
            self.clear();
        }
    }
}

/// Out of line, so that the walk keeps its registers: a chain in use grows only a few times.
#[cold]
fn grow(segments: &mut Vec<Segment>) {
    segments.reserve(1);
}
