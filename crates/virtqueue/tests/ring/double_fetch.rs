//! A peer that rewrites everything while this side reads it. What comes out must fit one of
//! the values that stood there, never a mixture of two looks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use virtqueue::{Chain, DriverQueue, RingFeatures, Segment};

use crate::rig::{BASE, INDIRECT, NEXT, PLAIN, RawDescriptor, Rig, TABLES, WRITE, segment};

/// Rounds of the honest side. It goes on until it has seen both outcomes.
const ROUNDS: u32 = 5_000;

/// Readable segments are 16 or 17 bytes long, writable ones 32: length, flags and link stand in
/// one word, so each look must find them together.
const FORMS: [RawDescriptor; 5] = [
    (BASE + 0x1111, 16, 0, 0xffff),
    (BASE + 0x2222, 32, WRITE, 7),
    (BASE + 0x3333, 17, NEXT, 1),
    (BASE + 0x4444, 32, NEXT | WRITE, 1),
    (TABLES, 64, INDIRECT, 0),
];

fn assert_fits(segments: &[Segment], lens: &[u32]) {
    for segment in segments {
        assert!(FORMS.iter().any(|form| form.0 == segment.addr));
        assert!(lens.contains(&segment.len), "{segment:?} is a mixture");
    }
}

/// Runs `honest` against `hostile` in another thread until `honest` has seen good and bad.
fn duel(hostile: impl Fn(usize) + Sync, mut honest: impl FnMut() -> bool) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                hostile(round);
            }
        });
        let _stop = StopOnDrop(&stop);
        let (mut rounds, mut good, mut bad) = (0, 0, 0);
        while rounds < ROUNDS || good == 0 || bad == 0 {
            rounds += 1;
            *(if honest() { &mut good } else { &mut bad }) += 1;
        }
    });
}

/// Ends the hostile thread, also when an assertion ends this one.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn r17_device_uses_only_what_it_copied() {
    let rig = Rig::new(4);
    let features = RingFeatures {
        indirect: true,
        event_idx: true,
    };
    let form = |round: usize| FORMS[round % FORMS.len()];
    let hostile = |round: usize| {
        for entry in 0..4u16 {
            let step = round / 3 + usize::from(entry);
            rig.descriptors(entry, &[form(step)]);
            rig.table(TABLES + 16 * u64::from(entry), &[form(step + 1)]);
        }
        let head = [0, 1, 3, 4, 0xffff][round % 5];
        rig.set_u16(rig.layout.avail + 4, head);
        rig.set_avail_idx([1, 1, 2, 5][round % 4]);
        rig.set_used_event(u16::try_from(round % 0x1_0000).unwrap());
    };
    hostile(0);
    let mut chain = Chain::new();
    duel(hostile, || {
        let mut device = rig.device(features);
        let taken = match device.pop(&rig.space, &mut chain) {
            Ok(taken) => taken,
            Err(fault) => {
                assert_eq!(device.faulted(), Some(&fault));
                return false;
            }
        };
        assert!(taken, "the index is never 0");
        assert!(chain.head() < 4);
        assert!(chain.readable().len() + chain.writable().len() <= 8);
        assert_fits(chain.readable(), &[16, 17]);
        assert_fits(chain.writable(), &[32]);
        let sum: u64 = chain.writable().iter().map(|s| u64::from(s.len)).sum();
        assert_eq!(chain.writable_len(), sum);
        device.push_used(chain.head(), 1).unwrap();
        device.publish();
        true
    });
}

#[test]
fn r17_driver_uses_only_what_it_checked() {
    let rig = Rig::new(4);
    let hostile = |round: usize| {
        rig.set_used_element(0, [0, 1, 2, 3, 0x1_0000][round % 5], u32::MAX);
        rig.set_used_idx([1, 2, 0, 3, 0xffff][round / 5 % 5]);
        rig.descriptors(0, &[FORMS[round % FORMS.len()]]);
    };
    duel(hostile, || {
        let mut driver = DriverQueue::new(&rig.space, rig.layout, PLAIN).unwrap();
        driver
            .add(&[segment(BASE, 1)], &[segment(BASE, 7)])
            .unwrap();
        driver.publish();
        let used = driver.pop_used();
        let Ok(Some(used)) = used else {
            return used.is_ok() || driver.free() != 2;
        };
        assert_eq!((used.head, used.len), (0, 7));
        assert_eq!(driver.free(), 4);
        true
    });
}
