//! The driver side: what it refuses to send, and devices that break the ring's rules.

use virtqueue::{
    AddError, DriverFault, DriverQueue, MAX_INDIRECT_ENTRIES, RingFeatures, Segment, SetupError,
    Used,
};

use crate::rig::{BASE, PLAIN, Rig, TABLES, WITH_EVENT_IDX, WITH_INDIRECT, segment};

fn driver(rig: &Rig, features: RingFeatures) -> DriverQueue {
    DriverQueue::new(&rig.space, rig.layout, features).unwrap()
}

fn bytes(count: usize) -> Vec<Segment> {
    vec![segment(BASE, 1); count]
}

#[test]
fn chains_that_a_device_need_not_accept_are_not_sent() {
    let rig = Rig::new(4);
    let mut queue = driver(&rig, PLAIN);
    assert_eq!(queue.add(&[], &[]), Err(AddError::Empty));
    let empty = segment(0x77, 0);
    assert_eq!(
        queue.add(&bytes(1), &[empty]),
        Err(AddError::EmptySegment { addr: 0x77 })
    );
    let most = segment(BASE, u32::MAX);
    assert_eq!(
        queue.add(&[most], &bytes(2)),
        Err(AddError::TooManyBytes {
            bytes: (1 << 32) + 1
        })
    );
    assert_eq!(
        queue.add(&bytes(5), &[]),
        Err(AddError::TooLong { needed: 5 })
    );
    assert_eq!((queue.free(), queue.offered()), (4, 0));
    assert!(!queue.publish());
    queue.add(&[most], &bytes(1)).unwrap();
    assert_eq!(
        queue.add(&bytes(1), &bytes(2)),
        Err(AddError::Full { needed: 3, free: 2 })
    );
    queue.add(&bytes(1), &bytes(1)).unwrap();
    assert_eq!(queue.free(), 0);
}

#[test]
fn every_descriptor_comes_back() {
    let rig = Rig::new(8);
    let mut queue = driver(&rig, PLAIN);
    for round in 0..50u16 {
        let mut heads = Vec::new();
        for count in [1 + usize::from(round % 3), 3, 2] {
            heads.push(queue.add(&bytes(1), &bytes(count - 1)).unwrap());
        }
        queue.publish();
        heads.rotate_left(usize::from(round % 3));
        let start = round * 3;
        for (position, &head) in (start..).zip(&heads) {
            rig.set_used_element(position, head.into(), 0);
        }
        rig.set_used_idx(start + 3);
        for head in heads {
            assert_eq!(queue.pop_used(), Ok(Some(Used { head, len: 0 })));
        }
        assert_eq!((queue.free(), queue.offered()), (8, 0));
    }
    assert!(queue.add(&bytes(8), &[]).is_ok());
}

#[test]
fn indirect_tables_take_one_descriptor_each() {
    let rig = Rig::new(2);
    let mut queue = driver(&rig, WITH_INDIRECT)
        .with_indirect_tables(&rig.space, TABLES, 8)
        .unwrap();
    queue.add(&bytes(4), &bytes(4)).unwrap();
    assert_eq!(queue.free(), 1);
    assert_eq!(
        queue.add(&bytes(4), &bytes(5)),
        Err(AddError::TooLong { needed: 9 })
    );
    queue.add(&bytes(1), &[]).unwrap();
    assert_eq!(queue.free(), 0);
    assert_eq!(
        queue.add(&bytes(8), &[]),
        Err(AddError::Full { needed: 1, free: 0 })
    );
}

#[test]
fn indirect_tables_are_not_used_unless_negotiated() {
    let rig = Rig::new(4);
    let mut queue = driver(&rig, PLAIN)
        .with_indirect_tables(&rig.space, TABLES, 8)
        .unwrap();
    queue.add(&bytes(1), &bytes(2)).unwrap();
    assert_eq!(queue.free(), 1);
}

#[test]
fn indirect_tables_must_be_in_reach() {
    let rig = Rig::new(4);
    let bytes = DriverQueue::indirect_table_bytes(4, 8);
    assert_eq!(bytes, 4 * 8 * 16);
    let end = BASE + crate::rig::BYTES;
    let exactly = end - u64::from(bytes);
    assert!(
        driver(&rig, WITH_INDIRECT)
            .with_indirect_tables(&rig.space, exactly, 8)
            .is_ok()
    );
    assert!(matches!(
        driver(&rig, WITH_INDIRECT).with_indirect_tables(&rig.space, exactly + 16, 8),
        Err(SetupError::Tables { addr, .. }) if addr == exactly + 16
    ));
    assert_eq!(
        driver(&rig, WITH_INDIRECT)
            .with_indirect_tables(&rig.space, TABLES + 8, 8)
            .unwrap_err(),
        SetupError::MisalignedTables { addr: TABLES + 8 }
    );
    assert_eq!(DriverQueue::indirect_table_bytes(4, 5), bytes);
    assert_eq!(
        DriverQueue::indirect_table_bytes(32768, u16::MAX),
        32768 * u32::from(MAX_INDIRECT_ENTRIES) * 16
    );
}

#[test]
fn used_index_that_jumps_faults() {
    for (idx, offered) in [(2, 1), (3, 1), (0x8000, 1), (0xffff, 1)] {
        let rig = Rig::new(4);
        let mut queue = driver(&rig, PLAIN);
        queue.add(&bytes(1), &[]).unwrap();
        queue.publish();
        // Added, but the device cannot know of it.
        queue.add(&bytes(1), &[]).unwrap();
        rig.set_used_idx(idx);
        let fault = DriverFault::UsedJump {
            idx,
            next: 0,
            offered,
        };
        assert_eq!(queue.pop_used(), Err(fault));
        rig.set_used_idx(1);
        assert_eq!(queue.pop_used(), Err(fault), "latched");
        assert_eq!(queue.faulted(), Some(&fault));
        assert_eq!(queue.add(&bytes(1), &[]), Err(AddError::Stopped(fault)));
        assert!(!queue.publish());
        assert_eq!(rig.avail_idx(), 1);
    }
}

#[test]
fn used_id_that_is_not_offered_faults() {
    // 0 is the head of two descriptors, 1 its second; 2 is free; 4 and up do not exist.
    for id in [1, 2, 3, 4, 0x1_0000, u32::MAX] {
        let rig = Rig::new(4);
        let mut queue = driver(&rig, PLAIN);
        queue.add(&bytes(1), &bytes(1)).unwrap();
        queue.publish();
        rig.set_used_element(0, id, 0);
        rig.set_used_idx(1);
        assert_eq!(queue.pop_used(), Err(DriverFault::NotOffered { id }));
    }
}

#[test]
fn head_returned_twice_faults() {
    let rig = Rig::new(4);
    let mut queue = driver(&rig, PLAIN);
    queue.add(&bytes(1), &[]).unwrap();
    queue.add(&bytes(1), &[]).unwrap();
    queue.publish();
    rig.set_used_element(0, 1, 0);
    rig.set_used_element(1, 1, 0);
    rig.set_used_idx(2);
    assert_eq!(queue.pop_used(), Ok(Some(Used { head: 1, len: 0 })));
    assert_eq!(queue.pop_used(), Err(DriverFault::NotOffered { id: 1 }));
}

#[test]
fn length_is_never_more_than_the_writable_part() {
    for (readable, writable, said, seen) in [
        (16, 0, 1, 0),
        (16, 513, 513, 513),
        (16, 513, 514, 513),
        (16, 513, u32::MAX, 513),
        (0, u32::MAX, u32::MAX, u32::MAX),
    ] {
        let rig = Rig::new(4);
        let mut queue = driver(&rig, PLAIN);
        let part = |len| {
            if len == 0 {
                vec![]
            } else {
                vec![segment(BASE, len)]
            }
        };
        let head = queue.add(&part(readable), &part(writable)).unwrap();
        queue.publish();
        rig.set_used_element(0, head.into(), said);
        rig.set_used_idx(1);
        assert_eq!(queue.pop_used(), Ok(Some(Used { head, len: seen })));
    }
}

#[test]
fn device_that_rewrites_the_drivers_memory_does_not_reach_the_driver() {
    let rig = Rig::new(8);
    let mut queue = driver(&rig, PLAIN);
    let head = queue.add(&bytes(2), &bytes(2)).unwrap();
    queue.publish();
    let (table, avail) = (rig.layout.desc, rig.layout.avail);
    rig.write(table, &[0xff; 128]);
    rig.write(avail, &[0xff; 22]);
    rig.set_used_element(0, head.into(), 1);
    rig.set_used_idx(1);
    assert_eq!(queue.pop_used(), Ok(Some(Used { head, len: 1 })));
    assert_eq!(queue.free(), 8);
    queue.add(&bytes(4), &bytes(4)).unwrap();
    queue.publish();
    assert_eq!(rig.avail_idx(), 2);
}

#[test]
fn r12_device_flags_count_without_event_idx() {
    let rig = Rig::new(8);
    let mut queue = driver(&rig, PLAIN);
    for (flags, kick) in [(0, true), (1, false), (0xfffe, true)] {
        rig.set_u16(rig.layout.used, flags);
        queue.add(&bytes(1), &[]).unwrap();
        assert_eq!(queue.publish(), kick);
    }
}

#[test]
fn r12_device_event_field_counts_with_event_idx() {
    let rig = Rig::new(8);
    let avail_event = rig.layout.used + 4 + 8 * 8;
    let mut queue = driver(&rig, WITH_EVENT_IDX);
    let mut kicks = Vec::new();
    for event in [0x4000, 0, 2, 2, 4] {
        rig.set_u16(rig.layout.used, 1);
        rig.set_u16(avail_event, event);
        queue.add(&bytes(1), &[]).unwrap();
        kicks.push(queue.publish());
    }
    assert_eq!(kicks, [true, false, true, false, true]);
}

#[test]
fn batch_is_published_at_once_and_kicks_once() {
    let rig = Rig::new(8);
    let avail_event = rig.layout.used + 4 + 8 * 8;
    let mut queue = driver(&rig, WITH_EVENT_IDX);
    queue.add(&bytes(1), &[]).unwrap();
    assert!(queue.publish());
    rig.set_u16(avail_event, 2);
    for _ in 0..3 {
        queue.add(&bytes(1), &[]).unwrap();
        assert_eq!(rig.avail_idx(), 1);
    }
    assert!(queue.publish(), "entry 2 is inside of the batch");
    assert_eq!(rig.avail_idx(), 4);
    assert!(!queue.publish(), "nothing new");
}

#[test]
fn r12_driver_asks_by_flags_or_by_event_field() {
    let rig = Rig::new(4);
    let mut queue = driver(&rig, PLAIN);
    queue.add(&bytes(1), &[]).unwrap();
    queue.publish();
    queue.disarm();
    assert_eq!(rig.u16_at(rig.layout.avail), 1);
    rig.set_used_idx(1);
    assert!(queue.rearm(), "one came back in the meantime");
    assert_eq!(rig.u16_at(rig.layout.avail), 0);
    queue.pop_used().unwrap().unwrap();
    assert!(!queue.rearm());

    let rig = Rig::new(4);
    let used_event = rig.layout.avail + 4 + 2 * 4;
    let mut queue = driver(&rig, WITH_EVENT_IDX);
    queue.add(&bytes(1), &[]).unwrap();
    queue.publish();
    queue.disarm();
    assert_eq!(rig.u16_at(rig.layout.avail), 0, "must stay 0");
    rig.set_used_idx(1);
    queue.pop_used().unwrap().unwrap();
    assert!(!queue.rearm());
    assert_eq!(rig.u16_at(used_event), 1);
}
