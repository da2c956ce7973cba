//! Where the three parts of a split ring are, and what makes a layout unusable (VIRTIO 1.4, 2.7).

use std::fmt;

use guest_memory::{Access, TranslateError};

use crate::StateError;

/// Largest queue size of a split ring.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// What SET_VQUEUE says: number of entries, and the bus address of each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries: a power of two, 1 to 32,768.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring, which VIRTIO also calls driver area.
    pub avail: u64,
    /// Used ring, which VIRTIO also calls device area.
    pub used: u64,
}

/// The negotiated features that change how a ring works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_INDIRECT_DESC (28).
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX (29).
    pub event_idx: bool,
}

/// A part of a split ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingPart {
    /// Descriptor table, written by the driver.
    Desc,
    /// Available ring, written by the driver.
    Avail,
    /// Used ring, written by the device.
    Used,
}

/// Why a queue cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The number of entries.
    #[error("queue size {size} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    Size {
        /// As asked for.
        size: u16,
    },
    /// The address of a part.
    #[error("the {part} at address {addr:#x} is not aligned to {}", part.align())]
    Misaligned {
        /// Which part.
        part: RingPart,
        /// Its address.
        addr: u64,
    },
    /// A part is not in memory that the queue may use.
    #[error("the {part} at address {addr:#x} is out of reach")]
    Unreachable {
        /// Which part.
        part: RingPart,
        /// Its address.
        addr: u64,
        /// Why.
        source: TranslateError,
    },
    /// The driver's indirect tables are not in memory that it may use.
    #[error("the indirect tables at address {addr:#x} are out of reach")]
    Tables {
        /// Their address.
        addr: u64,
        /// Why.
        source: TranslateError,
    },
    /// The driver's indirect tables are not aligned.
    #[error("the indirect tables at address {addr:#x} are not aligned to 16")]
    MisalignedTables {
        /// Their address.
        addr: u64,
    },
    /// The state to go on from.
    #[error("the exported state cannot be used")]
    State(#[from] StateError),
}

impl RingPart {
    /// Bytes of the part in a ring of `size` entries, event field included.
    #[must_use]
    pub const fn bytes(self, size: u16) -> u32 {
        let size = size as u32;
        match self {
            RingPart::Desc => 16 * size,
            RingPart::Avail => 6 + 2 * size,
            RingPart::Used => 6 + 8 * size,
        }
    }

    /// Alignment in bytes that the part needs.
    #[must_use]
    pub const fn align(self) -> u64 {
        match self {
            RingPart::Desc => 16,
            RingPart::Avail => 2,
            RingPart::Used => 4,
        }
    }
}

impl fmt::Display for RingPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RingPart::Desc => "descriptor table",
            RingPart::Avail => "available ring",
            RingPart::Used => "used ring",
        })
    }
}

impl QueueLayout {
    /// The three parts one after the other from `base` on, which is a multiple of 16.
    #[must_use]
    pub const fn contiguous(base: u64, size: u16) -> Self {
        let avail = base + RingPart::Desc.bytes(size) as u64;
        let used = avail + RingPart::Avail.bytes(size) as u64;
        Self {
            size,
            desc: base,
            avail,
            used: used.next_multiple_of(RingPart::Used.align()),
        }
    }

    /// Bytes that [`QueueLayout::contiguous`] takes.
    #[must_use]
    pub const fn contiguous_bytes(size: u16) -> u32 {
        let rings = RingPart::Desc.bytes(size) + RingPart::Avail.bytes(size);
        rings.next_multiple_of(4) + RingPart::Used.bytes(size)
    }

    /// Looks up descriptor table, available ring and used ring, in this order. `access` is this
    /// side's right to what the driver writes; the used ring is written in any case.
    pub(crate) fn locate<T>(
        &self,
        access: Access,
        translate: impl Fn(u64, u32, Access) -> Result<T, TranslateError>,
    ) -> Result<[T; 3], SetupError> {
        let size = self.size;
        if !size.is_power_of_two() {
            return Err(SetupError::Size { size });
        }
        let find =
            |part: RingPart, addr: u64, access| {
                if !addr.is_multiple_of(part.align()) {
                    return Err(SetupError::Misaligned { part, addr });
                }
                translate(addr, part.bytes(size), access)
                    .map_err(|source| SetupError::Unreachable { part, addr, source })
            };
        Ok([
            find(RingPart::Desc, self.desc, access)?,
            find(RingPart::Avail, self.avail, access)?,
            find(RingPart::Used, self.used, Access::Write)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceQueue;
    use guest_memory::{Area, FlatSpace};

    fn check(layout: QueueLayout, space: &FlatSpace) -> Result<(), SetupError> {
        DeviceQueue::check(space, layout)
    }

    /// Memory at an address that shows when an offset is mistaken for an address.
    const BASE: u64 = 1 << 48;

    #[test]
    fn parts_have_the_sizes_of_the_specification() {
        for (size, desc, avail, used) in [
            (4, 64, 14, 38),
            (128, 2048, 262, 1030),
            (256, 4096, 518, 2054),
            (1024, 16384, 2054, 8198),
            (32768, 524_288, 65542, 262_150),
        ] {
            assert_eq!(RingPart::Desc.bytes(size), desc);
            assert_eq!(RingPart::Avail.bytes(size), avail);
            assert_eq!(RingPart::Used.bytes(size), used);
        }
    }

    #[test]
    fn r01_layout_that_ends_with_its_area_is_accepted() {
        for size in (0..16).map(|power| 1u16 << power) {
            let bytes = QueueLayout::contiguous_bytes(size) as usize;
            let area = Area::anonymous(bytes).unwrap();
            let space = FlatSpace::new(BASE, &area);
            let layout = QueueLayout::contiguous(BASE, size);
            check(layout, &space).unwrap();

            let less = Area::anonymous(bytes - 1).unwrap();
            let error = check(layout, &FlatSpace::new(BASE, &less)).unwrap_err();
            assert_eq!(
                error,
                SetupError::Unreachable {
                    part: RingPart::Used,
                    addr: layout.used,
                    source: TranslateError::Beyond {
                        addr: layout.used,
                        len: RingPart::Used.bytes(size),
                    }
                }
            );
        }
    }

    #[test]
    fn r01_sizes_that_are_no_power_of_two_are_refused() {
        let area = Area::anonymous(1 << 20).unwrap();
        let space = FlatSpace::new(BASE, &area);
        for size in [0, 3, 6, 255, 32767, 32769, 65535] {
            let layout = QueueLayout {
                size,
                ..QueueLayout::contiguous(BASE, 4)
            };
            assert_eq!(check(layout, &space), Err(SetupError::Size { size }));
        }
    }

    #[test]
    fn r01_misaligned_parts_are_refused() {
        let area = Area::anonymous(4096).unwrap();
        let space = FlatSpace::new(BASE, &area);
        let good = QueueLayout {
            size: 4,
            desc: BASE,
            avail: BASE + 0x100,
            used: BASE + 0x200,
        };
        for off in 1..16 {
            let desc = good.desc + off;
            assert_eq!(
                check(QueueLayout { desc, ..good }, &space),
                Err(SetupError::Misaligned {
                    part: RingPart::Desc,
                    addr: desc
                })
            );
        }
        let avail = good.avail + 1;
        assert_eq!(
            check(QueueLayout { avail, ..good }, &space),
            Err(SetupError::Misaligned {
                part: RingPart::Avail,
                addr: avail
            })
        );
        for off in 1..4 {
            let used = good.used + off;
            assert_eq!(
                check(QueueLayout { used, ..good }, &space),
                Err(SetupError::Misaligned {
                    part: RingPart::Used,
                    addr: used
                })
            );
        }
        for (avail, used) in [(2, 4), (6, 12)] {
            let layout = QueueLayout {
                avail: good.avail + avail,
                used: good.used + used,
                ..good
            };
            check(layout, &space).unwrap();
        }
    }

    #[test]
    fn r01_each_part_must_be_shared() {
        let area = Area::anonymous(4096).unwrap();
        let space = FlatSpace::new(BASE, &area);
        let good = QueueLayout::contiguous(BASE, 4);
        let gone = TranslateError::Unknown { addr: 0 };
        for (layout, part) in [
            (QueueLayout { desc: 0, ..good }, RingPart::Desc),
            (QueueLayout { avail: 0, ..good }, RingPart::Avail),
            (QueueLayout { used: 0, ..good }, RingPart::Used),
        ] {
            assert_eq!(
                check(layout, &space),
                Err(SetupError::Unreachable {
                    part,
                    addr: 0,
                    source: gone
                })
            );
        }
    }

    #[test]
    fn only_the_used_ring_needs_to_be_writable_for_a_device() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let file = std::os::fd::AsFd::as_fd(&file);
        let area = Area::shared_file(file, 0, 4096, Access::Read).unwrap();
        let space = FlatSpace::new(BASE, &area);
        let layout = QueueLayout::contiguous(BASE, 4);
        assert!(matches!(
            check(layout, &space),
            Err(SetupError::Unreachable {
                part: RingPart::Used,
                source: TranslateError::ReadOnly { .. },
                ..
            })
        ));
    }
}
