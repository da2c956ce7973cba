//! An area that is shared and unshared without end.
//!
//! Attack: It shares and unshares areas of one and of 300 pages in a loop, and asks for more areas
//! and more pages than it was offered.
//!
//! Outcome: At most 256 pages are mapped or unmapped in a turn; as many pages are unmapped as were
//! mapped, and at its limits (64 areas, 4,096 pages) it is told so (binding sections 6 and 10).
//!
//! Class: 3 (XSA-371), 5 (XSA-392)

use xen_bus::messages::{AreaResult, AreaShare, ShareFlags};
use xen_types::DomId;

use crate::rig::stage::Stage;

const LINE: &str =
    "WARN area refused id=domain … bus 0 why=64 areas are in use, max-areas allows no more";

#[test]
fn everything_that_was_mapped_is_unmapped() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let holdings = stage.rig.machine.holdings(DomId::DOM0);
    let before = stage.rig.machine.counters(DomId::DOM0);
    for (pages, rounds) in [(1_usize, 500_usize), (300, 30)] {
        let (_data, _directory, share) = stage.guest.grant_area(7, pages);
        for _ in 0..rounds {
            assert_eq!(stage.guest.share(&mut stage.rig, share), AreaResult::DONE);
            assert_eq!(stage.guest.unshare(&mut stage.rig, 7), AreaResult::DONE);
        }
    }
    assert_eq!(stage.rig.machine.holdings(DomId::DOM0), holdings);
    let after = stage.rig.machine.counters(DomId::DOM0);
    let mapped = after.grant_map_pages - before.grant_map_pages;
    assert!(mapped >= 500 + 30 * 300, "{mapped}");
    assert_eq!(mapped, after.grant_unmap_pages - before.grant_unmap_pages);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn limits_hold_whatever_is_given_back_in_between() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let before = stage.rig.machine.holdings(DomId::DOM0);
    let page = stage.guest.grant(1, guest_memory::Access::Write);
    let share = |area_id| AreaShare {
        area_id,
        flags: ShareFlags::DEVICE_WRITE | ShareFlags::CONSECUTIVE,
        page_count: 1,
        first: page.refs[0],
    };
    // The same page may be shared any number of times.
    for area_id in 1..=64 {
        let result = stage.guest.share(&mut stage.rig, share(area_id));
        assert_eq!(result, AreaResult::DONE);
    }
    for round in 0..100 {
        let result = stage.guest.share(&mut stage.rig, share(65));
        assert_eq!(result, AreaResult::NO_ROOM);
        assert_eq!(
            stage.guest.share(&mut stage.rig, share(64)),
            AreaResult::REFUSED
        );
        let area_id = 1 + round % 64;
        let result = stage.guest.unshare(&mut stage.rig, area_id);
        assert_eq!(result, AreaResult::DONE);
        let result = stage.guest.share(&mut stage.rig, share(area_id));
        assert_eq!(result, AreaResult::DONE);
        let mapped = stage.rig.machine.holdings(DomId::DOM0).mapped;
        assert_eq!(mapped, before.mapped + 64);
    }
    stage.log.line(LINE);
    stage.finish();
}
