//! Refusals without end.
//!
//! Attack: It asks for thousands of areas and queues that cannot be, and breaks its queue over and
//! over, each of which the backend would tell the user.
//!
//! Outcome: Each is refused; the log takes 64 lines a minute about one bus, says so, and counts the
//! rest (binding section 10). Lines about other guests are not held back.
//!
//! Class: 5 (XSA-349)

use backend::GUEST_LINES_PER_PERIOD;
use tests::RawDisk;
use virtqueue::QueueLayout;
use xen_bus::messages::{AreaResult, AreaShare, ShareFlags};
use xen_types::GrantRef;

use crate::rig::log::Text;
use crate::rig::stage::Stage;

const LINE: &str = "WARN 64 lines in a minute: more are counted, not written id=domain … bus 0";
/// When the next minute begins, or the guest is gone.
const SUPPRESSED: &str = "WARN … more lines suppressed id=domain … bus 0";

/// Lines about the hostile guest are at most those of two periods, whichever the clock saw, with
/// what is said when lines are held back.
#[track_caller]
fn assert_bounded(log: &Text) {
    let lines = log.lines().into_iter();
    let about = lines.filter(|line| line.contains("id=domain 2 ")).count();
    let bound = 2 * (GUEST_LINES_PER_PERIOD as usize + 2) + 2;
    assert!(about <= bound, "{about} lines");
    log.line(LINE);
}

#[test]
fn refused_areas() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    for number in 0..1000 {
        let message = AreaShare {
            area_id: 1,
            flags: ShareFlags::CONSECUTIVE,
            page_count: 1,
            first: GrantRef(4_000_000_000 + number),
        };
        let result = stage.guest.share(&mut stage.rig, message);
        assert_eq!(result, AreaResult::REFUSED);
    }
    assert_bounded(&stage.log);
    finish(stage);
}

#[test]
fn refused_queues() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    RawDisk::negotiate(&mut stage.rig, &mut stage.guest, 0);
    for number in 1..1000 {
        let layout = QueueLayout::contiguous(number << 48, 8);
        RawDisk::set_queue(&mut stage.rig, &mut stage.guest, 0, layout);
    }
    assert_bounded(&stage.log);
    finish(stage);
}

#[test]
fn broken_queues() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    for _ in 0..200 {
        disk.offer(&mut stage.guest, RawDisk::SIZE);
        stage.rig.settle();
        stage.reset();
        let pool = disk.into_empty_pool();
        disk = RawDisk::bring_up(&mut stage.rig, &mut stage.guest, 0, pool);
    }
    assert_bounded(&stage.log);
    finish(stage);
}

/// With the guest goes its count.
fn finish(stage: Stage) {
    let text = stage.log.clone();
    stage.finish();
    text.line(SUPPRESSED);
}
