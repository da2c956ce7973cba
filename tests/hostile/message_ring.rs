//! A message ring whose other side lies (binding sections 4 and 6, virtio-msg section 2.5).

use tests::Random;
use virtio_msg::wire::{BusMessage, DevNum, Frame, Request};
use xen_bus::messages::{AreaResult, AreaShare, ShareFlags};
use xen_types::{DomId, GrantRef};

use crate::stage::{Stage, assert_serves};

/// Words of the ring that the frontend writes (section 4).
const PRODUCER: u64 = 64;
const CONSUMER: u64 = 256;
/// Slots of the raw guest's ring in each direction.
const SLOTS: usize = 16;

#[test]
fn a_producer_index_that_is_impossible_ends_the_instance() {
    let mut stage = Stage::new();
    let _disk = stage.hostile_disk();
    stage.guest.scribble(PRODUCER, 0x8000_0000);
    stage.guest.notify();
    stage.assert_ended(&["ring", "index"]);
}

#[test]
fn a_consumer_index_that_is_impossible_ends_the_instance() {
    let mut stage = Stage::new();
    let _disk = stage.hostile_disk();
    stage.guest.scribble(CONSUMER, 0x8000_0000);
    // It is looked at when the slots known to be free are used up.
    for _ in 0..=SLOTS {
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(0),
            token,
            request: Request::GetDeviceStatus,
        });
        stage.rig.settle();
    }
    stage.assert_ended(&["ring", "index"]);
}

#[test]
fn frames_that_are_none_are_discarded() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let mut random = Random::seeded(3);
    for round in 0..200 {
        let len = 1 + random.below(264);
        let bytes: Vec<u8> = (0..len)
            .map(|_| u8::try_from(random.below(256)).unwrap())
            .collect();
        stage.guest.send_bytes(&bytes);
        if round % 8 == 0 {
            stage.rig.settle();
            stage.guest.receive();
        }
        // Random bytes may be a request to device 0; anything but a broken bound is legal.
        if stage.backend_says("state").as_deref() != Some("4") {
            panic!("{:?}", stage.backend_says("error"));
        }
    }
    stage.rig.settle();
    stage.guest.receive();
    let status = stage.guest.status(&mut stage.rig, 0);
    if status.contains(virtio_msg::Status::DRIVER_OK) {
        assert_serves(&mut stage.rig, &mut stage.guest, &mut disk);
    }
    stage.assert_honest_served();
}

#[test]
fn a_guest_that_takes_no_answers_ends_at_its_bound() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    // Slots of the ring in each direction; answers fill one, the private memory another.
    for _ in 0..1000 {
        if stage.backend_says("state").as_deref() != Some("4") {
            break;
        }
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(0),
            token,
            request: Request::GetDeviceInfo,
        });
        stage.rig.settle();
    }
    stage.assert_ended(&[]);
    let error = stage.backend_says("error").unwrap();
    assert!(!error.is_empty());
}

#[test]
fn pings_and_strange_devices_do_no_harm() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    for _ in 0..50 {
        let token = stage.guest.token();
        let message = BusMessage::Ping { data: 7 };
        stage
            .guest
            .ask(&mut stage.rig, &Frame::Bus { token, message }, token);
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(9),
            token,
            request: Request::GetDeviceInfo,
        });
    }
    stage.rig.settle();
    assert_eq!(stage.backend_says("state").as_deref(), Some("4"));
    stage.assert_honest_served();
}

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
    stage.assert_honest_served();
}

#[test]
fn a_directory_that_names_what_is_not_granted_maps_nothing() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    let before = stage.rig.machine.holdings(DomId::DOM0);
    let directory = stage.guest.grant(1, guest_memory::Access::Read);
    let range = directory
        .area
        .range(0, 4096, guest_memory::Access::Write)
        .unwrap();
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
    stage.assert_honest_served();
}

#[test]
fn an_area_that_is_toggled_without_end_starves_nobody() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    for _ in 0..50 {
        let pool = stage.guest.share_pool(&mut stage.rig, 7, 300);
        assert_eq!(stage.guest.unshare(&mut stage.rig, 7), AreaResult::DONE);
        drop(pool);
    }
    stage.assert_honest_served();
}

#[test]
fn a_guest_that_vanishes_is_let_go() {
    let mut stage = Stage::new();
    let _disk = stage.hostile_disk();
    stage.guest.drop_link();
    let guest = stage.bus.guest;
    stage
        .rig
        .machine
        .hypervisor()
        .destroy_domain(guest)
        .unwrap();
    stage.rig.until("the end of it", |rig| {
        rig.machine.is_gone(guest).then_some(())
    });
    assert_eq!(stage.backend_says("state"), None);
    stage.assert_honest_served();
}
