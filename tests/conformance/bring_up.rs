//! The price of bringing one disk up, in messages, events, grants and XenStore requests. The numbers
//! are exact: whoever changes one says why.

use std::time::Instant;

use frontend_shim::{Disk, Frontend};
use tests::{Bus, RawDisk, RawGuest, Rig};
use xen_hal::hosted::Counters;
use xen_types::DomId;
use xenstore::{MessageType, RequestCounts};

/// Bytes of the disk.
const BYTES: usize = 64 << 10;

/// What both sides have done so far.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Traffic {
    backend: Counters,
    guest: Counters,
    backend_requests: u64,
    guest_requests: u64,
}

impl Traffic {
    fn of(rig: &mut Rig, frontend: &Frontend, guest: DomId) -> Self {
        Self {
            backend: rig.machine.counters(DomId::DOM0),
            guest: rig.machine.counters(guest),
            backend_requests: rig.service().host().store.requests().total(),
            guest_requests: frontend.store_requests().total(),
        }
    }
}

/// Each side in turn does all that it can, until neither has anything to do.
fn in_lockstep(rig: &mut Rig, frontend: &mut Frontend, guest: DomId) {
    loop {
        let before = Traffic::of(rig, frontend, guest);
        while {
            frontend.pump().unwrap();
            frontend.wait(Some(Instant::now())).unwrap()
        } {}
        rig.settle();
        if Traffic::of(rig, frontend, guest) == before {
            return;
        }
    }
}

/// XenStore requests: reads, writes, everything of transactions, watches, and the rest.
fn by_kind(after: &RequestCounts, before: &RequestCounts) -> [u64; 5] {
    let of = |kind| after.of(kind) - before.of(kind);
    let known = [
        of(MessageType::READ),
        of(MessageType::WRITE),
        of(MessageType::TRANSACTION_START) + of(MessageType::TRANSACTION_END),
        of(MessageType::WATCH),
    ];
    let rest = after.total() - before.total() - known.iter().sum::<u64>();
    [known[0], known[1], known[2], known[3], rest]
}

#[test]
fn connecting_costs_so_many_xenstore_requests_and_hypercalls() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let spec = rig.machine.spec(bus.guest);
    let requests = *rig.service().host().store.requests();
    let before = rig.machine.counters(DomId::DOM0);
    let mut frontend = Frontend::open(&spec, 0).unwrap();
    in_lockstep(&mut rig, &mut frontend, bus.guest);
    assert!(frontend.is_connected());

    let backend = rig.machine.counters(DomId::DOM0).since(&before);
    let expected = Counters {
        // The ring, of order 2.
        grant_map_calls: 1,
        grant_map_pages: 4,
        evtchn_bind_interdomain: 1,
        // EVENT_DEVICE: the disk was there already.
        evtchn_send: 1,
        ..Counters::default()
    };
    assert_eq!(backend, expected);
    let guest = rig.machine.counters(bus.guest);
    let expected = Counters {
        evtchn_alloc_unbound: 1,
        // The first slot given back: a fresh ring has its space-at word at 0.
        evtchn_send: 1,
        ..Counters::default()
    };
    assert_eq!(guest, expected);

    let counts = by_kind(rig.service().host().store.requests(), &requests);
    // Reads: the frontend's state when it was written, twice; 3 conditions, 8 keys and 4 references
    // in the transaction that writes state 3; 1 in the one that writes state 4.
    assert_eq!(counts, [2 + 15 + 1, 2, 4, 0, 0], "backend");
    let counts = by_kind(frontend.store_requests(), &RequestCounts::default());
    // Reads: `backend-id` and `backend`; own state, session, the backend's state and `online` before
    // anything is known; session and 6 more keys of the offer; session and state when the backend is
    // in 4. Writes: 8 keys, 4 references, states 3 and 4. Watches: the backend's state and `online`.
    // 31 in all; with a ring of one page, which has one reference, 28.
    assert_eq!(counts, [2 + 4 + 7 + 2, 14, 0, 2, 0], "guest");
}

#[test]
fn an_attached_disk_costs_the_backend_so_many_xenstore_requests() {
    let mut rig = Rig::start();
    let bus = Bus::of(rig.machine.create_domain("guest"));
    let line = rig.disk_line("guest.img", BYTES);
    rig.settle();
    let before = *rig.service().host().store.requests();
    rig.toolstack.make_bus(bus);
    rig.toolstack.make_device(bus, 0, &line);
    rig.settle();
    let ready = rig.toolstack.read(&bus.device(0, "status"));
    assert_eq!(ready.as_deref(), Some("ready"));
    let counts = by_kind(rig.service().host().store.requests(), &before);
    // Reads: 3 to see how both sides stand; 2 conditions of the transaction with the offer; the
    // device's wish and line; 2 in the transaction that says that it is ready. Writes: 9 of the offer,
    // state 2, the device's status. Besides: whether the domain lives, and the list of devices.
    assert_eq!(counts, [3 + 2 + 2 + 2, 11, 4, 1, 2], "backend");
}

#[test]
fn a_disk_costs_so_many_messages_events_and_grants() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let spec = rig.machine.spec(bus.guest);
    let mut frontend = Frontend::open(&spec, 0).unwrap();
    in_lockstep(&mut rig, &mut frontend, bus.guest);
    let before = Traffic::of(&mut rig, &frontend, bus.guest);
    rig.while_serving(|_, _| {
        Disk::open(&mut frontend, 0).unwrap();
    });
    rig.settle();
    let after = Traffic::of(&mut rig, &frontend, bus.guest);

    let ring = frontend.link().unwrap().counters();
    // The disk is known from EVENT_DEVICE. AREA_SHARE | GET_DEVICE_INFO | status 0 | ACKNOWLEDGE, DRIVER,
    // GET_DEVICE_FEATURES, GET_CONFIG, GET_VQUEUE | SET_DRIVER_FEATURES, FEATURES_OK |
    // SET_VQUEUE, GET_VQUEUE | DRIVER_OK
    assert_eq!(ring.sent, 13);
    // Their answers, and EVENT_DEVICE before them.
    assert_eq!(ring.received, 14);
    let expected = Counters {
        // One for each group of messages that waits for the one before it.
        evtchn_send: 7,
        ..Counters::default()
    };
    assert_eq!(after.guest.since(&before.guest), expected);
    let expected = Counters {
        // One for each group of answers, and one for the first slot given back in a fresh ring.
        evtchn_send: 8,
        // The directory, then 512 pages over three turns: 256 a turn, of which the directory's
        // call takes 8.
        grant_map_calls: 4,
        grant_map_pages: 513,
        grant_unmap_calls: 1,
        grant_unmap_pages: 1,
        ..Counters::default()
    };
    assert_eq!(after.backend.since(&before.backend), expected);
    // Nothing of it goes through XenStore.
    assert_eq!(after.backend_requests, before.backend_requests);
    assert_eq!(after.guest_requests, before.guest_requests);
}

/// A driver need not wait for the answer to its reset before it asks for more: what the reset holds
/// up goes on by itself when it is done.
#[test]
fn requests_behind_a_reset_need_no_event_of_their_own() {
    let mut rig = Rig::start();
    let bus = rig.guest_with_disk("guest", BYTES);
    let mut guest = RawGuest::new(&rig, bus);
    guest.connect(&mut rig);
    let pool = guest.share_pool(&mut rig, 1, 4);
    let mut disk = RawDisk::bring_up(&mut rig, &mut guest, 0, pool);
    let asked = disk.send_restart(&mut guest);
    rig.settle();
    assert_eq!(guest.receive().len(), asked);
}
