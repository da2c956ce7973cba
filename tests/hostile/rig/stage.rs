//! A backend with an honest guest and a hostile one.

use tests::{Bus, Holdings, RawDisk, RawGuest, Rig, pattern};
use virtio_msg::{Features, Status};
use xen_types::DomId;

use super::log::Log;

/// Bytes of a disk.
const BYTES: usize = 64 << 10;
/// Pages of the area that a guest shares.
pub(crate) const POOL: usize = 16;
/// Slots of a raw guest's ring in each direction.
pub(crate) const SLOTS: usize = 16;
/// Where area 1 begins.
pub(crate) const AREA: u64 = 1 << 48;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) struct Stage {
    pub(crate) rig: Rig,
    /// The guest that breaks rules; it has not connected yet.
    pub(crate) guest: RawGuest,
    pub(crate) bus: Bus,
    pub(crate) log: Log,
    honest: RawGuest,
    disk: RawDisk,
    /// What dom0 holds for the honest guest.
    pub(crate) honest_holdings: Holdings,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let log = Log::start();
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
            log,
            honest,
            disk,
            honest_holdings,
        }
    }

    /// Connects the hostile guest and brings its disk up.
    pub(crate) fn hostile_disk(&mut self) -> RawDisk {
        self.hostile_disk_with(Features(0))
    }

    /// As [`Stage::hostile_disk`], with these features and the required ones.
    pub(crate) fn hostile_disk_with(&mut self, features: Features) -> RawDisk {
        self.guest.connect(&mut self.rig);
        let pool = self.guest.share_pool(&mut self.rig, 1, POOL);
        RawDisk::bring_up_with(&mut self.rig, &mut self.guest, 0, pool, features)
    }

    /// A node of the hostile guest's backend directory.
    pub(crate) fn backend_says(&mut self, key: &str) -> Option<String> {
        self.rig.toolstack.read(&self.bus.back(key))
    }

    /// The state of the hostile guest's instance.
    #[track_caller]
    pub(crate) fn assert_state(&mut self, state: &str) {
        assert_eq!(self.backend_says("state").as_deref(), Some(state));
    }

    /// The backend has ended the hostile guest's instance, says so in `line` and in `error`, and
    /// holds nothing of it.
    #[track_caller]
    pub(crate) fn assert_ended(&mut self, line: &str) {
        self.rig.until_node(&self.bus.back("state"), "6");
        let line = self.log.line(line);
        let error = self.backend_says("error").unwrap_or_default();
        assert!(line.ends_with(&format!("fault={error}")), "{line} {error}");
        assert!(!error.is_empty(), "{line}");
        let holdings = self.rig.machine.holdings(DomId::DOM0);
        assert_eq!(holdings, self.honest_holdings, "{error}");
        self.assert_honest_served();
    }

    /// The hostile guest's device needs a reset, the backend says so in `line`, and it serves again
    /// after the reset.
    #[track_caller]
    pub(crate) fn assert_needs_reset(&mut self, disk: RawDisk, line: &str) {
        self.log.line(line);
        let status = self.guest.status(&mut self.rig, 0);
        assert!(status.contains(Status::NEEDS_RESET), "{status:?}");
        self.assert_state("4");
        self.reset();
        let pool = disk.into_empty_pool();
        let mut again = RawDisk::bring_up(&mut self.rig, &mut self.guest, 0, pool);
        assert_serves(&mut self.rig, &mut self.guest, &mut again);
        self.assert_honest_served();
    }

    /// The hostile guest resets its device.
    #[track_caller]
    pub(crate) fn reset(&mut self) {
        let none = Status::empty();
        let status = self.guest.set_status(&mut self.rig, 0, none);
        assert_eq!(status, none);
    }

    /// The honest guest reads.
    #[track_caller]
    pub(crate) fn assert_honest_served(&mut self) {
        assert_serves(&mut self.rig, &mut self.honest, &mut self.disk);
    }

    /// What the honest guest reads; its memory keeps it.
    #[track_caller]
    pub(crate) fn honest_reads(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let (block, data) = self.disk.take(len as usize);
        let status = self.disk.read_request(0, sector, data, len);
        let (rig, guest) = (&mut self.rig, &mut self.honest);
        assert_eq!(outcome(rig, guest, &mut self.disk, status), 0);
        let bytes = self.disk.read(data, len);
        self.disk.pool.give_back(block);
        bytes
    }

    /// The hostile guest reads.
    #[track_caller]
    pub(crate) fn assert_hostile_served(&mut self, disk: &mut RawDisk) {
        assert_serves(&mut self.rig, &mut self.guest, disk);
    }

    /// The hostile guest's domain ends: the honest guest goes on, and nothing is left.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.assert_honest_served();
        drop(self.guest);
        let guest = self.bus.guest;
        let hypervisor = self.rig.machine.hypervisor();
        hypervisor.destroy_domain(guest).unwrap();
        self.rig.until("the end of the domain", |rig| {
            (rig.machine.is_gone(guest) && rig.service().sessions() == 1).then_some(())
        });
        let machine = &self.rig.machine;
        assert_eq!(machine.holdings(DomId::DOM0), self.honest_holdings);
        assert_eq!(machine.lock_files().len(), 1, "{:?}", machine.lock_files());
        let root = "/local/domain/0/backend/virtio-msg";
        let left = self.rig.toolstack.list(root);
        assert_eq!(left, [self.honest.bus.guest.to_string()]);
        assert_serves(&mut self.rig, &mut self.honest, &mut self.disk);
    }
}

/// The disk answers a read with its bytes.
#[track_caller]
pub(crate) fn assert_serves(rig: &mut Rig, guest: &mut RawGuest, disk: &mut RawDisk) {
    let (block, data) = disk.take(512);
    let status = disk.read_request(0, 5, data, 512);
    assert_eq!(outcome(rig, guest, disk, status), 0);
    assert_eq!(disk.read(data, 512), pattern(5, 512));
    disk.pool.give_back(block);
}

/// Offers descriptor 0, waits until it is used, and gives the byte at `status`.
#[track_caller]
pub(crate) fn outcome(rig: &mut Rig, guest: &mut RawGuest, disk: &mut RawDisk, status: u64) -> u8 {
    let before = disk.used();
    disk.offer(guest, 0);
    rig.until("a used buffer", |_| (disk.used() != before).then_some(()));
    disk.read(status, 1)[0]
}
