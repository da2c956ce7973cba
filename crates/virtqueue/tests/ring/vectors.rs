//! The byte vectors of a 513-byte read request: both sides produce and accept exactly these bytes.

use virtqueue::{Chain, DeviceQueue, DriverQueue, QueueLayout, QueueState, Used};

use crate::rig::{BASE, Rig, WITH_EVENT_IDX, segment};
use virtqueue::RingFeatures;

const LAYOUT: QueueLayout = QueueLayout {
    size: 4,
    desc: BASE,
    avail: BASE + 0x40,
    used: BASE + 0x80,
};
const DATA: [u8; 16] = [0, 0x20, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 1, 0];
const STATUS: [u8; 16] = [0, 0x30, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0];
const HEADER: [u8; 16] = [0, 0x10, 0, 0, 0, 0, 1, 0, 0x10, 0, 0, 0, 1, 0, 0, 0];
const AVAIL: [u8; 14] = [0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const WRAPPED_AVAIL: [u8; 14] = [0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 2, 0, 0xff, 0xff];
const INDIRECT: [u8; 16] = [0, 0x40, 0, 0, 0, 0, 1, 0, 0x30, 0, 0, 0, 4, 0, 0, 0];
const TABLE: [u8; 48] = [
    0, 0x10, 0, 0, 0, 0, 1, 0, 0x10, 0, 0, 0, 1, 0, 1, 0, //
    0, 0x20, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 3, 0, 2, 0, //
    0, 0x30, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0,
];

fn used_of_first() -> Vec<u8> {
    let mut used = vec![0, 0, 1, 0, 2, 0, 0, 0, 1, 2, 0, 0];
    used.extend([0; 24]);
    used.extend([1, 0]);
    used
}

fn used_after_wrap() -> Vec<u8> {
    let mut used = vec![0, 0, 0, 0];
    for head in 0..3 {
        used.extend([head, 0, 0, 0, 1, 0, 0, 0]);
    }
    used.extend([2, 0, 0, 0, 1, 2, 0, 0]);
    used.extend([0, 0]);
    used
}

fn rig_with_chain() -> Rig {
    let rig = Rig::with_layout(LAYOUT);
    rig.write(LAYOUT.desc, &DATA);
    rig.write(LAYOUT.desc + 16, &STATUS);
    rig.write(LAYOUT.desc + 32, &HEADER);
    rig
}

fn assert_is_the_request(chain: &Chain) {
    assert_eq!(chain.head(), 2);
    assert_eq!(chain.readable(), [segment(BASE + 0x1000, 16)]);
    assert_eq!(
        chain.writable(),
        [segment(BASE + 0x2000, 512), segment(BASE + 0x3000, 1)]
    );
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 513));
    assert_eq!(chain.refusal(), None);
}

#[test]
fn device_serves_the_first_request() {
    let rig = rig_with_chain();
    let mut device = rig.device(WITH_EVENT_IDX);
    let mut chain = Chain::new();
    assert!(!device.pop(&rig.space, &mut chain).unwrap());

    rig.write(LAYOUT.avail, &AVAIL);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert_is_the_request(&chain);
    assert!(!device.rearm());
    device.push_used(2, 513).unwrap();
    assert!(device.publish());
    assert_eq!(rig.read(LAYOUT.used, 38), used_of_first());
}

#[test]
fn device_serves_a_request_across_the_wrap() {
    let rig = rig_with_chain();
    let state = QueueState {
        size: 4,
        next_avail: 0xfffc,
        next_used: 0xfffc,
        in_flight: vec![],
    };
    let mut device = DeviceQueue::from_state(&rig.space, LAYOUT, WITH_EVENT_IDX, &state).unwrap();
    let mut chain = Chain::new();
    rig.descriptors(0, &[(BASE, 1, 2, 0), (BASE, 1, 2, 0), (BASE, 1, 2, 0)]);
    rig.set_avail_idx(0xfffc);
    rig.offer(&[0, 1, 2]);
    for head in 0..3 {
        assert!(device.pop(&rig.space, &mut chain).unwrap());
        device.push_used(head, 1).unwrap();
    }
    assert!(device.publish());

    rig.write(LAYOUT.desc, &DATA);
    rig.write(LAYOUT.desc + 16, &STATUS);
    rig.write(LAYOUT.desc + 32, &HEADER);
    rig.write(LAYOUT.avail, &WRAPPED_AVAIL);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert_is_the_request(&chain);
    device.push_used(2, 513).unwrap();
    assert!(device.publish());
    assert!(!device.rearm());
    assert_eq!(rig.read(LAYOUT.used, 38), used_after_wrap());
}

#[test]
fn device_serves_the_indirect_request() {
    let rig = Rig::with_layout(LAYOUT);
    let features = RingFeatures {
        indirect: true,
        event_idx: true,
    };
    let mut device = rig.device(features);
    let mut chain = Chain::new();
    rig.write(LAYOUT.desc + 32, &INDIRECT);
    rig.write(BASE + 0x4000, &TABLE);
    rig.write(LAYOUT.avail, &AVAIL);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert_is_the_request(&chain);
}

/// A driver that has used descriptors in such an order that 2, 0, 1 come next.
fn driver_with_2_0_1_free(rig: &Rig, features: RingFeatures) -> DriverQueue {
    let mut driver = DriverQueue::new(&rig.space, LAYOUT, features).unwrap();
    for head in 0..3 {
        assert_eq!(driver.add(&[], &[segment(BASE, 1)]), Ok(head));
    }
    driver.publish();
    for (position, head) in (0..).zip([1, 0, 2]) {
        rig.set_used_element(position, head, 1);
    }
    rig.set_used_idx(3);
    while driver.pop_used().unwrap().is_some() {}
    driver
}

#[test]
fn driver_writes_the_chain_and_takes_it_back() {
    let rig = Rig::with_layout(LAYOUT);
    let mut driver = driver_with_2_0_1_free(&rig, WITH_EVENT_IDX);
    let head = driver.add(
        &[segment(BASE + 0x1000, 16)],
        &[segment(BASE + 0x2000, 512), segment(BASE + 0x3000, 1)],
    );
    assert_eq!(head, Ok(2));
    assert_eq!(rig.read(LAYOUT.desc, 16), DATA);
    assert_eq!(rig.read(LAYOUT.desc + 16, 16), STATUS);
    assert_eq!(rig.read(LAYOUT.desc + 32, 16), HEADER);
    assert_eq!(rig.u16_at(LAYOUT.avail + 4 + 2 * 3), 2);
    assert_eq!(rig.avail_idx(), 3, "not published yet");
    driver.publish();
    assert_eq!(rig.avail_idx(), 4);

    rig.set_used_element(3, 2, 513);
    rig.set_used_idx(4);
    assert_eq!(driver.pop_used(), Ok(Some(Used { head: 2, len: 513 })));
    assert_eq!(driver.pop_used(), Ok(None));
}

#[test]
fn driver_clears_the_ring_first() {
    let rig = Rig::with_layout(LAYOUT);
    rig.write(BASE, &[0xff; 0x100]);
    DriverQueue::new(&rig.space, LAYOUT, WITH_EVENT_IDX).unwrap();
    assert_eq!(rig.read(LAYOUT.desc, 64), [0; 64]);
    assert_eq!(rig.read(LAYOUT.avail, 14), [0; 14]);
    assert_eq!(rig.read(LAYOUT.used, 38), [0; 38]);
    assert_eq!(rig.read(LAYOUT.avail + 14, 1), [0xff]);
    assert_eq!(rig.read(LAYOUT.used + 38, 1), [0xff]);
}

#[test]
fn driver_writes_the_first_request_into_a_fresh_available_ring() {
    let rig = Rig::with_layout(LAYOUT);
    let mut driver = DriverQueue::new(&rig.space, LAYOUT, WITH_EVENT_IDX).unwrap();
    driver.add(&[segment(BASE + 0x1000, 16)], &[]).unwrap();
    assert!(driver.publish());
    let mut first = AVAIL;
    first[4] = 0;
    assert_eq!(rig.read(LAYOUT.avail, 14), first);
}

#[test]
fn driver_writes_the_indirect_request() {
    let rig = Rig::with_layout(LAYOUT);
    let features = RingFeatures {
        indirect: true,
        event_idx: true,
    };
    // Head 2 has the third table: of four entries each, it begins 128 bytes behind the first.
    let mut driver = driver_with_2_0_1_free(&rig, features)
        .with_indirect_tables(&rig.space, BASE + 0x4000 - 128, 3)
        .unwrap();
    let head = driver.add(
        &[segment(BASE + 0x1000, 16)],
        &[segment(BASE + 0x2000, 512), segment(BASE + 0x3000, 1)],
    );
    assert_eq!(head, Ok(2));
    assert_eq!(rig.read(LAYOUT.desc + 32, 16), INDIRECT);
    assert_eq!(rig.read(BASE + 0x4000, 48), TABLE);
    assert_eq!(driver.free(), 3);
}
