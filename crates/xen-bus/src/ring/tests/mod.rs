//! The ring over real memory and over recording words: contents, order of accesses, hostile
//! indexes, restart. Its concurrency is `tests/loom_ring.rs`.

use std::collections::VecDeque;

use guest_memory::{Access, Area, GuestRange};
use proptest::prelude::*;
use xen_types::{PAGE_SIZE, Session};

use super::*;

mod memory;
mod order;
mod peer;
mod restart;
mod waking;

const SESSION: Session = Session(0x1234_5678);
const SLOTS: u32 = 4;

fn layout() -> RingLayout {
    let layout = RingLayout::new(0, 264).unwrap();
    assert_eq!(layout.slots(), SLOTS);
    layout
}

/// A virtio-msg frame of `len` bytes that carries `number` in its token.
fn frame(number: u16, len: u16) -> Vec<u8> {
    let mut frame = vec![0xa5; len.into()];
    frame[..8].copy_from_slice(&[0; 8]);
    frame[4..6].copy_from_slice(&number.to_le_bytes());
    frame[6..8].copy_from_slice(&len.to_le_bytes());
    frame
}

fn recv<W: RingWords>(ring: &mut MessageRing<W>) -> Option<Vec<u8>> {
    let mut buf = vec![0; 264];
    let len = ring.try_recv(&mut buf).unwrap()?;
    buf.truncate(len);
    Some(buf)
}

/// Memory, and the two rings in it.
struct Pair {
    area: Area,
    frontend: MessageRing,
    backend: MessageRing,
}

impl Pair {
    fn new() -> Self {
        let area = Area::anonymous(PAGE_SIZE).unwrap();
        let frontend = MessageRing::create(window(&area, Access::Write), layout(), SESSION);
        let backend = MessageRing::attach(window(&area, Access::Write), layout(), SESSION);
        Self {
            frontend: frontend.unwrap(),
            backend: backend.unwrap(),
            area,
        }
    }

    fn memory(&self) -> GuestRange<'_> {
        self.area.range(0, 4096, Access::Write).unwrap()
    }

    fn poke(&self, word: Word, value: u32) {
        let order = std::sync::atomic::Ordering::Relaxed;
        self.memory()
            .store_u32(word.offset(), value, order)
            .unwrap();
    }
}

fn window(area: &Area, access: Access) -> guest_memory::LeasedRange {
    area.lease().window(0, 4096, access).unwrap()
}

/// One step of either side of a [`Pair`].
#[derive(Clone, Copy, Debug)]
enum Step {
    Send,
    Flush,
    Receive,
    Consume,
    Sleep,
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![
        4 => Just(Step::Send),
        2 => Just(Step::Flush),
        4 => Just(Step::Receive),
        2 => Just(Step::Consume),
        1 => Just(Step::Sleep),
    ];
    proptest::collection::vec((any::<bool>(), step), 0..200)
}

proptest! {
    /// Messages arrive in order and once, whatever the sides do, from any index on; and a side
    /// that may wait is notified of everything that it waits for.
    #[test]
    fn messages_arrive_in_order_and_sleepers_are_woken(
        start in prop_oneof![any::<u32>(), u32::MAX - 20..=u32::MAX],
        steps in steps(),
    ) {
        let area = Area::anonymous(PAGE_SIZE).unwrap();
        let _ = MessageRing::create(window(&area, Access::Write), layout(), SESSION).unwrap();
        let state = RingState { produced: start, consumed: start, standing: 0 };
        let mut rings = [Role::Frontend, Role::Backend].map(|role| {
            let words = GuestWords::new(window(&area, Access::Write), &layout()).unwrap();
            MessageRing::resumed(words, layout(), role, state)
        });
        let mut in_flight = [VecDeque::new(), VecDeque::new()];
        let mut asleep = [false; 2];
        let mut number = 0;
        for (side, step) in steps {
            let (me, peer) = (usize::from(side), usize::from(!side));
            if asleep[me] {
                prop_assert!(!rings[me].note_event().unwrap(), "asleep beside work");
                continue;
            }
            let notify = match step {
                Step::Send => {
                    match rings[me].try_send(&frame(number, 8)) {
                        Ok(()) => in_flight[me].push_back(number),
                        Err(SendError::Full) => prop_assert!(in_flight[me].len() <= 4),
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                    }
                    number = number.wrapping_add(1);
                    false
                }
                Step::Receive => {
                    if let Some(got) = recv(&mut rings[me]) {
                        let sent = in_flight[peer].pop_front().expect("nothing was sent");
                        prop_assert_eq!(got, frame(sent, 8));
                    }
                    false
                }
                Step::Flush => rings[me].flush(),
                Step::Consume => rings[me].consume(),
                Step::Sleep => {
                    let full = !rings[me].has_room().unwrap();
                    let sleep = rings[me].prepare_sleep(full).unwrap();
                    asleep[me] = sleep.may_wait;
                    sleep.notify
                }
            };
            if notify {
                asleep[peer] = false;
            }
        }
    }
}
