//! Both sides in threads of their own, sleeping whenever they may: a lost
//! notification would leave both asleep.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use guest_memory::{Access, AddressSpace, FlatSpace};
use virtqueue::{Chain, DeviceQueue, DriverQueue, QueueLayout, RingFeatures};

use crate::rig::{BASE, PLAIN, Rig, WITH_EVENT_IDX, segment};

const REQUESTS: u32 = 30_000;
/// Far beyond any delay of a busy machine; only a lost notification takes longer.
const LOST: Duration = Duration::from_secs(60);
/// Where question and answer of each request stand.
const BUFFERS: u64 = BASE + 0x8000;

/// One direction of notifications: an event channel that remembers one.
struct Bell(SyncSender<()>);

impl Bell {
    fn new() -> (Self, Receiver<()>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), receiver)
    }

    fn ring(&self) {
        // Full means that one is pending already; closed that the other side is done.
        let _ = self.0.try_send(());
    }
}

fn wait(bell: &Receiver<()>) -> bool {
    match bell.recv_timeout(LOST) {
        Ok(()) => true,
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => panic!("a notification was lost"),
    }
}

fn device_side(
    space: &FlatSpace,
    layout: QueueLayout,
    features: RingFeatures,
    kicks: &Receiver<()>,
    signal: &Bell,
) {
    let mut queue = DeviceQueue::new(space, layout, features).unwrap();
    let mut chain = Chain::new();
    while wait(kicks) {
        loop {
            while queue.pop(space, &mut chain).unwrap() {
                let question = chain.readable()[0];
                let answer = chain.writable()[0];
                let read = space.translate(question.addr, 4, Access::Read).unwrap();
                let number = u32::from_le_bytes(read.read_array(0).unwrap());
                let write = space.translate(answer.addr, 4, Access::Write).unwrap();
                write
                    .write(0, &number.wrapping_mul(3).to_le_bytes())
                    .unwrap();
                queue.push_used(chain.head(), 4).unwrap();
                if !number.is_multiple_of(5) && queue.publish() {
                    signal.ring();
                }
            }
            if queue.publish() {
                signal.ring();
            }
            if !queue.rearm() {
                break;
            }
        }
    }
}

fn run(size: u16, features: RingFeatures) {
    let rig = Rig::new(size);
    let (layout, space) = (rig.layout, rig.space.clone());
    let mut queue = DriverQueue::new(&space, layout, features).unwrap();
    let (kick, kicks) = Bell::new();
    let (signal, signals) = Bell::new();
    let device = thread::spawn({
        let space = space.clone();
        move || device_side(&space, layout, features, &kicks, &signal)
    });

    let mut numbers = vec![0; size.into()];
    let (mut sent, mut done) = (0u32, 0);
    while done < REQUESTS {
        while sent < REQUESTS && queue.free() >= 2 {
            // The device returns in order, so these eight bytes are free again.
            let at = BUFFERS + 8 * u64::from(sent % u32::from(size));
            rig.write(at, &sent.to_le_bytes());
            let head = queue.add(&[segment(at, 4)], &[segment(at + 4, 4)]).unwrap();
            numbers[usize::from(head)] = sent;
            sent += 1;
            if sent.is_multiple_of(3) && queue.publish() {
                kick.ring();
            }
        }
        if queue.publish() {
            kick.ring();
        }
        let before = done;
        while let Some(used) = queue.pop_used().unwrap() {
            let number = numbers[usize::from(used.head)];
            let at = BUFFERS + 8 * u64::from(number % u32::from(size));
            let answer: [u8; 4] = rig.read(at + 4, 4).try_into().unwrap();
            assert_eq!(u32::from_le_bytes(answer), number.wrapping_mul(3));
            done += 1;
        }
        if done == before && !queue.rearm() {
            assert!(wait(&signals), "the device has gone");
        }
    }
    drop(kick);
    device.join().unwrap();
}

#[test]
fn r11_no_wakeup_is_lost_by_flags() {
    run(2, PLAIN);
    run(16, PLAIN);
}

#[test]
fn r11_no_wakeup_is_lost_with_event_idx() {
    run(2, WITH_EVENT_IDX);
    run(16, WITH_EVENT_IDX);
}
