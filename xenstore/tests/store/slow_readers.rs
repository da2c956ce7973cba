//! Events that a guest causes faster than others read them: it waits, and who reads loses nothing.

use xen_types::DomId;
use xenstore::MessageType;
use xenstore::server::{ConnId, EVENTS_PAUSE, GoneReason, Wake};
use xenstore::wire::Message;

use crate::bench::{Bench, Peer};

/// The most that one WRITE below adds to a client's output.
const EVENT: usize = 16 + 400;

fn bytes(kind: MessageType, payload: &str) -> Vec<u8> {
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

/// A guest with a node that others may read, and how often it wrote there.
struct Flooder {
    peer: Peer,
    writes: u64,
}

impl Flooder {
    fn new(bench: &mut Bench, domid: u16) -> Self {
        bench.node(&format!("/local/domain/{domid}"), "", &format!("r{domid}"));
        Self {
            peer: bench.peer(domid),
            writes: 0,
        }
    }

    /// Makes and removes nodes with long names, each another, and reads all answers, until it is
    /// made to wait.
    fn flood(&mut self, bench: &mut Bench) {
        while bench.server.wants_input(self.peer.id) {
            let name = format!("{:08}{}", self.writes, "x".repeat(200));
            let pair = [
                bytes(MessageType::WRITE, &format!("{name}\0v")),
                bytes(MessageType::RM, &format!("{name}\0")),
            ];
            bench.server.receive(self.peer.id, &pair.concat());
            self.writes += 1;
            assert!(self.writes < 10_000, "nothing makes it wait");
            read_all(bench, self.peer.id);
        }
    }

    fn served(&self, bench: &Bench) -> bool {
        bench.server.requests().of(MessageType::RM) == self.writes
    }
}

/// How much it was.
fn read_all(bench: &mut Bench, id: ConnId) -> usize {
    let mut sum = 0;
    while let len @ 1.. = bench.server.output(id).len() {
        bench.server.sent(id, len);
        sum += len;
    }
    sum
}

/// Does what the server's owner has to do; who was disconnected, and why.
fn obey_wakes(bench: &mut Bench) -> Vec<(ConnId, GoneReason)> {
    let mut gone = Vec::new();
    while let Some(wake) = bench.server.poll_wake() {
        match wake {
            Wake::Output(_) => {}
            Wake::Input(id) => bench.server.resume(id),
            Wake::Gone(id, reason) => gone.push((id, reason)),
        }
    }
    gone
}

#[test]
fn a_guest_waits_until_dom0_reads_what_it_caused() {
    let mut bench = Bench::default();
    let mut flooder = Flooder::new(&mut bench, 5);
    let (dom0, other) = (bench.peer(0), bench.peer(0));
    bench.watch_quietly(dom0, "/local/domain");
    bench.watch_quietly(other, "/local/domain/5");
    flooder.flood(&mut bench);
    bench.server.tick();
    bench.server.tick();
    assert_eq!(obey_wakes(&mut bench), [], "dom0 may take its time");
    assert!(!flooder.served(&bench));
    for client in [dom0, other] {
        let unread = read_all(&mut bench, client.id);
        assert!(unread >= EVENTS_PAUSE - EVENT, "{unread}");
        assert!(unread < EVENTS_PAUSE + EVENT, "{unread}");
    }
    assert_eq!(obey_wakes(&mut bench), []);
    assert!(flooder.served(&bench));
    assert!(bench.server.wants_input(flooder.peer.id));
}

#[test]
fn only_the_guest_that_caused_the_events_waits() {
    let mut bench = Bench::default();
    let mut flooder = Flooder::new(&mut bench, 5);
    bench.home(6);
    let (dom0, lazy, guest) = (bench.peer(0), bench.peer(0), bench.peer(6));
    bench.watch_quietly(lazy, "/local/domain");
    flooder.flood(&mut bench);
    bench.write(guest, "a", "1").unwrap();
    bench.write(dom0, "/b", "1").unwrap();
    assert!(!bench.server.wants_input(flooder.peer.id));
    let mut second = bench.peer(5);
    std::mem::swap(&mut flooder.peer, &mut second);
    flooder.flood(&mut bench);
    assert!(
        !flooder.served(&bench),
        "another connection of it waits, too"
    );
}

#[test]
fn many_guests_together_do_not_cut_dom0_off() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    bench.watch_quietly(dom0, "/local/domain");
    for domid in 1..=160 {
        Flooder::new(&mut bench, domid).flood(&mut bench);
    }
    assert_eq!(obey_wakes(&mut bench), []);
    assert!(read_all(&mut bench, dom0.id) > xenstore::server::OUTPUT_MAX);
}

#[test]
fn a_guest_goes_on_when_the_client_that_did_not_read_is_gone() {
    let mut bench = Bench::default();
    let mut flooder = Flooder::new(&mut bench, 5);
    let dom0 = bench.peer(0);
    bench.watch_quietly(dom0, "/local/domain");
    flooder.flood(&mut bench);
    assert!(!flooder.served(&bench));
    bench.server.disconnect(dom0.id);
    obey_wakes(&mut bench);
    assert!(flooder.served(&bench));
}

#[test]
fn a_guest_that_keeps_another_waiting_is_disconnected_in_time() {
    let mut bench = Bench::default();
    let mut victim = Flooder::new(&mut bench, 5);
    let (bad, idle) = (bench.peer(6), bench.peer(7));
    bench.watch_quietly(bad, "/local/domain/5");
    bench.watch(idle, "/local/domain/7", "t").unwrap();
    victim.flood(&mut bench);
    bench.server.tick();
    assert_eq!(obey_wakes(&mut bench), []);
    bench.server.tick();
    assert_eq!(obey_wakes(&mut bench), [(bad.id, GoneReason::HoldsUp)]);
    assert!(victim.served(&bench));
    assert!(bench.server.wants_input(idle.id));
    assert_eq!(bench.server.nodes_of(DomId(5)), 1);
}

#[test]
fn a_guest_that_reads_on_is_not_disconnected() {
    let mut bench = Bench::default();
    let mut flooder = Flooder::new(&mut bench, 5);
    let slow = bench.peer(6);
    bench.watch_quietly(slow, "/local/domain/5");
    for _ in 0..10 {
        flooder.flood(&mut bench);
        bench.server.tick();
        assert_eq!(obey_wakes(&mut bench), []);
        read_all(&mut bench, slow.id);
        obey_wakes(&mut bench);
    }
}
