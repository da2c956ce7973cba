//! What a request at grant addresses costs in hypercalls, by copies and by mappings.

use backend::GrantBuffers;
use guest_memory::Access;
use tests::{GrantDisk, GrantRequest, address};
use virtio_msg::Features;
use xen_hal::hosted::Counters;

use super::{OK, World};

/// Requests that take no I/O, so that all end in the drain that takes them.
fn drain(world: &mut World, disk: &mut GrantDisk, depth: u64) -> Counters {
    let before = world.counters();
    let requests: Vec<_> = (0..depth)
        .map(|_| GrantRequest::get_id(&world.guest))
        .collect();
    for request in &requests {
        disk.add(request);
    }
    disk.kick(&mut world.guest);
    for _ in 0..depth {
        disk.finish(&mut world.rig);
    }
    assert!(requests.iter().all(|request| request.status() == OK));
    world.counters().since(&before)
}

#[test]
fn indirect_tables_of_a_drain_take_one_copy_call_more() {
    let mut world = World::new(GrantBuffers::Copied);
    let page = world.guest.grant(1, Access::Read);
    let disk = world.disk(Features::INDIRECT_DESC);
    let mut disk = disk.with_tables_at(address(page.refs[0], 0), &page.area);
    for depth in [1, 2, 32, 64] {
        let counted = drain(&mut world, &mut disk, depth);
        assert_eq!(counted.grant_copy_calls, 3, "at depth {depth}");
        // Table and header in, serial and status out.
        assert_eq!(counted.grant_copy_segments, 4 * depth, "at depth {depth}");
    }
}

#[test]
fn a_drain_is_one_copy_call_each_way() {
    let mut world = World::new(GrantBuffers::Copied);
    let mut disk = world.disk(Features(0));
    let before = world.counters();
    for depth in [1, 2, 16] {
        let counted = drain(&mut world, &mut disk, depth);
        assert_eq!(counted.grant_copy_calls, 2, "at depth {depth}");
        // Header in, serial and status out.
        assert_eq!(counted.grant_copy_segments, 3 * depth, "at depth {depth}");
    }
    let counted = world.counters().since(&before);
    assert_eq!((counted.grant_map_calls, counted.grant_unmap_calls), (0, 0));
}

#[test]
fn mapping_takes_a_call_and_a_page_for_each_segment_and_leaves_none() {
    let mut world = World::new(GrantBuffers::Mapped);
    let mut disk = world.disk(Features(0));
    let (before, mapped) = (world.counters(), world.mapped());
    let requests: Vec<_> = (0..16)
        .map(|_| GrantRequest::get_id(&world.guest))
        .collect();
    for request in &requests {
        disk.add(request);
    }
    disk.kick(&mut world.guest);
    for request in &requests {
        // The mapping is gone before the used element is there.
        disk.finish(&mut world.rig);
        assert_eq!(request.status(), OK);
    }
    assert_eq!(world.mapped(), mapped);
    let counted = world.counters().since(&before);
    let calls = (counted.grant_map_calls, counted.grant_unmap_calls);
    let pages = (counted.grant_map_pages, counted.grant_unmap_pages);
    assert_eq!((calls, pages), ((48, 48), (48, 48)));
    assert_eq!(counted.grant_copy_calls, 0);
}
