//! A ring whose driver side is written byte by byte, as a hostile driver could.

use guest_memory::{Access, AddressSpace, Area, FlatSpace};
use virtqueue::{Chain, DeviceQueue, QueueFault, QueueLayout, RingFeatures, Segment};

/// Where the memory is on the bus: area 1.
pub(crate) const BASE: u64 = 1 << 48;
/// Bytes of it.
pub(crate) const BYTES: u64 = 1 << 20;
/// The part behind the largest ring that the tests use, for tables.
pub(crate) const TABLES: u64 = BASE + (BYTES >> 1);

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) const PLAIN: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: false,
};
pub(crate) const WITH_INDIRECT: RingFeatures = RingFeatures {
    indirect: true,
    event_idx: false,
};
pub(crate) const WITH_EVENT_IDX: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: true,
};

/// Address, length, flags, next.
pub(crate) type RawDescriptor = (u64, u32, u16, u16);

pub(crate) struct Rig {
    _area: Area,
    pub(crate) space: FlatSpace,
    pub(crate) layout: QueueLayout,
}

impl Rig {
    pub(crate) fn new(size: u16) -> Self {
        Self::with_layout(QueueLayout::contiguous(BASE, size))
    }

    pub(crate) fn with_layout(layout: QueueLayout) -> Self {
        let area = Area::anonymous(usize::try_from(BYTES).unwrap()).unwrap();
        let space = FlatSpace::new(BASE, &area);
        Self {
            _area: area,
            space,
            layout,
        }
    }

    pub(crate) fn device(&self, features: RingFeatures) -> DeviceQueue {
        DeviceQueue::new(&self.space, self.layout, features).unwrap()
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        let range = self.space.translate(addr, len, Access::Write).unwrap();
        range.write(0, bytes).unwrap();
    }

    pub(crate) fn read(&self, addr: u64, len: u32) -> Vec<u8> {
        let range = self.space.translate(addr, len, Access::Read).unwrap();
        let mut bytes = vec![0; range.len()];
        range.read(0, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn u16_at(&self, addr: u64) -> u16 {
        let bytes = self.read(addr, 2);
        u16::from_le_bytes(bytes.try_into().unwrap())
    }

    pub(crate) fn set_u16(&self, addr: u64, value: u16) {
        self.write(addr, &value.to_le_bytes());
    }

    /// Writes descriptors into the ring's table, from `first` on.
    pub(crate) fn descriptors(&self, first: u16, descriptors: &[RawDescriptor]) {
        self.table(self.layout.desc + 16 * u64::from(first), descriptors);
    }

    /// Writes descriptors anywhere.
    pub(crate) fn table(&self, addr: u64, descriptors: &[RawDescriptor]) {
        for (at, (buffer, len, flags, next)) in (0..).zip(descriptors) {
            let mut bytes = buffer.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            self.write(addr + 16 * at, &bytes);
        }
    }

    pub(crate) fn avail_idx(&self) -> u16 {
        self.u16_at(self.layout.avail + 2)
    }

    pub(crate) fn set_avail_idx(&self, idx: u16) {
        self.set_u16(self.layout.avail + 2, idx);
    }

    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.set_u16(self.layout.avail, flags);
    }

    pub(crate) fn set_used_event(&self, event: u16) {
        self.set_u16(
            self.layout.avail + 4 + 2 * u64::from(self.layout.size),
            event,
        );
    }

    /// Makes heads available, in order.
    pub(crate) fn offer(&self, heads: &[u16]) {
        let mut idx = self.avail_idx();
        for &head in heads {
            let slot = u64::from(idx % self.layout.size);
            self.set_u16(self.layout.avail + 4 + 2 * slot, head);
            idx = idx.wrapping_add(1);
        }
        self.set_avail_idx(idx);
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.u16_at(self.layout.used)
    }

    pub(crate) fn used_idx(&self) -> u16 {
        self.u16_at(self.layout.used + 2)
    }

    pub(crate) fn avail_event(&self) -> u16 {
        self.u16_at(self.layout.used + 4 + 8 * u64::from(self.layout.size))
    }

    /// Id and length of the used element at a position.
    pub(crate) fn used_element(&self, position: u16) -> (u32, u32) {
        let slot = u64::from(position % self.layout.size);
        let bytes = self.read(self.layout.used + 4 + 8 * slot, 8);
        let (id, len) = bytes.split_at(4);
        (
            u32::from_le_bytes(id.try_into().unwrap()),
            u32::from_le_bytes(len.try_into().unwrap()),
        )
    }

    /// Writes a used element as a hostile device could.
    pub(crate) fn set_used_element(&self, position: u16, id: u32, len: u32) {
        let slot = u64::from(position % self.layout.size);
        let at = self.layout.used + 4 + 8 * slot;
        self.write(at, &id.to_le_bytes());
        self.write(at + 4, &len.to_le_bytes());
    }

    pub(crate) fn set_used_idx(&self, idx: u16) {
        self.set_u16(self.layout.used + 2, idx);
    }

    /// What a fresh device makes of one chain that starts at descriptor 0, told and collected.
    pub(crate) fn judge(&self, features: RingFeatures) -> Result<Chain, QueueFault> {
        let mut device = self.device(features);
        let mut chain = Chain::new();
        let mut told = Vec::new();
        self.offer(&[0]);
        let each = |access, segment| told.push((access, segment));
        assert!(device.pop_telling(&self.space, &mut chain, each)?);
        assert!(chain.segments().eq(told));
        Ok(chain)
    }
}

pub(crate) fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr, len }
}
