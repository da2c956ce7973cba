//! Configuration space of one device and its generation (virtio-msg sections 5.4, 5.5, 5.12, 7.2).

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::ops::Range;
use thiserror::Error;

/// A change that names bytes which the device does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len} bytes at {offset} are outside a configuration space of {size} bytes")]
pub struct OutsideConfig {
    /// First byte.
    pub offset: u32,
    /// How many.
    pub len: usize,
    /// What there is.
    pub size: usize,
}

#[derive(Clone, Debug)]
pub(super) struct ConfigSpace {
    bytes: Vec<u8>,
    generation: u32,
    /// Changed by the device, not yet told.
    changed: Option<Range<usize>>,
}

impl ConfigSpace {
    pub(super) fn new(bytes: Vec<u8>, generation: u32) -> Self {
        ConfigSpace {
            bytes,
            generation,
            changed: None,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// The bytes of a range that lies inside.
    pub(super) fn read(&self, offset: u32, length: u32) -> Option<&[u8]> {
        self.bytes
            .get(range(offset, usize::try_from(length).ok()?)?)
    }

    /// What the driver wrote. Not a change of the device's own, so the generation stays.
    pub(super) fn write(&mut self, offset: u32, data: &[u8]) {
        if let Some(into) = range(offset, data.len()).and_then(|range| self.bytes.get_mut(range)) {
            into.copy_from_slice(data);
        }
    }

    /// A change by the device: a new generation first, then the bytes, then the mark for EVENT_CONFIG.
    pub(super) fn change(&mut self, offset: u32, data: &[u8]) -> Result<(), OutsideConfig> {
        let size = self.bytes.len();
        let outside = OutsideConfig {
            offset,
            len: data.len(),
            size,
        };
        let range = range(offset, data.len()).ok_or(outside)?;
        let into = self.bytes.get_mut(range.clone()).ok_or(outside)?;
        self.generation = self.generation.wrapping_add(1);
        into.copy_from_slice(data);
        self.changed = Some(match self.changed.take() {
            Some(old) => old.start.min(range.start)..old.end.max(range.end),
            None => range,
        });
        Ok(())
    }

    pub(super) fn forget_change(&mut self) {
        self.changed = None;
    }

    /// Takes the mark: offset and bytes as they are now, or nothing when they are more than `room`.
    pub(super) fn take_change(&mut self, room: usize) -> (u32, Cow<'_, [u8]>) {
        let named = self
            .changed
            .take()
            .filter(|range| range.len() <= room)
            .and_then(|range| {
                let offset = u32::try_from(range.start).ok()?;
                Some((offset, self.bytes.get(range)?))
            });
        named.map_or((0, Cow::Borrowed(&[])), |(offset, data)| {
            (offset, Cow::Borrowed(data))
        })
    }
}

fn range(offset: u32, len: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len)?)
}
