//! When watches fire, for whom, and with which path.

use xen_types::DomId;
use xenstore::{ErrorCode, MessageType};

use crate::bench::{Bench, OK};

fn pairs(events: &[(String, String)]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|(path, token)| (path.as_str(), token.as_str()))
        .collect()
}

#[test]
fn a_watch_fires_once_when_it_is_set_even_on_nothing() {
    let mut bench = Bench::default();
    bench.home(5);
    let (dom0, guest) = (bench.peer(0), bench.peer(5));
    assert_eq!(bench.watch(dom0, "/missing", "token one"), OK);
    assert_eq!(pairs(&bench.events(dom0)), [("/missing", "token one")]);
    assert_eq!(bench.watch(dom0, "@releaseDomain", ""), OK);
    assert_eq!(pairs(&bench.events(dom0)), [("@releaseDomain", "")]);
    assert_eq!(bench.watch(guest, "device", "t"), OK);
    assert_eq!(pairs(&bench.events(guest)), [("device", "t")]);
    assert_eq!(bench.events(dom0), []);
}

#[test]
fn changes_at_and_below_the_path_fire_with_the_changed_path() {
    let mut bench = Bench::default();
    let (dom0, writer) = (bench.peer(0), bench.peer(0));
    bench.watch_quietly(dom0, "/a/b");
    for path in ["/a/b", "/a/b/c/d", "/a/bc", "/a", "/x"] {
        bench.write(writer, path, "1").unwrap();
    }
    assert_eq!(bench.event_paths(dom0), ["/a/b", "/a/b/c/d"]);
    bench.mkdir(writer, "/a/b/e").unwrap();
    bench.mkdir(writer, "/a/b/e").unwrap();
    bench.set_perms(writer, "/a/b", "r0").unwrap();
    assert_eq!(bench.event_paths(dom0), ["/a/b/e", "/a/b"]);
    assert_eq!(bench.events(writer), []);
}

#[test]
fn removal_fires_on_each_removed_path_and_once_above() {
    let mut bench = Bench::default();
    bench.node("/a/b/c", "1", "n0");
    let (above, exact, below, writer) =
        (bench.peer(0), bench.peer(0), bench.peer(0), bench.peer(0));
    bench.watch_quietly(above, "/a");
    bench.watch_quietly(exact, "/a/b");
    bench.watch_quietly(below, "/a/b/c");
    bench.rm(writer, "/a/b").unwrap();
    assert_eq!(bench.event_paths(above), ["/a/b"]);
    assert_eq!(bench.event_paths(exact), ["/a/b"]);
    assert_eq!(bench.event_paths(below), ["/a/b/c"]);
    bench.rm(writer, "/a/b").unwrap();
    assert_eq!(bench.events(above), [], "nothing was there to remove");
}

#[test]
fn removal_inside_a_transaction_fires_alike() {
    let mut bench = Bench::default();
    bench.node("/a/b/c", "1", "n0");
    let (above, below, writer) = (bench.peer(0), bench.peer(0), bench.peer(0));
    bench.watch_quietly(above, "/a");
    bench.watch_quietly(below, "/a/b/c");
    let tx = bench.begin(writer).unwrap();
    bench.rm(tx, "/a/b").unwrap();
    bench.commit(tx).unwrap();
    assert_eq!(bench.event_paths(above), ["/a/b"]);
    assert_eq!(bench.event_paths(below), ["/a/b/c"]);
}

#[test]
fn relative_watches_get_relative_paths() {
    let mut bench = Bench::default();
    bench.home(5);
    let (guest, dom0) = (bench.peer(5), bench.peer(0));
    bench.watch_quietly(guest, "device/virtio-msg/0");
    bench
        .write(dom0, "/local/domain/5/device/virtio-msg/0/state", "1")
        .unwrap();
    bench
        .set_perms(dom0, "/local/domain/5/device/virtio-msg/0/state", "n5")
        .unwrap();
    assert_eq!(bench.event_paths(guest), ["device/virtio-msg/0/state"]);
}

#[test]
fn every_watch_of_a_connection_fires_with_its_own_token() {
    let mut bench = Bench::default();
    let peer = bench.peer(0);
    bench.watch(peer, "/a", "one").unwrap();
    bench.watch(peer, "/a", "two").unwrap();
    bench.watch(peer, "/", "one").unwrap();
    bench.events(peer);
    bench.write(peer, "/a/b", "1").unwrap();
    assert_eq!(
        pairs(&bench.events(peer)),
        [("/a/b", "one"), ("/a/b", "two")],
        "identical events wait as one"
    );
}

#[test]
fn the_same_watch_twice_is_refused_and_unwatch_needs_both_parts() {
    let mut bench = Bench::default();
    bench.home(5);
    let guest = bench.peer(5);
    assert_eq!(bench.watch(guest, "a", "t"), OK);
    assert_eq!(bench.watch(guest, "a", "t"), Err(ErrorCode::Exists));
    let absolute = "/local/domain/5/a";
    assert_eq!(bench.watch(guest, absolute, "t"), Err(ErrorCode::Exists));
    let unwatch =
        |bench: &mut Bench, payload: &[u8]| bench.ask(guest, MessageType::UNWATCH, payload);
    assert_eq!(unwatch(&mut bench, b"a\0u\0"), Err(ErrorCode::NotFound));
    assert_eq!(unwatch(&mut bench, b"b\0t\0"), Err(ErrorCode::NotFound));
    assert_eq!(unwatch(&mut bench, b"a\0t\0"), OK);
    assert_eq!(unwatch(&mut bench, b"a\0t\0"), Err(ErrorCode::NotFound));
    bench.events(guest);
    bench.write(guest, "a", "1").unwrap();
    assert_eq!(bench.events(guest), []);
}

#[test]
fn a_guest_sees_no_event_for_what_it_may_not_read() {
    let mut bench = Bench::default();
    bench.node("/dir", "", "n0");
    bench.node("/dir/open", "1", "n0,r5");
    bench.node("/dir/hidden", "1", "n0");
    let (guest, dom0) = (bench.peer(5), bench.peer(0));
    bench.watch_quietly(guest, "/dir");
    bench.write(dom0, "/dir/hidden", "2").unwrap();
    bench.rm(dom0, "/dir/hidden").unwrap();
    assert_eq!(bench.events(guest), []);
    bench.write(dom0, "/dir/open", "2").unwrap();
    assert_eq!(bench.event_paths(guest), ["/dir/open"]);
    bench.set_perms(dom0, "/dir/open", "n0").unwrap();
    assert_eq!(bench.event_paths(guest), ["/dir/open"], "it lost the right");
    bench.write(dom0, "/dir/open", "3").unwrap();
    assert_eq!(bench.events(guest), []);
}

#[test]
fn a_guest_sees_what_it_could_read_go() {
    let mut bench = Bench::default();
    bench.node("/dir", "", "n0");
    bench.node("/dir/open", "1", "n0,r5");
    let (guest, dom0) = (bench.peer(5), bench.peer(0));
    bench.watch_quietly(guest, "/dir/open");
    bench.rm(dom0, "/dir").unwrap();
    assert_eq!(bench.event_paths(guest), ["/dir/open"]);
}

#[test]
fn special_watches_are_dom0s_until_it_gives_them_away() {
    let mut bench = Bench::default();
    let (guest, dom0) = (bench.peer(5), bench.peer(0));
    for name in ["@introduceDomain", "@releaseDomain"] {
        bench.watch_quietly(guest, name);
        bench.watch_quietly(dom0, name);
    }
    bench.server.introduce(DomId(7));
    bench.server.introduce(DomId(7));
    assert_eq!(bench.event_paths(dom0), ["@introduceDomain"]);
    bench.server.shut_down(DomId(7));
    bench.server.release(DomId(7));
    bench.server.release(DomId(7));
    assert_eq!(
        bench.event_paths(dom0),
        ["@releaseDomain", "@releaseDomain"]
    );
    assert_eq!(bench.events(guest), []);
    bench.set_perms(guest, "@releaseDomain", "n5").unwrap_err();
    bench.set_perms(dom0, "@releaseDomain", "n0,r5").unwrap();
    // A change of permissions is a change; the guest may know of this one already.
    assert_eq!(bench.event_paths(guest), ["@releaseDomain"]);
    bench.events(dom0);
    bench.server.introduce(DomId(8));
    bench.server.release(DomId(8));
    assert_eq!(bench.event_paths(guest), ["@releaseDomain"]);
}

#[test]
fn a_watch_on_the_root_does_not_see_special_events() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    bench.watch_quietly(dom0, "/");
    bench.server.introduce(DomId(7));
    assert_eq!(bench.events(dom0), []);
}

#[test]
fn a_dead_domains_nodes_go_and_its_watches_are_silent() {
    let mut bench = Bench::default();
    bench.home(5);
    bench.server.introduce(DomId(5));
    let (guest, dom0) = (bench.peer(5), bench.peer(0));
    bench.write(guest, "a/b", "1").unwrap();
    bench.watch_quietly(guest, "a");
    bench.watch_quietly(dom0, "/local/domain/5/a/b");
    let tx = bench.begin(guest).unwrap();
    bench.server.domain_died(DomId(5));
    bench.server.remove_nodes_of(DomId(5));
    assert_eq!(bench.events(guest), []);
    assert_eq!(bench.event_paths(dom0), ["/local/domain/5/a/b"]);
    assert_eq!(bench.commit(tx), Err(ErrorCode::NotFound));
    assert_eq!(bench.server.nodes_of(DomId(5)), 0);
    assert_eq!(
        bench.list(dom0, "/local/domain").unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn reset_drops_watches_and_transactions_of_one_connection() {
    let mut bench = Bench::default();
    let (one, other) = (bench.peer(0), bench.peer(0));
    bench.watch_quietly(one, "/a");
    bench.watch_quietly(other, "/a");
    let tx = bench.begin(one).unwrap();
    assert_eq!(bench.ask(one, MessageType::RESET_WATCHES, b"\0"), OK);
    bench.write(other, "/a", "1").unwrap();
    assert_eq!(bench.events(one), []);
    assert_eq!(bench.event_paths(other), ["/a"]);
    assert_eq!(bench.commit(tx), Err(ErrorCode::NotFound));
}
