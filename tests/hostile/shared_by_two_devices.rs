//! Two devices that share an area, one of which is reset.
//!
//! Attack: Two devices of a guest use one area; it resets one while the other has I/O in it, and
//! asks for the area back at every step.
//!
//! Outcome: Areas belong to the instance (binding section 6): the reset ends the queue of one device
//! alone, the other's I/O completes, and the area goes when nobody's queue or chain names it.
//!
//! Line: none.
//!
//! Class: 3 (XSA-371), 7 (XSA-424)

use tests::{RawDisk, pattern};
use virtio_msg::Status;
use virtio_msg::wire::{DevNum, Frame, Request};
use xen_bus::messages::AreaResult;
use xen_types::DomId;

use crate::rig::stage::{POOL, Stage, assert_serves};

/// How often the first device is reset under the second one's I/O.
const ROUNDS: u64 = 20;

/// The first disk's queue and the second disk's data lie in area 1, the second one's queue in area 2.
struct Two {
    stage: Stage,
    first: RawDisk,
    second: RawDisk,
}

impl Two {
    fn new() -> Self {
        let mut stage = Stage::new();
        let line = stage.rig.disk_line("second.img", 64 << 10);
        stage.rig.toolstack.make_device(stage.bus, 1, &line);
        stage
            .rig
            .until_node(&stage.bus.device(1, "status"), "ready");
        let first = stage.hostile_disk();
        let pool = stage.guest.share_pool(&mut stage.rig, 2, POOL);
        let second = RawDisk::bring_up(&mut stage.rig, &mut stage.guest, 1, pool);
        Self {
            stage,
            first,
            second,
        }
    }

    fn unshare(&mut self, area: u16) -> AreaResult {
        self.stage.guest.unshare(&mut self.stage.rig, area)
    }

    fn mapped(&self) -> u32 {
        self.stage.rig.machine.holdings(DomId::DOM0).mapped
    }

    /// The second disk writes `data`, of area 1, while the first one is reset.
    fn reset_first_under_io(&mut self, sector: u64, data: u64) {
        let Self {
            stage,
            first,
            second,
        } = self;
        let written = pattern(500 + sector, 512);
        first.write(data, &written);
        let status = second.write_request(0, sector, data, 512);
        let before = second.used();
        second.offer(&mut stage.guest, 0);
        let token = stage.guest.token();
        let request = Request::SetDeviceStatus { status: 0 };
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(0),
            token,
            request,
        });
        stage.guest.answer(&mut stage.rig, token);
        let status_now = stage.guest.status(&mut stage.rig, 0);
        assert_eq!(status_now, Status::empty());
        stage
            .rig
            .until("a used buffer", |_| (second.used() != before).then_some(()));
        assert_eq!(second.read(status, 1), [0]);
        let image = std::fs::read(stage.rig.machine.file("second.img")).unwrap();
        let at = usize::try_from(sector).unwrap() * 512;
        assert_eq!(image[at..at + 512], written);
    }
}

#[test]
fn the_other_device_goes_on_and_the_area_stays_until_both_are_out() {
    let mut two = Two::new();
    let (_, data) = two.first.take(512);
    let before = two.mapped();
    for sector in 10..10 + ROUNDS {
        assert_eq!(two.unshare(1), AreaResult::BUSY);
        two.reset_first_under_io(sector, data);
        assert_eq!(two.mapped(), before);
        let layout = two.first.layout;
        let (rig, guest) = (&mut two.stage.rig, &mut two.stage.guest);
        // The same queue again, from its beginning.
        two.first.restart(rig, guest);
        assert_eq!(two.first.layout, layout);
        assert_serves(rig, guest, &mut two.first);
    }
    two.stage.reset();
    assert_eq!(two.unshare(2), AreaResult::BUSY);
    assert_eq!(two.unshare(1), AreaResult::DONE);
    assert_eq!(two.mapped(), before - u32::try_from(POOL).unwrap());
    // What names it now is an error of the request.
    let status = two.second.read_request(0, 5, data, 512);
    let (rig, guest) = (&mut two.stage.rig, &mut two.stage.guest);
    let found = crate::rig::stage::outcome(rig, guest, &mut two.second, status);
    assert_eq!(found, 1);
    assert_serves(rig, guest, &mut two.second);
    two.stage.log.assert_quiet();
    two.stage.finish();
}
