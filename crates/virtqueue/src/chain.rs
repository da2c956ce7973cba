//! One request as a device sees it: a stream of bytes to read, then a stream of bytes to write
//! (VIRTIO 1.4, 2.7.4).
//!
//! Framing carries no meaning: where one segment ends and the next begins says nothing about the
//! fields inside. Addresses are bus addresses, not yet looked up.

use guest_memory::Access;

use crate::MAX_INDIRECT_ENTRIES;
use crate::indirect::RawDescriptor;

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

/// A chain taken from a queue. A buffer to be used again: [`crate::DeviceQueue::pop`] overwrites it.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: u64,
    writable_len: u64,
    /// Descriptors of an indirect table that was too long to be read; else 0.
    oversize: u32,
    /// Room for the copy of an indirect table, as long as the longest so far.
    pub(crate) table: Vec<RawDescriptor>,
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
        self.head
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
        let bytes = self.readable_len + self.writable_len;
        if self.oversize > 0 {
            Some(ChainRefusal::TooManyEntries {
                entries: self.oversize,
                limit: MAX_INDIRECT_ENTRIES,
            })
        } else if bytes > MAX_CHAIN_BYTES {
            Some(ChainRefusal::TooManyBytes { bytes })
        } else {
            None
        }
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

    #[inline]
    pub(crate) fn start(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        self.readable_len = 0;
        self.writable_len = 0;
        self.oversize = 0;
    }

    /// Adds bytes for the device to read.
    #[inline]
    pub(crate) fn push_readable(&mut self, addr: u64, len: u32) {
        self.readable_len += u64::from(len);
        push(&mut self.readable, addr, len);
    }

    /// Adds bytes for the device to write.
    #[inline]
    pub(crate) fn push_writable(&mut self, addr: u64, len: u32) {
        self.writable_len += u64::from(len);
        push(&mut self.writable, addr, len);
    }

    /// Drops all segments, so that a device cannot take what there is for the whole.
    pub(crate) fn oversize(&mut self, entries: u32) {
        self.start(self.head);
        self.oversize = entries;
    }
}

/// Empty segments are skipped: VIRTIO does not forbid them.
#[inline]
fn push(segments: &mut Vec<Segment>, addr: u64, len: u32) {
    if len != 0 {
        if segments.len() == segments.capacity() {
            grow(segments);
        }
        segments.push(Segment { addr, len });
    }
}

/// Out of line, so that the walk keeps its registers: a chain in use grows only a few times.
#[cold]
fn grow(segments: &mut Vec<Segment>) {
    segments.reserve(1);
}
