//! What is not granted, or not so, costs its request, or its queue, and nothing else.

use std::time::Duration;

use backend::GrantBuffers;
use guest_memory::{Access, Area};
use tests::{GrantDisk, GrantRequest, Random, RawDisk, address, pattern};
use virtio_msg::{Features, Status};
use virtqueue::{QueueLayout, Segment};
use xen_hal::GrantedPages;
use xen_types::{GrantRef, PAGE_SIZE};

use super::{BOTH, IOERR, NO_STATUS, OK, PAGE_SECTORS, RING_PAGES, World};

#[test]
fn an_indirect_table_that_is_not_granted_needs_a_reset() {
    let mut world = World::new(GrantBuffers::Copied);
    let disk = world.disk(Features::INDIRECT_DESC);
    let private = Area::anonymous(PAGE_SIZE).unwrap();
    let mut disk = disk.with_tables_at(address(GrantRef(32_768), 0), &private);
    let request = GrantRequest::read(&world.guest, 24, 1);
    disk.add(&request);
    disk.kick(&mut world.guest);
    world.rig.settle();
    assert!(world.status().contains(Status::NEEDS_RESET));
    assert_eq!((request.status(), disk.used()), (NO_STATUS, None));
}

/// Each part of a request that the guest takes back, or never granted so.
#[test]
fn what_is_not_granted_fails_the_request_and_nothing_else() {
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let mut disk = world.disk(Features(0));
        let revoked = |request: GrantRequest| {
            let (readable, writable) = request.segments();
            let GrantRequest { control, data, .. } = request;
            data.revoke().unwrap();
            (control, readable, writable)
        };
        for request in [
            GrantRequest::read(&world.guest, 0, 1),
            GrantRequest::write(&world.guest, 0, 1),
        ] {
            let (control, readable, writable) = revoked(request);
            disk.add_raw(&readable, &writable);
            disk.kick(&mut world.guest);
            disk.finish(&mut world.rig);
            assert_eq!(status_of(&control), IOERR, "{buffers:?}");
        }

        // Only readable, but to be written.
        let read = GrantRequest::read(&world.guest, 0, 1);
        let read = read.with_data(world.guest.grant(1, Access::Read));
        world.run(&mut disk, &read);
        assert_eq!(read.status(), IOERR, "{buffers:?}");
        assert!(read.bytes().iter().all(|byte| *byte == 0));

        // Others are served as ever.
        let fine = GrantRequest::read(&world.guest, 8, 1);
        world.run(&mut disk, &fine);
        assert!(fine.bytes() == pattern(8, PAGE_SIZE));
        assert!(!world.status().contains(Status::NEEDS_RESET));
    }
}

#[test]
fn a_status_byte_that_cannot_be_written_needs_a_reset() {
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let mut disk = world.disk(Features(0));
        let request = GrantRequest::read(&world.guest, 0, 1);
        let (readable, mut writable) = request.segments();
        let read_only = world.guest.grant(1, Access::Read);
        writable.last_mut().unwrap().addr = address(read_only.refs[0], 0);
        disk.add_raw(&readable, &writable);
        disk.kick(&mut world.guest);
        assert_eq!(disk.finish(&mut world.rig).len, 0, "{buffers:?}");
        assert!(world.status().contains(Status::NEEDS_RESET));
    }
}

/// The guest takes data pages back at any moment: each request ends well or with an error, the
/// device goes on, and nothing stays.
#[test]
fn pages_revoked_under_io_cost_their_request_alone() {
    const REQUESTS: u64 = 12;
    let mut random = Random::seeded(9);
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let base = world.mapped();
        let mut disk = world.disk(Features(0));
        let mut failed = 0;
        for _ in 0..20 {
            let mut controls = Vec::new();
            let mut doomed = Vec::new();
            for at in 0..REQUESTS {
                let sector = at * PAGE_SECTORS;
                let request = match random.below(2) {
                    0 => GrantRequest::read(&world.guest, sector, 2),
                    _ => GrantRequest::write(&world.guest, sector, 2),
                };
                disk.add(&request);
                controls.push(request.control);
                doomed.push(request.data);
            }
            disk.kick(&mut world.guest);
            for data in doomed {
                if random.below(3) == 0 {
                    world.rig.service().turn(Some(Duration::ZERO)).unwrap();
                }
                data.revoke().unwrap();
            }
            for _ in 0..REQUESTS {
                disk.finish(&mut world.rig);
            }
            for control in controls {
                match status_of(&control) {
                    OK => {}
                    IOERR => failed += 1,
                    other => panic!("status {other}"),
                }
            }
        }
        assert!(failed > 0, "no page was revoked in time");
        assert!(!world.status().contains(Status::NEEDS_RESET));
        assert_eq!(world.mapped(), base + RING_PAGES, "{buffers:?}");
    }
}

/// Addresses at the edges of the form, as data of a request.
#[test]
fn addresses_of_no_granted_page_fail_the_request() {
    for buffers in BOTH {
        let mut world = World::new(buffers);
        let mut disk = world.disk(Features(0));
        let last = address(GrantRef(u32::MAX), 0);
        let good = world.guest.grant(1, Access::Write);
        let mut bad = vec![
            (0, 512),
            (1 << 48, 512),
            (u64::MAX, 512),
            (last, 4096),
            (last, 8192),
            (address(GrantRef(0), 0), 512),
            (address(GrantRef(32_768), 0), 512),
            // Its follower is not granted, or not to us.
            (address(good.refs[0], 3584), 1024),
            (address(good.refs[0], 0), !511),
        ];
        bad.extend((44..63).map(|bit| (address(good.refs[0], 0) | 1 << bit, 512)));
        for (addr, len) in bad {
            let request = GrantRequest::read(&world.guest, 0, 1);
            let (readable, mut writable) = request.segments();
            writable[0] = Segment { addr, len };
            disk.add_raw(&readable, &writable);
            disk.kick(&mut world.guest);
            disk.finish(&mut world.rig);
            assert_eq!(request.status(), IOERR, "{addr:#x} {len} {buffers:?}");
        }
        let fine = GrantRequest::read(&world.guest, 8, 1);
        assert_eq!(world.run(&mut disk, &fine), 4097);
    }
}

/// Addresses at the edges of the form, as parts of a ring.
#[test]
fn rings_lie_in_pages_that_are_granted_for_their_use() {
    let mut world = World::new(GrantBuffers::Copied);
    RawDisk::negotiate(&mut world.rig, &mut world.guest, 0);
    let base = world.mapped();
    let page = world.guest.grant(1, Access::Write);
    let read_only = world.guest.grant(1, Access::Read);
    let good = GrantDisk::layout(page.refs[0]);
    let in_read_only = GrantDisk::layout(read_only.refs[0]);
    let mut refused = vec![
        in_read_only,
        QueueLayout { desc: 0, ..good },
        QueueLayout {
            avail: u64::MAX - 1,
            ..good
        },
        QueueLayout {
            used: address(GrantRef(u32::MAX), 4092),
            ..good
        },
        QueueLayout {
            used: address(GrantRef(32_768), 0),
            ..good
        },
        // Beyond the page.
        QueueLayout {
            desc: address(page.refs[0], 4080),
            ..good
        },
    ];
    refused.extend((44..63).map(|bit| QueueLayout {
        used: good.used | 1 << bit,
        ..good
    }));
    for layout in refused {
        RawDisk::set_queue(&mut world.rig, &mut world.guest, 0, layout);
        assert!(!world.guest.is_enabled(&mut world.rig, 0, 0), "{layout:x?}");
        assert_eq!(world.mapped(), base);
    }
    // What the device only reads may be granted for reading.
    let mixed = QueueLayout {
        used: good.used,
        ..in_read_only
    };
    RawDisk::set_queue(&mut world.rig, &mut world.guest, 0, mixed);
    assert!(world.guest.is_enabled(&mut world.rig, 0, 0));
    assert_eq!(world.mapped(), base + RING_PAGES);
}

#[test]
fn without_the_feature_grant_addresses_mean_nothing() {
    let mut world = World::choosing(GrantBuffers::Copied, false);
    RawDisk::negotiate(&mut world.rig, &mut world.guest, 0);
    let page = world.guest.grant(1, Access::Write);
    let layout = GrantDisk::layout(page.refs[0]);
    RawDisk::set_queue(&mut world.rig, &mut world.guest, 0, layout);
    assert!(!world.guest.is_enabled(&mut world.rig, 0, 0));
    assert_eq!(world.counters().grant_copy_calls, 0);
}

fn status_of(control: &GrantedPages) -> u8 {
    let range = control.area.range(16, 1, Access::Read).unwrap();
    range.read_array::<1>(0).unwrap()[0]
}
