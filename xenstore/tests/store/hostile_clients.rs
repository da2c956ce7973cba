//! Clients that send rubbish, too much, or never read: only they suffer.

use proptest::prelude::*;
use xenstore::MessageType;
use xenstore::server::{ConnId, GoneReason, INPUT_MAX, OUTPUT_MAX, OUTPUT_PAUSE, Wake};
use xenstore::wire::Message;

use crate::bench::{Bench, OK};

fn request(kind: MessageType, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let message = Message {
        kind,
        req_id: 1,
        tx_id: 0,
        payload: payload.to_vec(),
    };
    message.encode(&mut bytes).unwrap();
    bytes
}

fn gone(bench: &mut Bench, id: ConnId) -> Option<GoneReason> {
    bench.wakes().into_iter().find_map(|wake| match wake {
        Wake::Gone(other, reason) if other == id => Some(reason),
        _ => None,
    })
}

#[test]
fn a_payload_beyond_the_limit_ends_the_connection_and_its_watches() {
    let mut bench = Bench::default();
    let (bad, good) = (bench.peer(5), bench.peer(0));
    bench.watch(bad, "/a", "t").unwrap();
    bench.events(bad);
    let mut header = request(MessageType::READ, b"");
    header[12..16].copy_from_slice(&4097u32.to_ne_bytes());
    bench.server.receive(bad.id, &header);
    assert_eq!(gone(&mut bench, bad.id), Some(GoneReason::BadMessage));
    assert!(!bench.server.wants_input(bad.id));
    bench
        .server
        .receive(bad.id, &request(MessageType::READ, b"/\0"));
    bench.write(good, "/a", "1").unwrap();
    assert_eq!(bench.server.output(bad.id), b"");
}

#[test]
fn a_message_that_is_never_finished_harms_nobody() {
    let mut bench = Bench::default();
    let (bad, good) = (bench.peer(5), bench.peer(0));
    let whole = request(MessageType::READ, b"/\0");
    for byte in &whole[..whole.len() - 1] {
        bench.server.receive(bad.id, &[*byte]);
    }
    assert_eq!(bench.server.output(bad.id), b"");
    assert_eq!(bench.write(good, "/a", "1"), OK);
    bench.server.receive(bad.id, &whole[whole.len() - 1..]);
    assert!(!bench.server.output(bad.id).is_empty());
}

#[test]
fn a_client_that_never_reads_its_events_is_disconnected() {
    let mut bench = Bench::default();
    let (lazy, good) = (bench.peer(0), bench.peer(0));
    bench
        .server
        .receive(lazy.id, &request(MessageType::WATCH, b"/\0t\0"));
    let long = "x".repeat(1000);
    let mut writes = 0;
    while gone(&mut bench, lazy.id).is_none() {
        bench.write(good, &format!("/{long}/{writes}"), "").unwrap();
        writes += 1;
        assert!(writes < 2 * OUTPUT_MAX / long.len());
    }
    assert!(writes * long.len() < OUTPUT_MAX + 2 * long.len());
    assert_eq!(bench.server.output(lazy.id), b"");
}

#[test]
fn the_same_event_over_and_over_takes_no_memory() {
    let mut bench = Bench::default();
    let (lazy, good) = (bench.peer(0), bench.peer(0));
    bench
        .server
        .receive(lazy.id, &request(MessageType::WATCH, b"/\0t\0"));
    for _ in 0..OUTPUT_MAX / 20 {
        bench.write(good, "/a", "1").unwrap();
    }
    assert_eq!(bench.event_paths_of_silent(lazy), ["/", "/a"]);
}

#[test]
fn a_client_that_asks_without_reading_is_slowed_down_and_then_disconnected() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    bench.write(dom0, "/big", &"x".repeat(4000)).unwrap();
    let flood = request(MessageType::READ, b"/big\0");
    let bad = bench.peer(0);
    while bench.server.wants_input(bad.id) {
        bench.server.receive(bad.id, &flood);
    }
    assert_eq!(gone(&mut bench, bad.id), None);
    let served = bench.server.requests().of(MessageType::READ);
    assert!(served >= (OUTPUT_PAUSE / 4016) as u64);
    let mut sent = 0;
    while gone(&mut bench, bad.id).is_none() {
        bench.server.receive(bad.id, &flood);
        sent += flood.len();
        assert!(sent <= INPUT_MAX + flood.len());
    }
    assert_eq!(bench.server.requests().of(MessageType::READ), served);
}

#[test]
fn requests_held_back_are_served_once_the_client_reads() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    bench.write(dom0, "/big", &"x".repeat(4000)).unwrap();
    let eager = bench.peer(0);
    let flood = request(MessageType::READ, b"/big\0").repeat(100);
    bench.server.receive(eager.id, &flood);
    assert!(!bench.server.wants_input(eager.id));
    let mut received = 0;
    while !bench.server.output(eager.id).is_empty() {
        let some = bench.server.output(eager.id).len().min(1000);
        bench.server.sent(eager.id, some);
        received += some;
    }
    assert_eq!(received, 100 * 4016);
    assert!(bench.server.wants_input(eager.id));
}

#[test]
fn output_is_announced_once_until_it_is_sent() {
    let mut bench = Bench::default();
    let peer = bench.peer(0);
    bench
        .server
        .receive(peer.id, &request(MessageType::READ, b"/\0").repeat(3));
    assert_eq!(bench.wakes(), [Wake::Output(peer.id)]);
    while !bench.server.output(peer.id).is_empty() {
        bench.server.sent(peer.id, 7);
    }
    assert_eq!(bench.wakes(), []);
    bench
        .server
        .receive(peer.id, &request(MessageType::READ, b"/\0"));
    assert_eq!(bench.wakes(), [Wake::Output(peer.id)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Requests of any type with payloads that are nearly right.
    #[test]
    fn no_sequence_of_requests_breaks_the_server(
        requests in proptest::collection::vec(
            (0u32..24, 0u32..3, "(/|a|b|/local/domain/5|@releaseDomain|\\PC){0,3}", "(\0(n5|r0|t|0|T)?){0,3}"),
            1..60,
        ),
    ) {
        let mut bench = Bench::default();
        bench.home(5);
        let guest = bench.peer(5);
        for (kind, tx_id, path, rest) in requests {
            let mut bytes = Vec::new();
            let payload = [path.as_bytes(), rest.as_bytes()].concat();
            let message = Message { kind: MessageType(kind), req_id: 1, tx_id, payload };
            message.encode(&mut bytes).unwrap();
            bench.server.receive(guest.id, &bytes);
        }
        // What a guest owns is what is found below its home, for nothing else was writable.
        let dom0 = bench.peer(0);
        let mut found = 0;
        let mut next = vec!["/local/domain/5".to_owned()];
        while let Some(path) = next.pop() {
            let Ok(children) = bench.list(dom0, &path) else { continue };
            found += 1;
            next.extend(children.into_iter().map(|child| format!("{path}/{child}")));
        }
        prop_assert_eq!(bench.server.nodes_of(xen_types::DomId(5)), found);
        prop_assert_eq!(bench.list(dom0, "/").unwrap(), ["tool", "local"]);
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut bench = Bench::default();
        let peer = bench.peer(5);
        bench.server.receive(peer.id, &bytes);
        let dom0 = bench.peer(0);
        prop_assert_eq!(bench.mkdir(dom0, "/a"), OK);
    }
}
