//! Rings and buffers in granted pages that are no area (binding sections 5 and 6): what they cost,
//! what is refused, and that nothing of them stays.

mod cost;
mod life;
mod refusals;
mod serving;

use backend::GrantBuffers;
use tests::{Bus, GrantDisk, GrantRequest, RawGuest, Rig};
use virtio_msg::{Features, Status};
use xen_hal::hosted::Counters;
use xen_types::{DomId, PAGE_SIZE};

/// Bytes of the disk.
const BYTES: usize = 4 << 20;
/// Sectors of a page.
const PAGE_SECTORS: u64 = (PAGE_SIZE / 512) as u64;
/// The parts of a ring in one page are three mappings.
const RING_PAGES: u32 = 3;

const OK: u8 = 0;
const IOERR: u8 = 1;
const NO_STATUS: u8 = 0xff;

struct World {
    rig: Rig,
    guest: RawGuest,
    bus: Bus,
}

impl World {
    fn new(buffers: GrantBuffers) -> Self {
        Self::choosing(buffers, true)
    }

    fn choosing(buffers: GrantBuffers, grant_addresses: bool) -> Self {
        let mut rig = Rig::start_with(buffers);
        let bus = rig.guest_with_disk("guest", BYTES);
        let mut guest = RawGuest::new(&rig, bus);
        guest.grant_addresses = grant_addresses;
        guest.connect(&mut rig);
        Self { rig, guest, bus }
    }

    fn disk(&mut self, features: Features) -> GrantDisk {
        GrantDisk::bring_up(&mut self.rig, &mut self.guest, 0, features)
    }

    fn mapped(&self) -> u32 {
        self.rig.machine.holdings(DomId::DOM0).mapped
    }

    fn counters(&self) -> Counters {
        self.rig.machine.counters(DomId::DOM0)
    }

    fn status(&mut self) -> Status {
        self.guest.status(&mut self.rig, 0)
    }

    fn run(&mut self, disk: &mut GrantDisk, request: &GrantRequest) -> u32 {
        disk.run(&mut self.rig, &mut self.guest, request)
    }
}

const BOTH: [GrantBuffers; 2] = [GrantBuffers::Copied, GrantBuffers::Mapped];
