//! Data at grant addresses arrives where it belongs, however a chain is made up.

use backend::GrantBuffers;
use guest_memory::Access;
use tests::{GrantRequest, address, pattern};
use virtio_msg::Features;
use xen_types::PAGE_SIZE;

use super::{BOTH, OK, PAGE_SECTORS, World};

#[test]
fn what_is_written_is_read_again() {
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let mut disk = world.disk(Features(0));
        let read = GrantRequest::read(&world.guest, 8, 1);
        assert_eq!(world.run(&mut disk, &read), 4097);
        assert_eq!(read.status(), OK);
        assert!(read.bytes() == pattern(8, PAGE_SIZE));

        let write = GrantRequest::write(&world.guest, 16, 3);
        write.fill(&pattern(1000, 3 * PAGE_SIZE));
        assert_eq!(world.run(&mut disk, &write), 1);
        assert_eq!(write.status(), OK);
        let again = GrantRequest::read(&world.guest, 16, 3);
        world.run(&mut disk, &again);
        assert!(again.bytes() == pattern(1000, 3 * PAGE_SIZE));
    }
}

/// A MiB in single pages: the indirect table lies in an area, the rest in grants.
#[test]
fn a_chain_may_name_areas_and_grants_and_be_long() {
    const PAGES: usize = 256;
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let mut pool = world.guest.share_pool(&mut world.rig, 1, 130);
        let disk = world.disk(Features::INDIRECT_DESC);
        let mut disk = disk.with_tables_in(&mut pool, 258);
        let write = GrantRequest::write(&world.guest, 0, PAGES);
        write.fill(&pattern(7, PAGES * PAGE_SIZE));
        world.run(&mut disk, &write);
        assert_eq!(write.status(), OK);
        let read = GrantRequest::read(&world.guest, 0, PAGES);
        assert_eq!(world.run(&mut disk, &read), (1 << 20) + 1);
        assert!(read.bytes() == pattern(7, PAGES * PAGE_SIZE));
    }
}

#[test]
fn indirect_tables_are_copied_from_their_grant() {
    let mut world = World::new(GrantBuffers::Copied);
    let page = world.guest.grant(1, Access::Read);
    let disk = world.disk(Features::INDIRECT_DESC);
    let mut disk = disk.with_tables_at(address(page.refs[0], 0), &page.area);
    let read = GrantRequest::read(&world.guest, 24, 1);
    assert_eq!(world.run(&mut disk, &read), 4097);
    assert!(read.bytes() == pattern(24, PAGE_SIZE));
}

/// Together they need twice the room there is: what finds none waits, and is served.
#[test]
fn requests_wait_for_room() {
    const REQUESTS: usize = 8;
    const PAGES: usize = 256;
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let mut pool = world.guest.share_pool(&mut world.rig, 1, 130);
        let disk = world.disk(Features::INDIRECT_DESC);
        let mut disk = disk.with_tables_in(&mut pool, 258);
        let requests: Vec<_> = (0..REQUESTS)
            .map(|_| GrantRequest::read(&world.guest, 0, 1))
            .collect();
        for request in &requests {
            // The same page again and again: the last part of the MiB stays in it.
            let (readable, writable) = request.segments();
            let mut long = vec![writable[0]; PAGES];
            long.push(writable[1]);
            disk.add_raw(&readable, &long);
        }
        disk.kick(&mut world.guest);
        for _ in 0..REQUESTS {
            assert_eq!(disk.finish(&mut world.rig).len, (1 << 20) + 1);
        }
        let last = (PAGES as u64 - 1) * PAGE_SECTORS;
        for request in &requests {
            assert_eq!(request.status(), OK);
            assert!(request.bytes() == pattern(last, PAGE_SIZE));
        }
    }
}
