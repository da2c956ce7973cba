//! Areas that cannot be mapped.
//!
//! Attack: It shares areas that make no sense: ids and sizes out of bounds, references that are not
//! granted or are granted for reading only, directories that loop or name what is not granted; one
//! bad reference at each place of a good area.
//!
//! Outcome: The request is refused with its result (binding section 6), whatever was mapped of the
//! area before the bad reference is unmapped, and the id and its pages are free again.
//!
//! Class: 3 (XSA-361, XSA-365), 7 (XSA-411)

use guest_memory::Access;
use xen_bus::messages::{AreaResult, AreaShare, ShareFlags};
use xen_types::{DomId, GrantRef};

use crate::rig::stage::Stage;

const LINE: &str = "WARN area refused id=domain … bus 0 why=…";

#[test]
fn areas_that_make_no_sense_are_refused_and_nothing_is_mapped() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let before = stage.rig.machine.holdings(DomId::DOM0);
    let share = |area_id, page_count, first| AreaShare {
        area_id,
        flags: ShareFlags::DEVICE_WRITE,
        page_count,
        first: GrantRef(first),
    };
    for (message, result) in [
        (share(0, 1, 8), AreaResult::REFUSED),
        (share(0x8000, 1, 8), AreaResult::REFUSED),
        (share(1, 0, 8), AreaResult::REFUSED),
        (share(1, u32::MAX, 8), AreaResult::NO_ROOM),
        (share(1, 4097, 8), AreaResult::NO_ROOM),
        (share(1, 1, 0), AreaResult::REFUSED),
        (share(1, 1, 4_000_000_000), AreaResult::REFUSED),
    ] {
        assert_eq!(
            stage.guest.share(&mut stage.rig, message),
            result,
            "{message:?}"
        );
        assert_eq!(
            stage.rig.machine.holdings(DomId::DOM0),
            before,
            "{message:?}"
        );
    }
    assert_eq!(stage.guest.unshare(&mut stage.rig, 1), AreaResult::REFUSED);
    stage.log.line(LINE);
    stage.finish();
}

#[test]
fn a_directory_that_names_what_is_not_granted_maps_nothing() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let before = stage.rig.machine.holdings(DomId::DOM0);
    let directory = stage.guest.grant(1, Access::Read);
    let range = directory.area.range(0, 4096, Access::Write).unwrap();
    // A next page that is the directory itself, and data pages from nowhere.
    let mut words = vec![directory.refs[0].0.to_le_bytes()];
    words.extend((0..1023_u32).map(|word| (word + 70_000).to_le_bytes()));
    range.write(0, &words.concat()).unwrap();
    let message = AreaShare {
        area_id: 1,
        flags: ShareFlags::empty(),
        page_count: 2000,
        first: directory.refs[0],
    };
    let result = stage.guest.share(&mut stage.rig, message);
    assert_eq!(result, AreaResult::REFUSED);
    assert_eq!(stage.rig.machine.holdings(DomId::DOM0), before);
    stage.log.line(LINE);
    stage.finish();
}

/// Pages of the area in which one reference is bad: more than one turn's work.
const PAGES: usize = 300;

/// A directory of `PAGES` pages whose entry `at` is `bad`, shared.
fn share_with(stage: &mut Stage, at: usize, bad: GrantRef) -> AreaResult {
    let data = stage.guest.grant(PAGES, Access::Write);
    let directory = stage.guest.grant(1, Access::Read);
    let mut words = vec![0; 1];
    words.extend(data.refs.iter().map(|gref| gref.0));
    words[1 + at] = bad.0;
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let range = directory.area.range(0, 4096, Access::Write).unwrap();
    range.write(0, &bytes).unwrap();
    let message = AreaShare {
        area_id: 1,
        flags: ShareFlags::DEVICE_WRITE,
        page_count: u32::try_from(PAGES).unwrap(),
        first: directory.refs[0],
    };
    let result = stage.guest.share(&mut stage.rig, message);
    // Nothing of it is mapped: all can be taken back at once.
    data.revoke().unwrap();
    directory.revoke().unwrap();
    result
}

#[test]
fn one_bad_reference_at_any_place_leaves_nothing_mapped() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let before = stage.rig.machine.holdings(DomId::DOM0);
    let read_only = stage.guest.grant(1, Access::Read);
    for at in [0, 1, 127, 254, 255, 256, 257, PAGES - 1] {
        for bad in [0, 7, 32_768, u32::MAX]
            .map(GrantRef)
            .into_iter()
            .chain([read_only.refs[0]])
        {
            assert_eq!(
                share_with(&mut stage, at, bad),
                AreaResult::REFUSED,
                "{at} {bad}"
            );
            assert_eq!(
                stage.rig.machine.holdings(DomId::DOM0),
                before,
                "{at} {bad}"
            );
        }
    }
    let line = stage.log.line(LINE);
    assert!(line.contains("domain 2"), "{line}");
    stage.guest.share_pool(&mut stage.rig, 1, PAGES);
    stage.finish();
}
