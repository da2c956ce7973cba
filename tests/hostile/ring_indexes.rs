//! Ring indexes that cannot be.
//!
//! Attack: It sets the indexes of its message ring to random values, lets them jump and run
//! backwards, or writes anything into the words by which it asks to be woken.
//!
//! Outcome: Each index is compared with private ones; one that the guest cannot legally have ends
//! the instance (binding section 4), and no slot is read for it. One that stands still is a guest
//! that has nothing to say. Wake-up words can only cause or spare events of its own.
//!
//! Class: 2 (XSA-432)

use tests::Random;
use virtio_msg::wire::{DevNum, Frame, Request};

use crate::rig::stage::Stage;

const LINE: &str =
    "WARN the instance ends id=domain … bus 0 fault=ring: …er index is 0x…, 0x… to 0x… is possible";

/// Words of the ring that the frontend writes (section 4).
const PRODUCER: u64 = 64;
const CONSUMER: u64 = 256;
/// Its space-at and its wake-at.
const AT_WORDS: [u64; 2] = [68, 260];
/// Slots of the raw guest's ring in each direction.
const SLOTS: u32 = 16;

/// A disk over a ring of which `produced` frames were sent and as many received.
fn used_ring(stage: &mut Stage) -> u32 {
    let mut disk = stage.hostile_disk();
    stage.assert_hostile_served(&mut disk);
    stage.guest.receive();
    stage.guest.produced()
}

#[test]
fn a_producer_index_that_is_impossible_ends_the_instance() {
    let mut random = Random::seeded(13);
    let jumps = [
        SLOTS + 1,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
        0u32.wrapping_sub(SLOTS),
    ];
    let random = (0..5).map(|_| SLOTS + 1 + u32::try_from(random.below(0xffff_0000)).unwrap());
    for jump in jumps.into_iter().chain(random) {
        let mut stage = Stage::new();
        let produced = used_ring(&mut stage);
        stage.guest.scribble(PRODUCER, produced.wrapping_add(jump));
        stage.guest.notify();
        stage.assert_ended(LINE);
        stage.finish();
    }
}

/// The consumer index that the guest writes when it has consumed so many and sent so many more.
#[track_caller]
fn consumer_index_ends_the_instance(index: impl Fn(u32, u32) -> u32) {
    let mut stage = Stage::new();
    used_ring(&mut stage);
    let consumed = stage.guest.consumed();
    // It is looked at when the slots known to be free are used up.
    for sent in 0..=2 * SLOTS {
        if stage.backend_says("state").as_deref() != Some("4") {
            break;
        }
        stage.guest.scribble(CONSUMER, index(consumed, sent));
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(0),
            token,
            request: Request::GetDeviceStatus,
        });
        stage.rig.settle();
    }
    stage.assert_ended(LINE);
    stage.finish();
}

#[test]
fn a_consumer_index_that_is_impossible_ends_the_instance() {
    consumer_index_ends_the_instance(|consumed, sent| consumed.wrapping_add(sent + 1));
    for jump in [0x8000_0000, 0u32.wrapping_sub(2 * SLOTS), 2 * SLOTS + 1] {
        consumer_index_ends_the_instance(|consumed, _| consumed.wrapping_add(jump));
    }
}

#[test]
fn indexes_that_stand_still_are_no_fault() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    for _ in 0..100 {
        stage.guest.notify();
        stage.rig.settle();
    }
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}

#[test]
fn wake_up_words_of_any_value_lose_nobody_elses_message() {
    let mut random = Random::seeded(14);
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    for _ in 0..200 {
        for offset in AT_WORDS {
            let value = u32::try_from(random.below(1 << 32)).unwrap();
            stage.guest.scribble(offset, value);
        }
        stage.assert_hostile_served(&mut disk);
        stage.guest.receive();
    }
    stage.log.assert_quiet();
    stage.finish();
}
