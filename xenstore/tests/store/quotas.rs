//! Unprivileged domains run into limits, dom0 does not.

use xen_types::DomId;
use xenstore::server::{NODE_HEADER, NODE_PERMISSION, Quotas};
use xenstore::{ErrorCode, MessageType};

use crate::bench::{Bench, OK};

const FULL: Result<Vec<u8>, ErrorCode> = Err(ErrorCode::NoSpace);

#[test]
fn the_defaults_are_those_of_xenstored() {
    let quotas = Quotas::default();
    assert_eq!(
        (quotas.nodes, quotas.watches, quotas.transactions),
        (1000, 128, 10)
    );
    assert_eq!(
        (
            quotas.node_size,
            quotas.permissions,
            quotas.transaction_nodes
        ),
        (2048, 5, 1024)
    );
}

#[test]
fn a_guest_owns_a_thousand_nodes_and_not_one_more() {
    let mut bench = Bench::default();
    bench.home(5);
    let (guest, dom0) = (bench.peer(5), bench.peer(0));
    // Short names, spread over directories, so that no node grows too large.
    for dir in 0..9 {
        for node in 0..110 {
            assert_eq!(bench.write(guest, &format!("d{dir}/n{node}"), ""), OK);
        }
    }
    assert_eq!(bench.server.nodes_of(DomId(5)), 1 + 9 * 111);
    assert_eq!(bench.write(guest, "d/e", ""), FULL, "two, but one fits");
    assert_eq!(bench.server.nodes_of(DomId(5)), 1000);
    assert_eq!(bench.list(guest, "d"), Err(ErrorCode::NotFound), "no half");
    assert_eq!(bench.mkdir(guest, "e"), FULL);
    assert_eq!(bench.rm(guest, "d0/n0"), OK);
    assert_eq!(bench.mkdir(guest, "e"), OK);
    assert_eq!(bench.mkdir(guest, "f"), FULL);
    assert_eq!(bench.write(guest, "e", "1"), OK, "no new node");
    assert_eq!(bench.write(dom0, "/local/domain/5/f", ""), OK);
}

#[test]
fn nodes_made_in_transactions_count() {
    let mut bench = Bench::with_quotas(Quotas {
        nodes: 4,
        ..Quotas::default()
    });
    bench.home(5);
    let guest = bench.peer(5);
    let (one, two) = (bench.begin(guest).unwrap(), bench.begin(guest).unwrap());
    assert_eq!(bench.write(one, "a/b", ""), OK);
    assert_eq!(bench.write(one, "a/c/d", ""), FULL);
    assert_eq!(bench.write(one, "a/c", ""), OK);
    assert_eq!(bench.write(two, "x", ""), OK);
    assert_eq!(bench.commit(two), OK);
    assert_eq!(bench.server.nodes_of(DomId(5)), 2);
    assert_eq!(bench.commit(one), FULL, "four were free, three are not");
    assert_eq!(bench.server.nodes_of(DomId(5)), 2);
}

#[test]
fn a_node_stays_below_2048_bytes_with_all_that_counts() {
    let mut bench = Bench::default();
    bench.home(5);
    let guest = bench.peer(5);
    let room = 2048 - NODE_HEADER - NODE_PERMISSION - 1;
    assert_eq!(bench.write(guest, "a", &"x".repeat(room)), OK);
    assert_eq!(bench.write(guest, "a", &"x".repeat(room + 1)), FULL);
    assert_eq!(bench.write(guest, "b", &"x".repeat(room + 1)), FULL);
    assert_eq!(bench.set_perms(guest, "a", "n5,r0"), FULL);
    assert_eq!(bench.mkdir(guest, "a/b"), FULL, "a child's name counts");
    let dom0 = bench.peer(0);
    assert_eq!(bench.write(dom0, "/big", &"x".repeat(4000)), OK);
}

#[test]
fn permissions_have_five_entries() {
    let mut bench = Bench::default();
    bench.home(5);
    let guest = bench.peer(5);
    bench.mkdir(guest, "a").unwrap();
    assert_eq!(bench.set_perms(guest, "a", "n5,r1,r2,r3,r4"), OK);
    assert_eq!(bench.set_perms(guest, "a", "n5,r1,r2,r3,r4,r6"), FULL);
}

#[test]
fn watches_are_counted_over_all_connections_of_a_domain() {
    let mut bench = Bench::default();
    let (one, two, other) = (bench.peer(5), bench.peer(5), bench.peer(6));
    for number in 0..128 {
        let peer = if number % 2 == 0 { one } else { two };
        assert_eq!(bench.watch(peer, "/a", &number.to_string()), OK);
    }
    for peer in [one, two] {
        assert_eq!(bench.watch(peer, "/a", "more"), Err(ErrorCode::TooBig));
    }
    assert_eq!(bench.watch(other, "/a", "t"), OK);
    assert_eq!(bench.ask(one, MessageType::UNWATCH, b"/a\x000\0"), OK);
    assert_eq!(bench.watch(two, "/a", "more"), OK);
    bench.server.disconnect(one.id);
    assert_eq!(bench.watch(two, "/a", "even more"), OK);
    let dom0 = bench.peer(0);
    for number in 0..200 {
        assert_eq!(bench.watch(dom0, "/a", &number.to_string()), OK);
    }
}

#[test]
fn ten_transactions_are_open_at_a_time() {
    let mut bench = Bench::default();
    let (one, two) = (bench.peer(5), bench.peer(5));
    let open: Vec<_> = (0..10).map(|_| bench.begin(one).unwrap()).collect();
    assert_eq!(bench.begin(two).err(), Some(ErrorCode::NoSpace));
    bench.abort(open[3]).unwrap();
    assert!(bench.begin(two).is_ok());
    assert_eq!(bench.begin(one).err(), Some(ErrorCode::NoSpace));
}

#[test]
fn a_transaction_that_looks_at_too_much_cannot_be_committed() {
    let mut bench = Bench::with_quotas(Quotas {
        transaction_nodes: 3,
        ..Quotas::default()
    });
    bench.home(5);
    let guest = bench.peer(5);
    for path in ["a", "b", "c"] {
        bench.write(guest, path, "1").unwrap();
    }
    let tx = bench.begin(guest).unwrap();
    assert_eq!(bench.write(tx, "a", "2"), OK);
    for path in ["b", "c"] {
        bench.read(tx, path).unwrap();
    }
    assert_eq!(bench.read(tx, "a"), Ok(b"2".to_vec()), "seen before");
    assert_eq!(bench.read(tx, "/local/domain/5"), FULL);
    assert_eq!(bench.commit(tx), FULL);
    assert_eq!(bench.read(guest, "a"), Ok(b"1".to_vec()));
}
