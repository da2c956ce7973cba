//! Which changes of others make a commit fail, and what a transaction shows before it.

use xenstore::{ErrorCode, MessageType};

use crate::bench::{Bench, OK, Peer, value};

type Step = (&'static str, fn(&mut Bench, Peer));

/// What the transaction does; `/a` and `/d/x` exist, `/absent` does not.
const LOOKS: [Step; 8] = [
    ("reads /a", |bench, peer| {
        bench.read(peer, "/a").unwrap();
    }),
    ("reads /absent", |bench, peer| {
        bench.read(peer, "/absent").unwrap_err();
    }),
    ("lists /d", |bench, peer| {
        bench.list(peer, "/d").unwrap();
    }),
    ("asks who may use /a", |bench, peer| {
        bench.get_perms(peer, "/a").unwrap();
    }),
    ("writes /a", |bench, peer| {
        bench.write(peer, "/a", "tx").unwrap();
    }),
    ("makes /d/tx", |bench, peer| {
        bench.mkdir(peer, "/d/tx").unwrap();
    }),
    ("removes /d", |bench, peer| {
        bench.rm(peer, "/d").unwrap();
    }),
    ("reads /other", |bench, peer| {
        bench.read(peer, "/other").unwrap();
    }),
];

/// What somebody else does meanwhile.
const CHANGES: [Step; 8] = [
    ("writes /a", |bench, peer| {
        bench.write(peer, "/a", "2").unwrap();
    }),
    ("writes the same value to /a", |bench, peer| {
        bench.write(peer, "/a", "1").unwrap();
    }),
    ("removes /a", |bench, peer| {
        bench.rm(peer, "/a").unwrap();
    }),
    ("lets others read /a", |bench, peer| {
        bench.set_perms(peer, "/a", "r0").unwrap();
    }),
    ("makes /absent", |bench, peer| {
        bench.mkdir(peer, "/absent").unwrap();
    }),
    ("makes /d/y", |bench, peer| {
        bench.mkdir(peer, "/d/y").unwrap();
    }),
    ("writes /d/x", |bench, peer| {
        bench.write(peer, "/d/x", "2").unwrap();
    }),
    ("reads everything", |bench, peer| {
        for path in ["/", "/a", "/d", "/d/x", "/other"] {
            bench.list(peer, path).unwrap();
        }
    }),
];

#[rustfmt::skip]
const CONFLICTS: [[bool; 8]; 8] = {
    const Y: bool = true;
    const N: bool = false;
    [
        // a=2  a=1  rm a perms /absent /d/y d/x  reads
        [  Y,   Y,   Y,   Y,    N,      N,   N,   N ], // reads /a
        // A missing node is looked for upwards: the root counts as read, and making or removing
        // a child of it changes it.
        [  N,   N,   Y,   N,    Y,      N,   N,   N ], // reads /absent
        [  N,   N,   N,   N,    N,      Y,   N,   N ], // lists /d
        [  Y,   Y,   Y,   Y,    N,      N,   N,   N ], // asks who may use /a
        [  Y,   Y,   Y,   Y,    N,      N,   N,   N ], // writes /a
        [  N,   N,   N,   N,    N,      Y,   N,   N ], // makes /d/tx
        [  N,   N,   Y,   N,    Y,      Y,   Y,   N ], // removes /d
        [  N,   N,   N,   N,    N,      N,   N,   N ], // reads /other
    ]
};

#[test]
fn a_commit_fails_exactly_if_a_node_it_looked_at_changed() {
    for (look, row) in LOOKS.iter().zip(CONFLICTS) {
        for (change, conflict) in CHANGES.iter().zip(row) {
            let mut bench = Bench::default();
            for path in ["/a", "/d/x", "/other"] {
                bench.node(path, "1", "n0");
            }
            let (one, other) = (bench.peer(0), bench.peer(0));
            let tx = bench.begin(one).unwrap();
            look.1(&mut bench, tx);
            change.1(&mut bench, other);
            let expected = if conflict { Err(ErrorCode::Again) } else { OK };
            assert_eq!(
                bench.commit(tx),
                expected,
                "one {}, another {}",
                look.0,
                change.0
            );
        }
    }
}

#[test]
fn of_two_transactions_that_both_write_the_first_commit_wins() {
    let mut bench = Bench::default();
    bench.node("/a", "0", "n0");
    let (one, two) = (bench.peer(0), bench.peer(0));
    let (one_tx, two_tx) = (bench.begin(one).unwrap(), bench.begin(two).unwrap());
    bench.write(one_tx, "/a", "1").unwrap();
    bench.write(two_tx, "/a", "2").unwrap();
    assert_eq!(bench.commit(two_tx), OK);
    assert_eq!(bench.commit(one_tx), Err(ErrorCode::Again));
    assert_eq!(bench.read(one, "/a"), value("2"));
}

#[test]
fn changes_show_inside_at_once_and_outside_at_the_commit() {
    let mut bench = Bench::default();
    bench.node("/a/old", "1", "n0");
    let (one, other) = (bench.peer(0), bench.peer(0));
    let tx = bench.begin(one).unwrap();
    bench.write(tx, "/a/new", "2").unwrap();
    bench.rm(tx, "/a/old").unwrap();
    bench.set_perms(tx, "/a", "r0").unwrap();
    assert_eq!(bench.list(tx, "/a").unwrap(), ["new"]);
    assert_eq!(bench.read(tx, "/a/old"), Err(ErrorCode::NotFound));
    assert_eq!(bench.list(one, "/a").unwrap(), ["old"]);
    assert_eq!(bench.get_perms(other, "/a").unwrap(), "n0");
    assert_eq!(bench.commit(tx), OK);
    assert_eq!(bench.list(other, "/a").unwrap(), ["new"]);
    assert_eq!(bench.get_perms(other, "/a").unwrap(), "r0");
    assert_eq!(bench.read(other, "/a/new"), value("2"));
}

#[test]
fn a_second_look_sees_what_the_first_saw() {
    let mut bench = Bench::default();
    bench.node("/a", "1", "n0");
    let (one, other) = (bench.peer(0), bench.peer(0));
    let tx = bench.begin(one).unwrap();
    assert_eq!(bench.read(tx, "/a"), value("1"));
    assert_eq!(bench.read(tx, "/b"), Err(ErrorCode::NotFound));
    bench.write(other, "/a", "2").unwrap();
    bench.write(other, "/b", "2").unwrap();
    assert_eq!(bench.read(tx, "/a"), value("1"));
    assert_eq!(bench.read(tx, "/b"), Err(ErrorCode::NotFound));
}

#[test]
fn an_aborted_transaction_leaves_nothing_behind() {
    let mut bench = Bench::default();
    let peer = bench.peer(0);
    bench.watch_quietly(peer, "/");
    let tx = bench.begin(peer).unwrap();
    bench.write(tx, "/a/b", "1").unwrap();
    assert_eq!(bench.abort(tx), OK);
    assert_eq!(bench.read(peer, "/a"), Err(ErrorCode::NotFound));
    assert_eq!(bench.events(peer), []);
    assert_eq!(
        bench.read(tx, "/a"),
        Err(ErrorCode::NotFound),
        "the id is void"
    );
    assert_eq!(bench.commit(tx), Err(ErrorCode::NotFound));
}

#[test]
fn a_failed_commit_changes_nothing_and_fires_nothing() {
    let mut bench = Bench::default();
    bench.node("/a", "1", "n0");
    let (one, other) = (bench.peer(0), bench.peer(0));
    let tx = bench.begin(one).unwrap();
    bench.read(tx, "/a").unwrap();
    bench.write(tx, "/b", "1").unwrap();
    bench.write(other, "/a", "2").unwrap();
    bench.watch_quietly(other, "/");
    assert_eq!(bench.commit(tx), Err(ErrorCode::Again));
    assert_eq!(bench.read(other, "/b"), Err(ErrorCode::NotFound));
    assert_eq!(bench.events(other), []);
}

#[test]
fn watches_fire_at_the_commit_one_event_per_changed_node() {
    let mut bench = Bench::default();
    bench.node("/d/x", "1", "n0");
    let (one, other) = (bench.peer(0), bench.peer(0));
    bench.watch_quietly(other, "/");
    let tx = bench.begin(one).unwrap();
    bench.write(tx, "/a", "1").unwrap();
    bench.write(tx, "/a", "2").unwrap();
    bench.rm(tx, "/d").unwrap();
    assert_eq!(bench.events(other), []);
    assert_eq!(bench.commit(tx), OK);
    let mut paths = bench.event_paths(other);
    paths.sort();
    assert_eq!(paths, ["/a", "/d"]);
}

#[test]
fn a_node_written_and_then_removed_with_its_parent_still_fires_above() {
    let mut bench = Bench::default();
    bench.node("/a/b", "1", "n0");
    let (one, other) = (bench.peer(0), bench.peer(0));
    bench.watch_quietly(other, "/a");
    let tx = bench.begin(one).unwrap();
    bench.write(tx, "/a/b", "2").unwrap();
    bench.rm(tx, "/a").unwrap();
    assert_eq!(bench.commit(tx), OK);
    let mut paths = bench.event_paths(other);
    paths.sort();
    assert_eq!(paths, ["/a", "/a/b"]);
}

#[test]
fn a_node_made_and_removed_inside_leaves_no_node() {
    let mut bench = Bench::default();
    let peer = bench.peer(0);
    let tx = bench.begin(peer).unwrap();
    bench.write(tx, "/a/b", "1").unwrap();
    bench.rm(tx, "/a").unwrap();
    assert_eq!(bench.commit(tx), OK);
    assert_eq!(bench.read(peer, "/a"), Err(ErrorCode::NotFound));
    assert_eq!(bench.list(peer, "/").unwrap(), ["tool"]);
}

#[test]
fn permissions_hold_inside() {
    let mut bench = Bench::default();
    bench.home(5);
    bench.node("/secret", "1", "n0");
    let guest = bench.peer(5);
    let tx = bench.begin(guest).unwrap();
    assert_eq!(bench.read(tx, "/secret"), Err(ErrorCode::Access));
    assert_eq!(bench.write(tx, "/secret", "2"), Err(ErrorCode::Access));
    assert_eq!(bench.write(tx, "mine", "2"), OK);
    assert_eq!(bench.commit(tx), OK);
    assert_eq!(bench.get_perms(guest, "mine").unwrap(), "n5");
}

#[test]
fn transactions_belong_to_their_connection() {
    let mut bench = Bench::default();
    let (one, other) = (bench.peer(0), bench.peer(0));
    let tx = bench.begin(one).unwrap();
    let stolen = Peer { tx: tx.tx, ..other };
    assert_eq!(bench.read(stolen, "/"), Err(ErrorCode::NotFound));
    assert_eq!(bench.commit(stolen), Err(ErrorCode::NotFound));
    assert_eq!(bench.commit(tx), OK);
}

#[test]
fn a_transaction_does_not_nest_and_ends_with_t_or_f() {
    let mut bench = Bench::default();
    let peer = bench.peer(0);
    let tx = bench.begin(peer).unwrap();
    assert_eq!(bench.begin(tx).err(), Some(ErrorCode::Busy));
    for bad in [&b"X\0"[..], b"T", b"", b"T\0\0"] {
        let answer = bench.ask(tx, MessageType::TRANSACTION_END, bad);
        assert_eq!(answer, Err(ErrorCode::Invalid), "{bad:?}");
    }
    assert_eq!(bench.commit(peer), Err(ErrorCode::NotFound), "id 0");
    assert_eq!(bench.commit(tx), OK);
}
