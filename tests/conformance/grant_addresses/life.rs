//! How long pages at grant addresses stay mapped, and how many may be (binding sections 6 and 10).

use backend::GrantBuffers;
use guest_memory::Access;
use tests::{GrantRequest, RawDisk};
use virtio_msg::wire::Request;
use virtio_msg::{Features, Status};
use xen_bus::directory::{directory_pages, write_directory};
use xen_bus::keys::DEFAULT_MAX_AREA_PAGES;
use xen_bus::messages::{AreaResult, AreaShare, ShareFlags};

use super::{BOTH, RING_PAGES, World};

#[test]
fn a_ring_is_unmapped_when_its_reset_is_answered() {
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let base = world.mapped();
        for round in 0..20 {
            let mut disk = world.disk(Features::RING_RESET);
            assert_eq!(world.mapped(), base + RING_PAGES);
            // Writes that wait for the disk: FLUSH was not negotiated.
            let writes = [0, 1].map(|_| GrantRequest::write(&world.guest, 0, 1));
            for write in &writes {
                disk.add(write);
            }
            disk.kick(&mut world.guest);
            if round % 2 == 0 {
                let reset = Request::ResetVqueue { index: 0 };
                world.guest.request(&mut world.rig, 0, reset);
                assert_eq!(world.mapped(), base, "{buffers:?}");
            }
            let none = Status::empty();
            assert_eq!(world.guest.set_status(&mut world.rig, 0, none), none);
            assert_eq!(world.mapped(), base, "{buffers:?}");
            // What was taken back is the guest's: nobody holds a page of it.
            let granted = world.rig.machine.holdings(world.bus.guest).granted;
            let request = writes
                .iter()
                .map(|w| w.control.refs.len() + w.data.refs.len());
            let pages = 1 + u32::try_from(request.sum::<usize>()).unwrap();
            for write in writes {
                write.control.revoke().unwrap();
                write.data.revoke().unwrap();
            }
            disk.into_ring().revoke().unwrap();
            let left = world.rig.machine.holdings(world.bus.guest).granted;
            assert_eq!(left, granted - pages);
        }
    }
}

#[test]
fn states_2_and_6_hold_nothing_of_a_guest_with_grant_addresses() {
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let mut disk = world.disk(Features(0));
        let write = GrantRequest::write(&world.guest, 0, 1);
        disk.add(&write);
        disk.kick(&mut world.guest);
        world.guest.write("state", "5");
        world.rig.until_node(&world.bus.back("state"), "6");
        assert_eq!(world.mapped(), 0, "{buffers:?}");
    }
}

/// An area of `count` pages, all of them the same one.
fn share_one_page(world: &mut World, area_id: u16, count: usize) -> AreaResult {
    let page = world.guest.grant(1, Access::Write);
    let directory = world.guest.grant(directory_pages(count), Access::Read);
    let len = directory.area.len() as u64;
    let window = directory.area.range(0, len, Access::Write).unwrap();
    let refs = vec![page.refs[0]; count];
    write_directory(&refs, &directory.refs, window).unwrap();
    let share = AreaShare {
        area_id,
        flags: ShareFlags::DEVICE_WRITE,
        page_count: u32::try_from(count).unwrap(),
        first: directory.refs[0],
    };
    world.guest.share(&mut world.rig, share)
}

#[test]
fn rings_and_areas_share_the_pages_of_a_guest() {
    let mut world = World::new(GrantBuffers::Copied);
    let all = usize::try_from(DEFAULT_MAX_AREA_PAGES).unwrap();
    let left = all - RING_PAGES as usize;
    let disk = world.disk(Features(0));
    assert_eq!(share_one_page(&mut world, 1, left + 1), AreaResult::NO_ROOM);
    assert_eq!(share_one_page(&mut world, 1, left), AreaResult::DONE);

    // With a page less there is no room for the ring.
    let none = Status::empty();
    world.guest.set_status(&mut world.rig, 0, none);
    assert_eq!(share_one_page(&mut world, 2, 1), AreaResult::DONE);
    RawDisk::negotiate(&mut world.rig, &mut world.guest, 0);
    RawDisk::set_queue(&mut world.rig, &mut world.guest, 0, disk.ring_layout());
    assert!(!world.guest.is_enabled(&mut world.rig, 0, 0));
    assert_eq!(world.guest.unshare(&mut world.rig, 2), AreaResult::DONE);
    RawDisk::set_queue(&mut world.rig, &mut world.guest, 0, disk.ring_layout());
    assert!(world.guest.is_enabled(&mut world.rig, 0, 0));
}
