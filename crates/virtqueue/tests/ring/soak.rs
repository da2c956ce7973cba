//! Both sides against each other for many requests.

use std::collections::VecDeque;

use virtqueue::{Chain, DriverQueue, RingFeatures};

use crate::rig::{BASE, PLAIN, Rig, TABLES, WITH_EVENT_IDX, segment};

const REQUESTS: u32 = 200_000;

/// Keeps the ring as full as it gets, returns chains in changing order and batches, and polls no
/// side that did not ask for it: a side runs only when it was notified or found more on re-arming.
fn run(size: u16, features: RingFeatures) {
    let rig = Rig::new(size);
    let mut driver = DriverQueue::new(&rig.space, rig.layout, features).unwrap();
    if features.indirect {
        driver = driver.with_indirect_tables(&rig.space, TABLES, 4).unwrap();
    }
    let mut device = rig.device(features);
    let mut chain = Chain::new();
    let mut taken: VecDeque<(u16, u32)> = VecDeque::new();
    let mut expected = vec![None; size.into()];
    let (mut sent, mut served, mut done) = (0, 0, 0);
    let (mut kicked, mut signalled) = (false, true);
    while done < REQUESTS {
        if std::mem::take(&mut signalled) {
            loop {
                while let Some(used) = driver.pop_used().unwrap() {
                    let len = expected[usize::from(used.head)].take();
                    assert_eq!(len, Some(used.len), "head {}", used.head);
                    done += 1;
                }
                if !driver.rearm() {
                    break;
                }
            }
            let readable = [segment(BASE, 16)];
            while sent < REQUESTS {
                let len = 1 + sent % 1000;
                let writable = [segment(BASE + u64::from(len), len)];
                // A ring of two holds either of both sides in turn.
                let readable = &readable[..usize::from(sent % 3 != 0)];
                let Ok(head) = driver.add(readable, &writable) else {
                    break;
                };
                assert_eq!(expected[usize::from(head)].replace(len), None);
                sent += 1;
            }
            kicked |= driver.publish();
        }
        if std::mem::take(&mut kicked) {
            loop {
                while device.pop(&rig.space, &mut chain).unwrap() {
                    let len = u32::try_from(chain.writable_len()).unwrap();
                    assert_eq!(chain.writable()[0].addr, BASE + u64::from(len));
                    taken.push_back((chain.head(), len));
                    served += 1;
                }
                if !device.rearm() {
                    break;
                }
            }
        }
        assert!(!taken.is_empty() || signalled || done == REQUESTS, "stuck");
        for turn in 0..=served % 3 {
            let next = if (served + turn) % 2 == 0 {
                taken.pop_front()
            } else {
                taken.pop_back()
            };
            if let Some((head, len)) = next {
                device.push_used(head, len).unwrap();
            }
        }
        signalled |= device.publish();
    }
    assert_eq!((sent, served), (REQUESTS, REQUESTS));
    assert_eq!(u32::from(rig.used_idx()), REQUESTS % 65536);
    assert_eq!(u32::from(rig.avail_idx()), REQUESTS % 65536);
    assert_eq!((device.in_flight(), driver.free()), (0, size));
}

#[test]
fn r02_200000_requests_through_2() {
    run(2, PLAIN);
}

#[test]
fn r02_200000_requests_through_4() {
    run(4, PLAIN);
}

#[test]
fn r02_200000_requests_through_256() {
    run(256, PLAIN);
}

#[test]
fn r02_200000_requests_through_2_with_event_idx() {
    run(2, WITH_EVENT_IDX);
}

#[test]
fn r02_200000_requests_through_4_with_event_idx() {
    run(4, WITH_EVENT_IDX);
}

#[test]
fn r02_200000_requests_through_256_with_event_idx() {
    run(256, WITH_EVENT_IDX);
}

#[test]
fn r02_200000_indirect_requests_through_4_with_event_idx() {
    run(
        4,
        RingFeatures {
            indirect: true,
            event_idx: true,
        },
    );
}
