//! A guest that floods XenStore with events for the backend: it is the one that waits.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use frontend_shim::{Disk, Operation};
use rustix::process::{Signal, pidfd_send_signal};
use tests::Machine;
use xen_hal::hosted::layout;
use xen_types::DomId;
use xenstore::Tree as _;
use xenstore::wire::{Message, MessageType};

use crate::scene::Scene;

/// Paths that the guest makes and removes, and how long they are: 3 MB of events, thrice what a
/// client may leave unread of its own domain's.
const PATHS: usize = 2000;
const NAME: usize = 200;
const DEPTH: usize = 7;
/// Requests of the other guest meanwhile. The broker takes turns: each stands for one read of the
/// flood, so that all of it would be in long before these are done.
const REQUESTS: usize = 4000;

fn request(kind: MessageType, payload: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let message = Message {
        kind,
        req_id: 1,
        tx_id: 0,
        payload: payload.into(),
    };
    message.encode(&mut bytes).unwrap();
    bytes
}

/// Sends everything without waiting for an answer, below a node that the backend watches.
fn flood(machine: &Machine, guest: DomId) {
    let mut socket = UnixStream::connect(layout::store_socket(machine.dir(), guest)).unwrap();
    let mut answers = socket.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        answers.read_to_end(&mut all).unwrap();
        all.len()
    });
    for path in 0..PATHS {
        let top = format!("device/virtio-msg/0/state/{path:0NAME$}");
        let deep = format!("/{}", "y".repeat(NAME)).repeat(DEPTH - 1);
        let write = request(MessageType::WRITE, &format!("{top}{deep}\0v"));
        let remove = request(MessageType::RM, &format!("{top}\0"));
        socket.write_all(&[write, remove].concat()).unwrap();
    }
    // The broker closes its end when it has read, so served, everything.
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(reader.join().unwrap() > 0);
}

#[test]
fn a_guest_that_floods_a_backend_that_does_not_read_harms_only_itself() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let mut frontend = scene.frontend();
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    let flooder = scene.machine.create_domain("flooder");
    let rng = scene.vmsg(&["attach", "flooder", "type=rng"]);
    rng.succeeded();

    let mut store = scene.machine.store(scene.bus.guest);
    let backend = scene.backend.pidfd();
    pidfd_send_signal(backend, Signal::STOP).unwrap();
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&scene.machine, flooder));
        for count in 0..REQUESTS {
            store.write("data/mine", count.to_string()).unwrap();
        }
        pidfd_send_signal(backend, Signal::CONT).unwrap();
        flooding.join().unwrap();
    });

    let read = Operation::Read {
        sector: 0,
        len: 4096,
    };
    let finished = disk.run(&mut frontend, read).unwrap();
    let mut bytes = [0; 4096];
    disk.take(&mut frontend, finished.slot, &mut bytes).unwrap();
    drop(frontend);
    scene.backend.stop().succeeded();
}
