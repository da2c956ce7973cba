//! A device that returns what it was never given (virtio 1.4 section 2.7). The user sees
//! `bus 0 device 0: ` and what the used ring says; a foreign driver gets an error of its own.

use foreign_drivers::{ForeignBus, SharedMemory};
use tests::{Lies, RawQueue};
use virtio_drivers::Error;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::rng::VirtIORng;

use crate::stage::{Stage, assert_says, broken};

/// Answers a kick with these used entries and this used index.
struct Uses {
    entries: Vec<(Id, u32)>,
    index: u16,
}

#[derive(Clone, Copy)]
enum Id {
    /// The chain that was made available.
    Offered,
    /// Any number.
    Number(u32),
}

impl Lies for Uses {
    fn kicked(&mut self, queue: &RawQueue<'_>) {
        for (number, (id, len)) in (0..).zip(&self.entries) {
            let id = match id {
                Id::Offered => queue.head(queue.available().wrapping_sub(1)).into(),
                Id::Number(id) => *id,
            };
            queue.put(number, id, *len);
        }
        queue.publish(self.index);
    }
}

fn uses(entries: &[(Id, u32)], index: u16) -> Uses {
    Uses {
        entries: entries.to_vec(),
        index,
    }
}

#[test]
fn used_entries_that_are_lies_end_the_disk() {
    let rows = [
        (uses(&[(Id::Number(7), 1)], 1), "names head 7, "),
        (uses(&[(Id::Number(127), 1)], 1), "names head 127, "),
        (uses(&[(Id::Number(128), 1)], 1), "names head 128, "),
        (
            uses(&[(Id::Number(u32::MAX), 1)], 1),
            "names head 4294967295, ",
        ),
        (uses(&[], 2), "used index 2 "),
        (uses(&[], 0x8000), "used index 32768 "),
        (uses(&[], u16::MAX), "used index 65535 "),
    ];
    for (lies, words) in rows {
        let error = Stage::new().against(lies, broken).to_string();
        assert_says(&error, &["bus 0 device 0: ", words]);
    }
}

#[test]
fn a_request_that_was_used_with_no_status_written_is_no_success_whatever_its_length() {
    for len in [0, 513, 514, u32::MAX] {
        let error = Stage::new().against(uses(&[(Id::Offered, len)], 1), broken);
        assert_says(&error.to_string(), &["bus 0 device 0: ", "status 255"]);
    }
}

#[test]
fn a_request_that_is_never_used_is_given_up() {
    let error = Stage::new().against(uses(&[], 0), broken).to_string();
    assert_says(&error, &["bus 0", "domain 0", "a request of device 0"]);
}

#[test]
fn a_foreign_driver_gets_an_error_for_used_entries_that_are_lies() {
    let rows = [
        (uses(&[(Id::Number(7), 1)], 1), Error::WrongToken),
        (uses(&[(Id::Number(u32::MAX), 1)], 1), Error::WrongToken),
        // Nothing was written: the status is still the driver's own.
        (uses(&[(Id::Offered, u32::MAX)], 1), Error::NotReady),
        (uses(&[(Id::Offered, 513)], 0x8000), Error::NotReady),
    ];
    for (lies, expected) in rows {
        Stage::new().against(lies, |frontend| {
            let bus = ForeignBus::new(frontend).unwrap();
            let mut disk = bus.open(0, VirtIOBlk::<SharedMemory, _>::new).unwrap();
            assert_eq!(disk.read_blocks(0, &mut [0; 512]), Err(expected));
        });
    }
}

#[test]
fn an_entropy_device_that_claims_more_than_the_buffer_writes_no_more_than_it() {
    // The library hands the length on as it came; the bytes stay inside.
    let mut bytes = [1; 64];
    let claimed = Stage::new().against(uses(&[(Id::Offered, u32::MAX)], 1), |frontend| {
        let bus = ForeignBus::new(frontend).unwrap();
        let mut source = bus.open(0, VirtIORng::<SharedMemory, _>::new).unwrap();
        source.request_entropy(&mut bytes[..32])
    });
    assert_eq!(claimed, Ok(u32::MAX as usize));
    assert_eq!(bytes[32..], [1; 32]);
}
