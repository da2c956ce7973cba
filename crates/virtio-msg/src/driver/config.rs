//! A driver's copy of configuration space, read in chunks of one generation (virtio-msg sections 5.4 and 7.2).

use crate::wire::{MaxMessageSize, Request};
use alloc::vec;
use alloc::vec::Vec;

/// Fixed payload bytes of GET_CONFIG's response and of SET_CONFIG's request.
const CONFIG_FIXED: usize = 12;
/// Torn reads in a row before the driver gives up; Linux has the same number.
const MAX_RESTARTS: u8 = 5;

#[derive(Debug, Default)]
pub(super) struct ConfigCopy {
    /// The last contents that were read whole.
    bytes: Vec<u8>,
    fresh: Vec<u8>,
    /// Of the first chunk that was answered.
    generation: Option<u32>,
    torn: bool,
    chunks_left: usize,
    restarts: u8,
    /// The device said that the contents changed since the read began.
    pub(super) stale: bool,
}

/// What a chunk did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// More are awaited.
    Partial,
    /// The copy is new.
    Complete,
    /// The generation changed: read again.
    Torn,
    /// It changed too often.
    Unstable,
}

impl ConfigCopy {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_reading(&self) -> bool {
        self.chunks_left > 0
    }

    /// Bytes that one message carries.
    pub(super) fn chunk_len(max: MaxMessageSize) -> usize {
        max.room_after(CONFIG_FIXED)
    }

    /// Begins to read `len` bytes anew; gives the requests to send, none when there is nothing to read.
    pub(super) fn begin(&mut self, len: u32, max: MaxMessageSize) -> Vec<Request<'static>> {
        let step = u32::try_from(Self::chunk_len(max))
            .unwrap_or(u32::MAX)
            .max(1);
        let mut requests = Vec::new();
        let mut offset = 0;
        while offset < len {
            let length = step.min(len - offset);
            requests.push(Request::GetConfig { offset, length });
            offset += length;
        }
        self.fresh = vec![0; usize::try_from(len).unwrap_or_default()];
        self.generation = None;
        self.torn = false;
        self.stale = false;
        self.chunks_left = requests.len();
        requests
    }

    /// Takes one answer that matches its request.
    pub(super) fn take(&mut self, offset: u32, generation: u32, data: &[u8]) -> Chunk {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(into) = self
            .fresh
            .get_mut(start..)
            .and_then(|rest| rest.get_mut(..data.len()))
        {
            into.copy_from_slice(data);
        }
        self.torn |= *self.generation.get_or_insert(generation) != generation;
        self.chunks_left = self.chunks_left.saturating_sub(1);
        if self.chunks_left > 0 {
            return Chunk::Partial;
        }
        if self.torn {
            self.restarts += 1;
            return if self.restarts > MAX_RESTARTS {
                Chunk::Unstable
            } else {
                Chunk::Torn
            };
        }
        self.restarts = 0;
        self.bytes = core::mem::take(&mut self.fresh);
        Chunk::Complete
    }
}
