//! Requests of a guest and of dom0 in one store.

#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_types::DomId;
use xenstore::server::{Quotas, Server};
use xenstore::wire::Permissions;

const GUEST: DomId = DomId(5);

fuzz_target!(|data: &[u8]| {
    let quotas = Quotas {
        nodes: 20,
        watches: 4,
        transactions: 2,
        ..Quotas::default()
    };
    let mut server = Server::new(quotas);
    let home = Permissions::private(GUEST);
    server
        .make_node("/local/domain/5/data", b"", home)
        .expect("a valid path");
    server.introduce(GUEST);
    let clients = [server.connect(GUEST), server.connect(DomId::DOM0)];
    // A request is a type, a transaction, a length, and the payload.
    let mut rest = data;
    while let [kind, tx, len, ahead @ ..] = rest {
        let (payload, next) = ahead.split_at(usize::from(*len).min(ahead.len()));
        rest = next;
        let client = clients[usize::from(kind >> 7)];
        let mut bytes = Vec::new();
        for word in [
            u32::from(kind & 0x3f),
            0,
            u32::from(*tx),
            payload.len() as u32,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(payload);
        server.receive(client, &bytes);
        for client in clients {
            let ready = server.output(client).len();
            server.sent(client, ready);
        }
        while server.poll_wake().is_some() {}
        assert!(server.nodes_of(GUEST) <= quotas.nodes);
    }
});
