//! Requests of one size, one after the other, to a backend in the same thread: what
//! `conformance/copies.rs` counts the instructions of.
//!
//!     request-probe COUNT read|write BYTES

#![forbid(unsafe_code)]

use frontend_shim::{Disk, DiskOptions, Frontend, Operation, Status};
use tests::{LIMIT, Rig, keep_to_one_processor};

/// Bytes of the disk.
const DISK: usize = 1 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse().expect("a number");
    let [count, kind, bytes] = arguments.as_slice() else {
        panic!("see the top of this program");
    };
    let (count, len) = (number(count), number(bytes));
    let operation = match kind.as_str() {
        "read" => Operation::Read { sector: 0, len },
        "write" => Operation::Write { sector: 0, len },
        _ => panic!("read or write"),
    };
    keep_to_one_processor();
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", DISK);
    let spec = rig.machine.spec(bus.guest);
    let (mut frontend, mut disk) = rig.while_serving(|_, _| {
        let mut frontend = Frontend::open(&spec, 0).expect("a bus");
        frontend.connect(LIMIT).expect("a backend");
        let options = DiskOptions {
            requests: 1,
            request_bytes: len,
        };
        let disk = Disk::open_with(&mut frontend, 0, options).expect("a disk");
        (frontend, disk)
    });
    for _ in 0..count {
        let slot = disk.free_slot().expect("a slot");
        disk.submit(&mut frontend, slot, operation).expect("room");
        frontend.flush().expect("a backend");
        let finished = loop {
            measured::turn(rig.service());
            frontend.pump().expect("a backend");
            if let Some(finished) = disk.poll(&mut frontend).expect("a disk") {
                break finished;
            }
        };
        assert_eq!(finished.status, Status::Ok);
    }
}

/// What callgrind counts. Not inlined, so that it finds the beginning and the end.
mod measured {
    use backend::Service;
    use tests::LIMIT;

    /// What the backend does when it is woken.
    #[inline(never)]
    pub(super) fn turn(service: &mut Service) {
        service.turn(Some(LIMIT)).expect("a backend");
    }
}
