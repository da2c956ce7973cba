//! The backend's end of a message ring whose words and slots the peer writes at will.

#![no_main]

use guest_memory::{Access, Area};
use libfuzzer_sys::fuzz_target;
use xen_bus::layout::RingLayout;
use xen_bus::ring::{MessageRing, SendError};
use xen_types::Session;

const MESSAGE: usize = 64;
/// The words of all five lines, and the first slots: an index into them fits into a byte.
const WORDS: u64 = 256;

fuzz_target!(|data: &[u8]| {
    let layout = RingLayout::new(0, MESSAGE as u32).expect("a sound layout");
    let area = Area::anonymous(4096).expect("a page");
    let window = || {
        area.lease()
            .window(0, 4096, Access::Write)
            .expect("the page")
    };
    MessageRing::create(window(), layout, Session(1)).expect("a fresh ring");
    let mut ring = MessageRing::attach(window(), layout, Session(1)).expect("its other end");
    let page = window();
    let mut unsent = 0;
    for step in data.chunks_exact(6) {
        let word = u32::from_le_bytes([step[2], step[3], step[4], step[5]]);
        let offset = u64::from(step[1]) % WORDS * 4;
        page.range()
            .write(offset, &word.to_le_bytes())
            .expect("inside the page");
        let mut message = [0; MESSAGE];
        // The session ends with the first fault.
        match step[0] % 6 {
            0 => match ring.try_recv(&mut message) {
                Ok(len) => assert!(len.unwrap_or(0) <= MESSAGE),
                Err(_) => return,
            },
            1 => match ring.try_send(&[step[0]; MESSAGE]) {
                Err(SendError::Fault(_)) => return,
                sent => unsent += u32::from(sent.is_ok()),
            },
            2 => {
                let _ = ring.flush();
                unsent = 0;
            }
            3 => {
                let _ = ring.consume();
            }
            4 => match ring.prepare_sleep(step[0] & 0x80 != 0) {
                Ok(_) => unsent = 0,
                Err(_) => return,
            },
            _ => {
                if ring.note_event().is_err() {
                    return;
                }
            }
        }
        assert!(
            unsent <= layout.slots(),
            "more in the ring than it has slots"
        );
    }
});
