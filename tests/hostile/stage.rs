//! A backend with an honest guest and a hostile one.

use tests::{Bus, Holdings, RawDisk, RawGuest, Rig, pattern};
use virtio_msg::Status;
use xen_types::DomId;

/// Bytes of a disk.
const BYTES: usize = 64 << 10;
/// Pages of the area that a guest shares.
pub(crate) const POOL: usize = 16;

pub(crate) struct Stage {
    pub(crate) rig: Rig,
    /// The guest that breaks rules; it has not connected yet.
    pub(crate) guest: RawGuest,
    pub(crate) bus: Bus,
    honest: RawGuest,
    disk: RawDisk,
    /// What dom0 holds for the honest guest.
    honest_holdings: Holdings,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let mut rig = Rig::start();
        let bus = rig.guest_with_disk("honest", BYTES);
        let mut honest = RawGuest::new(&rig, bus);
        honest.connect(&mut rig);
        let pool = honest.share_pool(&mut rig, 1, POOL);
        let disk = RawDisk::bring_up(&mut rig, &mut honest, 0, pool);
        let honest_holdings = rig.machine.holdings(DomId::DOM0);
        let bus = rig.guest_with_disk("hostile", BYTES);
        let guest = RawGuest::new(&rig, bus);
        Self {
            rig,
            guest,
            bus,
            honest,
            disk,
            honest_holdings,
        }
    }

    /// Connects the hostile guest and brings its disk up.
    pub(crate) fn hostile_disk(&mut self) -> RawDisk {
        self.guest.connect(&mut self.rig);
        let pool = self.guest.share_pool(&mut self.rig, 1, POOL);
        RawDisk::bring_up(&mut self.rig, &mut self.guest, 0, pool)
    }

    /// A node of the hostile guest's backend directory.
    pub(crate) fn backend_says(&mut self, key: &str) -> Option<String> {
        self.rig.toolstack.read(&self.bus.back(key))
    }

    /// The backend has ended the hostile guest's instance, says so with each of `words`, and holds
    /// nothing of it.
    #[track_caller]
    pub(crate) fn assert_ended(&mut self, words: &[&str]) {
        self.rig.until_node(&self.bus.back("state"), "6");
        let error = self.backend_says("error").unwrap_or_default();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
        assert_eq!(
            self.rig.machine.holdings(DomId::DOM0),
            self.honest_holdings,
            "{error}"
        );
        self.assert_honest_served();
    }

    /// The hostile guest's device needs a reset, and serves again after it.
    #[track_caller]
    pub(crate) fn assert_needs_reset(&mut self, disk: RawDisk) {
        let status = self.guest.status(&mut self.rig, 0);
        assert!(status.contains(Status::NEEDS_RESET), "{status:?}");
        assert_eq!(self.backend_says("state").as_deref(), Some("4"));
        let none = Status::empty();
        assert_eq!(self.guest.set_status(&mut self.rig, 0, none), none);
        let mut again = RawDisk::bring_up(&mut self.rig, &mut self.guest, 0, disk.pool);
        assert_serves(&mut self.rig, &mut self.guest, &mut again);
        self.assert_honest_served();
    }

    /// The honest guest reads.
    #[track_caller]
    pub(crate) fn assert_honest_served(&mut self) {
        assert_serves(&mut self.rig, &mut self.honest, &mut self.disk);
    }
}

/// The disk answers a read with its bytes.
#[track_caller]
pub(crate) fn assert_serves(rig: &mut Rig, guest: &mut RawGuest, disk: &mut RawDisk) {
    let (block, data) = disk.take(512);
    let status = disk.read_request(0, 5, data, 512);
    let before = disk.used();
    disk.offer(guest, 0);
    rig.until("a used buffer", |_| (disk.used() != before).then_some(()));
    assert_eq!(disk.read(status, 1), [0]);
    assert_eq!(disk.read(data, 512), pattern(5, 512));
    disk.pool.give_back(block);
}
