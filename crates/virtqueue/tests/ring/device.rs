//! The device side against drivers that break the ring's rules.

use virtqueue::{Chain, ChainRefusal, DescriptorAt, QueueFault};

use crate::rig::{BASE, NEXT, PLAIN, Rig, WITH_EVENT_IDX, WRITE, segment};

/// `count` chains of one writable byte each, at heads 0, 1, ...
fn fill_singles(rig: &Rig, count: u16) {
    for index in 0..count {
        rig.descriptors(index, &[(BASE + u64::from(index), 1, WRITE, 0)]);
    }
}

#[test]
fn r03_full_ring_is_served() {
    for size in [1, 2, 4, 256] {
        let rig = Rig::new(size);
        fill_singles(&rig, size);
        let mut device = rig.device(PLAIN);
        let mut chain = Chain::new();
        rig.offer(&(0..size).collect::<Vec<_>>());
        for head in 0..size {
            assert!(device.pop(&rig.space, &mut chain).unwrap());
            assert_eq!(chain.head(), head);
        }
        assert!(!device.pop(&rig.space, &mut chain).unwrap());
        assert_eq!(device.in_flight(), size);
    }
}

#[test]
fn r03_jump_beyond_the_size_faults() {
    for size in [1, 2, 4, 256, 32768] {
        for idx in [size + 1, 0x8001, 0xffff] {
            let rig = Rig::new(size);
            let mut device = rig.device(PLAIN);
            rig.set_avail_idx(idx);
            let fault = QueueFault::AvailJump { idx, next: 0, size };
            assert_eq!(
                device.pop(&rig.space, &mut Chain::new()).unwrap_err(),
                fault
            );
            assert_eq!(device.faulted(), Some(&fault));
        }
    }
}

#[test]
fn r03_index_that_steps_back_faults() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    rig.offer(&[0, 1]);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    rig.set_avail_idx(1);
    assert_eq!(
        device.pop(&rig.space, &mut chain).unwrap_err(),
        QueueFault::AvailJump {
            idx: 1,
            next: 2,
            size: 4
        }
    );
}

#[test]
fn more_chains_than_descriptors_fault() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    rig.offer(&[0, 1, 2]);
    for _ in 0..3 {
        assert!(device.pop(&rig.space, &mut chain).unwrap());
    }
    device.push_used(0, 1).unwrap();
    // Head 0 is not published as used, so the driver cannot know that it has it back.
    rig.offer(&[3, 0]);
    assert_eq!(
        device.pop(&rig.space, &mut chain).unwrap_err(),
        QueueFault::TooManyOutstanding {
            outstanding: 3,
            new: 2,
            size: 4
        }
    );
}

#[test]
fn full_turnover_of_the_largest_ring_is_no_fault() {
    let rig = Rig::new(32768);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    for head in 0..32768 {
        rig.descriptors(head, &[(BASE, 1, WRITE, 0)]);
    }
    for _ in 0..2 {
        rig.offer(&(0..32768).collect::<Vec<_>>());
        while device.pop(&rig.space, &mut chain).unwrap() {}
        assert_eq!(device.in_flight(), 32768);
        for head in 0..32768 {
            device.push_used(head, 0).unwrap();
        }
        device.publish();
    }
    assert_eq!(rig.used_idx(), 0);
}

#[test]
fn r04_last_head_works_and_one_beyond_faults() {
    let size = 8;
    for head in [size, size + 1, 32768, 65535] {
        let rig = Rig::new(size);
        let mut device = rig.device(PLAIN);
        let mut chain = Chain::new();
        rig.descriptors(size - 1, &[(BASE, 1, WRITE, 0)]);
        rig.offer(&[size - 1, head]);
        assert!(device.pop(&rig.space, &mut chain).unwrap());
        assert_eq!(chain.head(), size - 1);
        assert_eq!(
            device.pop(&rig.space, &mut chain).unwrap_err(),
            QueueFault::HeadOutOfRange { head, size }
        );
    }
}

#[test]
fn head_given_twice_faults() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    rig.offer(&[2, 2]);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert_eq!(
        device.pop(&rig.space, &mut chain).unwrap_err(),
        QueueFault::HeadInFlight { head: 2 }
    );
}

#[test]
fn head_comes_again_after_its_return() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    for _ in 0..10 {
        rig.offer(&[2]);
        assert!(device.pop(&rig.space, &mut chain).unwrap());
        device.push_used(2, 1).unwrap();
        assert!(device.publish());
    }
}

#[test]
fn r05_chain_of_exactly_n_works_and_loops_fault() {
    for size in [1, 2, 4, 256] {
        let rig = Rig::new(size);
        for index in 0..size {
            let flags = if index + 1 < size { NEXT } else { 0 };
            rig.descriptors(index, &[(BASE, 1, flags, index + 1)]);
        }
        assert_eq!(rig.judge(PLAIN).unwrap().readable_len(), u64::from(size));
    }
    let size = 8;
    for length in [1, 2, size] {
        let rig = Rig::new(size);
        for index in 0..length {
            rig.descriptors(index, &[(BASE, 1, NEXT, (index + 1) % length)]);
        }
        assert_eq!(
            rig.judge(PLAIN).unwrap_err(),
            QueueFault::Loop {
                head: 0,
                entries: size
            }
        );
    }
}

#[test]
fn r06_link_outside_is_ignored_without_next_and_faults_with_it() {
    for next in [4, 5, 0x8000, 0xffff] {
        let rig = Rig::new(4);
        rig.descriptors(0, &[(BASE, 7, 0, next)]);
        assert_eq!(rig.judge(PLAIN).unwrap().readable(), [segment(BASE, 7)]);

        let rig = Rig::new(4);
        rig.descriptors(0, &[(BASE, 7, NEXT, next)]);
        assert_eq!(
            rig.judge(PLAIN).unwrap_err(),
            QueueFault::NextOutOfRange {
                at: DescriptorAt::Ring(0),
                next,
                entries: 4
            }
        );
    }
}

#[test]
fn r07_readable_after_writable_faults() {
    for len in [0, 1] {
        let rig = Rig::new(4);
        rig.descriptors(
            0,
            &[
                (BASE, 1, NEXT, 1),
                (BASE, len, NEXT | WRITE, 2),
                (BASE, len, 0, 0),
            ],
        );
        assert_eq!(
            rig.judge(PLAIN).unwrap_err(),
            QueueFault::ReadableAfterWritable {
                at: DescriptorAt::Ring(2)
            }
        );
    }
}

#[test]
fn empty_elements_are_skipped_and_unknown_flags_ignored() {
    let rig = Rig::new(8);
    let odd = 0xfff8;
    rig.descriptors(
        0,
        &[
            (0, 0, NEXT | odd, 1),
            (BASE + 1, 1, NEXT | odd, 2),
            (0, 0, NEXT, 3),
            (0, 0, NEXT | WRITE, 4),
            (BASE + 2, 2, NEXT | WRITE | odd, 5),
            (0, 0, WRITE, 0),
        ],
    );
    let chain = rig.judge(PLAIN).unwrap();
    assert_eq!(chain.readable(), [segment(BASE + 1, 1)]);
    assert_eq!(chain.writable(), [segment(BASE + 2, 2)]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (1, 2));
}

#[test]
fn chain_of_nothing_is_a_chain() {
    let rig = Rig::new(4);
    rig.descriptors(0, &[(0, 0, 0, 0)]);
    let chain = rig.judge(PLAIN).unwrap();
    assert!(chain.readable().is_empty() && chain.writable().is_empty());
    assert_eq!(chain.refusal(), None);
}

#[test]
fn addresses_are_not_judged_by_the_ring() {
    let rig = Rig::new(4);
    rig.descriptors(0, &[(u64::MAX, u32::MAX, WRITE, 0)]);
    assert_eq!(
        rig.judge(PLAIN).unwrap().writable(),
        [segment(u64::MAX, u32::MAX)]
    );
}

#[test]
fn more_than_4_gib_are_refused_and_the_ring_goes_on() {
    let rig = Rig::new(4);
    rig.descriptors(
        0,
        &[
            (BASE, u32::MAX, NEXT, 1),
            (BASE, 1, WRITE, 0),
            (BASE, u32::MAX, NEXT, 3),
            (BASE, 2, WRITE, 0),
        ],
    );
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    rig.offer(&[2, 0]);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert_eq!(
        chain.refusal(),
        Some(ChainRefusal::TooManyBytes {
            bytes: (1 << 32) + 1
        })
    );
    assert_eq!(chain.writable(), [segment(BASE, 2)], "for a status");
    device.push_used(chain.head(), 0).unwrap();

    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert_eq!(chain.refusal(), None);
    assert_eq!(chain.readable_len() + chain.writable_len(), 1 << 32);
}

#[test]
fn r12_driver_flags_count_without_event_idx() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    for (flags, notify) in [(0, true), (1, false), (0xfffe, true)] {
        rig.set_avail_flags(flags);
        // The event field would say the opposite.
        rig.set_used_event(if notify { 0x4000 } else { rig.used_idx() });
        rig.offer(&[0]);
        assert!(device.pop(&rig.space, &mut chain).unwrap());
        device.push_used(0, 1).unwrap();
        assert_eq!(device.publish(), notify);
    }
}

#[test]
fn r12_event_field_counts_with_event_idx() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(WITH_EVENT_IDX);
    let mut chain = Chain::new();
    let mut serve = || {
        rig.offer(&[0]);
        assert!(device.pop(&rig.space, &mut chain).unwrap());
        device.push_used(0, 1).unwrap();
        device.publish()
    };
    rig.set_used_event(0x4000);
    assert!(serve(), "the first one after a start");
    rig.set_avail_flags(0);
    assert!(!serve());
    rig.set_avail_flags(1);
    rig.set_used_event(2);
    assert!(serve());
    assert!(!serve());
}

#[test]
fn r12_device_asks_by_flags_or_by_event_field() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    device.disarm();
    assert_eq!(rig.used_flags(), 1);
    rig.offer(&[0]);
    assert!(device.rearm(), "one came in the meantime");
    assert_eq!(rig.used_flags(), 0);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert!(!device.rearm());
    assert_eq!(rig.avail_event(), 0);

    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(WITH_EVENT_IDX);
    device.disarm();
    assert_eq!(rig.used_flags(), 0, "must stay 0 with EVENT_IDX");
    rig.offer(&[0, 1]);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert_eq!(rig.avail_event(), 0, "not moved while active");
    assert!(device.rearm());
    assert_eq!(rig.avail_event(), 1);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert!(!device.rearm());
    assert_eq!(rig.avail_event(), 2);
}

#[test]
fn r13_looking_without_reason_has_no_effect() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    let before = rig.read(rig.layout.used, 38);
    for _ in 0..5 {
        assert!(!device.pop(&rig.space, &mut chain).unwrap());
        assert!(!device.publish());
    }
    assert_eq!(rig.read(rig.layout.used, 38), before);
    rig.offer(&[3]);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert!(!device.pop(&rig.space, &mut chain).unwrap());
}

#[test]
fn r14_one_publication_per_batch() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    rig.offer(&[0, 1, 2]);
    while device.pop(&rig.space, &mut chain).unwrap() {
        device.push_used(chain.head(), 1).unwrap();
        assert_eq!(rig.used_idx(), 0);
    }
    assert!(device.publish());
    assert_eq!(rig.used_idx(), 3);
    assert!(!device.publish(), "nothing new");
}

#[test]
fn r15_fault_is_told_once_and_latches() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    rig.set_avail_idx(9);
    let fault = device.pop(&rig.space, &mut chain).unwrap_err();

    rig.set_avail_idx(1);
    let before = rig.read(BASE, 256);
    assert!(!device.pop(&rig.space, &mut chain).unwrap());
    assert!(!device.rearm());
    device.disarm();
    assert!(!device.publish());
    assert_eq!(device.faulted(), Some(&fault));
    assert_eq!(rig.read(BASE, 256), before);

    let mut revived = rig.device(PLAIN);
    assert!(revived.pop(&rig.space, &mut chain).unwrap());
}

#[test]
fn r16_chains_in_flight_at_a_fault_are_returned() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    let mut chain = Chain::new();
    rig.offer(&[0, 1, 7]);
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    assert!(device.pop(&rig.space, &mut chain).unwrap());
    device.pop(&rig.space, &mut chain).unwrap_err();
    assert_eq!(device.in_flight(), 2, "the bad one is not in flight");
    device.push_used(1, 1).unwrap();
    device.push_used(0, 1).unwrap();
    assert!(device.publish());
    assert_eq!(rig.used_idx(), 2);
    assert_eq!(rig.used_element(0), (1, 1));
    assert_eq!(rig.used_element(1), (0, 1));
}

#[test]
fn r22_head_is_returned_exactly_once() {
    let rig = Rig::new(4);
    fill_singles(&rig, 4);
    let mut device = rig.device(PLAIN);
    rig.offer(&[1]);
    assert!(device.pop(&rig.space, &mut Chain::new()).unwrap());
    for head in [0, 2, 4, 65535] {
        assert_eq!(
            device.push_used(head, 1),
            Err(QueueFault::NotInFlight { head })
        );
    }
    device.push_used(1, 1).unwrap();
    assert_eq!(
        device.push_used(1, 1),
        Err(QueueFault::NotInFlight { head: 1 })
    );
    assert!(device.publish());
    assert_eq!(rig.used_idx(), 1);
    assert_eq!(device.faulted(), None, "not the driver's mistake");
}
