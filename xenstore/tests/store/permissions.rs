//! Who may do what.

use xenstore::ErrorCode;

use crate::bench::{Bench, OK, Peer, value};

const DENIED: Option<ErrorCode> = Some(ErrorCode::Access);

/// What domain 5 gets for read, list, get_perms, write, set_perms and rm of `/dir/node`.
fn attempt(perms: &str) -> [Option<ErrorCode>; 6] {
    let with = |work: fn(&mut Bench, Peer) -> Option<ErrorCode>| {
        let mut bench = Bench::default();
        bench.node("/dir", "", "n0");
        bench.node("/dir/node", "v", perms);
        let guest = bench.peer(5);
        work(&mut bench, guest)
    };
    [
        with(|bench, guest| bench.read(guest, "/dir/node").err()),
        with(|bench, guest| bench.list(guest, "/dir/node").err()),
        with(|bench, guest| bench.get_perms(guest, "/dir/node").err()),
        with(|bench, guest| bench.write(guest, "/dir/node", "w").err()),
        with(|bench, guest| {
            let owner = if bench.server.nodes_of(xen_types::DomId(5)) > 0 {
                "b5"
            } else {
                "b0"
            };
            bench.set_perms(guest, "/dir/node", owner).err()
        }),
        with(|bench, guest| bench.rm(guest, "/dir/node").err()),
    ]
}

#[test]
fn what_a_guest_may_do_follows_from_owner_entry_and_default() {
    let none = [DENIED; 6];
    let reads = [None, None, None, DENIED, DENIED, DENIED];
    let writes = [DENIED, DENIED, DENIED, None, DENIED, None];
    let both = [None, None, None, None, DENIED, None];
    let owns = [None; 6];
    for (perms, expected) in [
        ("n0", none),
        ("r0", reads),
        ("w0", writes),
        ("b0", both),
        ("n0,r5", reads),
        ("n0,w5", writes),
        ("n0,b5", both),
        ("b0,n5", none),
        ("b0,r5", reads),
        ("n0,b6", none),
        ("n6,r5", reads),
        ("n5", owns),
        ("n5,r6", owns),
        ("n0,r5,b5", reads),
    ] {
        assert_eq!(attempt(perms), expected, "{perms}");
    }
}

#[test]
fn dom0_may_do_everything() {
    let mut bench = Bench::default();
    bench.node("/a", "1", "n7");
    let dom0 = bench.peer(0);
    assert_eq!(bench.read(dom0, "/a"), value("1"));
    assert_eq!(bench.write(dom0, "/a", "2"), OK);
    assert_eq!(bench.set_perms(dom0, "/a", "n8,r9"), OK);
    assert_eq!(bench.get_perms(dom0, "/a").unwrap(), "n8,r9");
    assert_eq!(bench.rm(dom0, "/a"), OK);
}

#[test]
fn children_inherit_and_belong_to_the_guest_that_made_them() {
    let mut bench = Bench::default();
    bench.node("/shared", "", "n0,b5,r6");
    let (guest, dom0) = (bench.peer(5), bench.peer(0));
    assert_eq!(bench.write(guest, "/shared/a/b", "1"), OK);
    assert_eq!(bench.get_perms(dom0, "/shared/a").unwrap(), "n5,b5,r6");
    assert_eq!(bench.get_perms(dom0, "/shared/a/b").unwrap(), "n5,b5,r6");
    assert_eq!(bench.write(dom0, "/shared/a/c", "1"), OK);
    assert_eq!(bench.get_perms(dom0, "/shared/a/c").unwrap(), "n5,b5,r6");
}

#[test]
fn a_guest_cannot_tell_missing_from_hidden() {
    let mut bench = Bench::default();
    bench.node("/hidden/node", "1", "n0");
    bench.node("/open", "", "r0");
    let guest = bench.peer(5);
    for path in ["/hidden/node", "/hidden/missing", "/hidden/node/missing"] {
        assert_eq!(bench.read(guest, path), Err(ErrorCode::Access), "{path}");
    }
    assert_eq!(bench.read(guest, "/open/missing"), Err(ErrorCode::NotFound));
    assert_eq!(bench.write(guest, "/open/x", "1"), Err(ErrorCode::Access));
    assert_eq!(bench.rm(guest, "/open/missing"), Err(ErrorCode::Access));
    bench.node("/writable", "", "n0,w5");
    let answer = bench.set_perms(guest, "/writable/missing", "n5");
    assert_eq!(answer, Err(ErrorCode::NotFound));
    let answer = bench.set_perms(guest, "/open/missing", "n5");
    assert_eq!(answer, Err(ErrorCode::Access));
}

#[test]
fn a_readable_node_can_be_read_below_a_hidden_one() {
    let mut bench = Bench::default();
    bench.node("/hidden", "", "n0");
    bench.node("/hidden/open", "1", "n0,r5");
    let guest = bench.peer(5);
    assert_eq!(bench.read(guest, "/hidden/open"), value("1"));
}

#[test]
fn an_owner_cannot_give_a_node_away() {
    let mut bench = Bench::default();
    bench.home(5);
    let guest = bench.peer(5);
    bench.write(guest, "a", "1").unwrap();
    assert_eq!(bench.set_perms(guest, "a", "n5,r0"), OK);
    for owner in ["n0", "b6,b5"] {
        let answer = bench.set_perms(guest, "a", owner);
        assert_eq!(answer, Err(ErrorCode::NotPermitted));
    }
    assert_eq!(bench.get_perms(guest, "a").unwrap(), "n5,r0");
}

#[test]
fn set_perms_moves_a_node_from_one_account_to_another() {
    let mut bench = Bench::default();
    let (four, five) = (xen_types::DomId(4), xen_types::DomId(5));
    bench.node("/a", "", "n4");
    assert_eq!(
        (bench.server.nodes_of(four), bench.server.nodes_of(five)),
        (1, 0)
    );
    bench.node("/a", "", "n5");
    assert_eq!(
        (bench.server.nodes_of(four), bench.server.nodes_of(five)),
        (0, 1)
    );
    let dom0 = bench.peer(0);
    bench.rm(dom0, "/a").unwrap();
    assert_eq!(bench.server.nodes_of(five), 0);
}

#[test]
fn the_next_domain_with_the_same_id_inherits_nothing() {
    let mut bench = Bench::default();
    let domid = xen_types::DomId(5);
    bench.server.introduce(domid);
    bench.home(5);
    bench.node("/other", "1", "n0,r5,r6");
    let guest = bench.peer(5);
    bench.write(guest, "a/b", "1").unwrap();
    bench.server.release(domid);
    assert_eq!(bench.server.nodes_of(domid), 0);
    let dom0 = bench.peer(0);
    assert_eq!(
        bench.read(dom0, "/local/domain/5"),
        Err(ErrorCode::NotFound)
    );
    assert_eq!(bench.get_perms(dom0, "/other").unwrap(), "n0,r6");
    let next = bench.peer(5);
    assert_eq!(bench.read(next, "/other"), Err(ErrorCode::Access));
}

#[test]
fn a_transaction_does_not_bring_the_rights_of_a_dead_domain_back() {
    let mut bench = Bench::default();
    let domid = xen_types::DomId(5);
    bench.server.introduce(domid);
    bench.node("/a", "1", "n0,r5");
    let dom0 = bench.peer(0);
    let tx = bench.begin(dom0).unwrap();
    bench.write(tx, "/a", "2").unwrap();
    bench.server.release(domid);
    assert_eq!(bench.commit(tx), Err(ErrorCode::Again));
    assert_eq!(bench.get_perms(dom0, "/a").unwrap(), "n0");
}
