//! The driver's side of a split ring whose every byte a device may write.

#![no_main]

use std::collections::BTreeSet;

use guest_memory::{Access, Area, FlatSpace};
use libfuzzer_sys::fuzz_target;
use virtqueue::{DriverQueue, QueueLayout, RingFeatures, Segment};

const BASE: u64 = 1 << 48;
const BYTES: usize = 4096;
const SIZE: u16 = 8;

fuzz_target!(|data: &[u8]| {
    let area = Area::anonymous(BYTES).expect("memory");
    let memory = area
        .range(0, BYTES as u64, Access::Write)
        .expect("all of it");
    let space = FlatSpace::new(BASE, &area);
    let layout = QueueLayout::contiguous(BASE, SIZE);
    let features = RingFeatures {
        indirect: false,
        event_idx: true,
    };
    let mut queue = DriverQueue::new(&space, layout, features).expect("a sound layout");
    let mut offered = BTreeSet::new();
    let used = layout.used - BASE;
    for step in data.chunks_exact(6) {
        match step[0] % 4 {
            0 => {
                let buffer = [Segment {
                    addr: BASE + 2048,
                    len: 512,
                }];
                if let Ok(head) = queue.add(&buffer, &buffer) {
                    assert!(offered.insert(head), "a head twice");
                }
            }
            1 => {
                queue.publish();
            }
            2 => match queue.pop_used() {
                Ok(Some(used)) => assert!(offered.remove(&used.head), "never offered"),
                Ok(None) => {}
                Err(_) => {
                    assert!(queue.pop_used().is_err(), "a fault stays");
                    return;
                }
            },
            _ => {
                queue.rearm();
            }
        }
        // The device's turn: two bytes in the used ring, one bit in four anywhere.
        let offset = if step[1] & 3 == 0 {
            u64::from(u16::from_le_bytes([step[2], step[3]])) % (BYTES as u64 - 1)
        } else {
            used + u64::from(step[2] % 72)
        };
        memory.write(offset, &step[4..6]).expect("inside");
    }
});
