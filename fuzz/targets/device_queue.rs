//! The device's side of a split ring in memory that is all the driver's.

#![no_main]

use std::collections::BTreeSet;

use guest_memory::{Access, AddressSpace, Area, FlatSpace};
use libfuzzer_sys::fuzz_target;
use virtqueue::{Chain, DeviceQueue, QueueLayout, RingFeatures};

const BASE: u64 = 1 << 48;
const BYTES: usize = 8192;
const SIZE: u16 = 8;

fuzz_target!(|data: &[u8]| {
    let [features, data @ ..] = data else { return };
    let area = Area::anonymous(BYTES).expect("memory");
    let all = area
        .range(0, BYTES as u64, Access::Write)
        .expect("all of it");
    let image = &data[..data.len().min(BYTES)];
    all.write(0, image).expect("inside");
    let space = FlatSpace::new(BASE, &area);
    let features = RingFeatures {
        indirect: features & 1 != 0,
        event_idx: features & 2 != 0,
    };
    let layout = QueueLayout::contiguous(BASE, SIZE);
    let mut queue = DeviceQueue::new(&space, layout, features).expect("a sound layout");
    let mut chain = Chain::new();
    let mut in_flight = BTreeSet::new();
    loop {
        match queue.pop(&space, &mut chain) {
            Ok(true) => {}
            Ok(false) => break,
            Err(_) => {
                assert!(queue.faulted().is_some());
                assert_eq!(queue.pop(&space, &mut chain), Ok(false), "a fault stays");
                return;
            }
        }
        assert!(in_flight.insert(chain.head()), "a head twice");
        assert!(in_flight.len() <= usize::from(SIZE));
        for segment in chain.readable() {
            let _ = space.translate(segment.addr, segment.len, Access::Read);
        }
        for segment in chain.writable() {
            if let Ok(range) = space.translate(segment.addr, segment.len, Access::Write) {
                range
                    .zero(0, range.len() as u64)
                    .expect("what was translated");
            }
        }
        if chain.head() & 1 != 0 {
            in_flight.remove(&chain.head());
            if queue.push_used(chain.head(), u32::MAX).is_err() {
                return;
            }
            queue.publish();
        }
        queue.rearm();
    }
});
