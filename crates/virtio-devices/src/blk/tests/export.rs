//! A queue that moves from one device to another, as at a restart of the backend.

use std::collections::BTreeMap;

use proptest::prelude::*;
use virtqueue::{DeviceQueue, QueueLayout, RingFeatures};

use super::rig::{BASE, Call, Disk, GUARD, IN, OK, OUT, Rig, Setup, config, pattern};
use crate::{DeviceEvent, DeviceModel, Engine};

const SECTORS: usize = 64;
const SIZE: u16 = 8;

/// What may happen between two exports.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver offers a request.
    Offer,
    /// The device has a turn of so many buffers.
    Turn(usize),
    /// The disk answers one call that waits.
    Answer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Offer),
        2 => (1usize..5).prop_map(Step::Turn),
        2 => Just(Step::Answer),
    ];
    proptest::collection::vec(step, 1..24)
}

/// Offers writes of distinct sectors, moves the queue to a fresh device after step `at`, and lets
/// the driver's memory lie about our indexes meanwhile.
fn move_after(steps: &[Step], at: usize, event_idx: bool) {
    let disk = Disk::slow(SECTORS);
    let ring = RingFeatures {
        event_idx,
        ..RingFeatures::default()
    };
    let setup = Setup {
        size: SIZE,
        ring,
        ..Setup::default()
    };
    let mut rig = Rig::over(&disk, &config(1), setup);
    let layout = QueueLayout::contiguous(BASE, SIZE);
    disk.close_gate();
    let mut status = BTreeMap::new();
    let mut sector = 0;
    for (done, step) in steps.iter().enumerate() {
        if done == at {
            // The gate opens: a stop waits for what is in flight.
            disk.open_gate();
            rig.blk.stop_queue(0);
            rig.run_until(|rig| rig.stopped(0).is_some());
            let state = rig.stopped(0).unwrap().clone();
            assert!(state.in_flight.is_empty());
            assert_eq!(state.next_avail, state.next_used);
            // What the device wrote is the driver's to overwrite; our indexes do not come from it.
            rig.put(
                layout.used + 2,
                &state.next_used.wrapping_add(3).to_le_bytes(),
            );
            let moved = DeviceQueue::from_state(&rig.space, layout, ring, &state).unwrap();
            rig.put(layout.used + 2, &state.next_used.to_le_bytes());
            rig.blk = disk.device(&config(1), &Engine::new().unwrap());
            rig.events
                .retain(|event| !matches!(event, DeviceEvent::Stopped(..)));
            rig.start(0, moved);
            disk.close_gate();
        }
        match *step {
            Step::Offer if rig.drivers[0].offered() < 2 => {
                let data = rig.buffer_with(&[u8::try_from(sector).unwrap() + 1; 512]);
                let (_, byte) = rig.request(0, OUT, sector, Some(data), None);
                status.insert(sector, byte);
                sector += 1;
            }
            Step::Offer => {}
            Step::Turn(budget) => {
                rig.poll(budget);
            }
            Step::Answer => disk.let_one_pass(),
        }
    }
    disk.open_gate();
    rig.run();
    assert_eq!(rig.used.len(), status.len());
    assert_eq!(disk.count(Call::Write), status.len(), "each exactly once");
    let mut expected = pattern(SECTORS * 512);
    for (sector, byte) in status {
        assert_eq!(rig.get(byte), [OK]);
        let start = usize::try_from(sector).unwrap() * 512;
        expected[start..start + 512].fill(u8::try_from(sector).unwrap() + 1);
    }
    assert!(disk.state().bytes == expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn r21_a_queue_moves_between_any_two_steps_and_each_request_completes_once(
        steps in steps(),
        event_idx: bool,
    ) {
        for at in 0..steps.len() {
            move_after(&steps, at, event_idx);
        }
    }
}

#[test]
fn r21_what_the_driver_does_to_the_used_ring_moves_no_index() {
    let disk = Disk::new(pattern(SECTORS * 512));
    let setup = Setup {
        size: SIZE,
        ..Setup::default()
    };
    let mut rig = Rig::over(&disk, &config(1), setup);
    let layout = QueueLayout::contiguous(BASE, SIZE);
    for index in [0u16, 1, 7, 0x8000, 0xffff] {
        rig.put(layout.used + 2, &index.to_le_bytes());
        let back = rig.buffer(512);
        let status = rig.buffer(1);
        let header = rig.header(IN, 5);
        rig.drivers[0].add(&[header], &[back, status]).unwrap();
        rig.drivers[0].publish();
        rig.blk.kick(0);
        assert_eq!(rig.get(status), [GUARD]);
        rig.run();
        assert_eq!(rig.get(status), [OK]);
    }
    rig.blk.stop_queue(0);
    rig.poll(1);
    let state = rig.stopped(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (5, 5));
}
