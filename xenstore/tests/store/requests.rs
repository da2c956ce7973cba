//! Single requests: what they answer and how they fail.

use xen_types::DomId;
use xenstore::{ErrorCode, MessageType};

use crate::bench::{Answer, Bench, OK, value};

const INVALID: Answer = Err(ErrorCode::Invalid);

#[test]
fn a_fresh_store_is_that_of_xenstored() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    assert_eq!(bench.list(dom0, "/").unwrap(), ["tool"]);
    assert_eq!(bench.list(dom0, "/tool").unwrap(), ["xenstored"]);
    assert_eq!(bench.get_perms(dom0, "/").unwrap(), "n0");
    assert_eq!(bench.server.nodes_of(DomId(0)), 5);
}

#[test]
fn write_makes_parents_and_keeps_every_byte_of_the_value() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    let payload = b"/a/b\0\0x\0\xff";
    assert_eq!(bench.ask(dom0, MessageType::WRITE, payload), OK);
    assert_eq!(bench.read(dom0, "/a/b"), Ok(b"\0x\0\xff".to_vec()));
    assert_eq!(bench.read(dom0, "/a"), value(""));
    assert_eq!(bench.write(dom0, "/a/b", ""), OK);
    assert_eq!(bench.read(dom0, "/a/b"), value(""));
}

/// As xenstored 4.17.
#[test]
fn the_permissions_of_special_nodes_can_be_set_but_not_read() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    for path in ["@introduceDomain", "@releaseDomain"] {
        assert_eq!(bench.set_perms(dom0, path, "n0,r5"), OK, "{path}");
        assert_eq!(bench.get_perms(dom0, path), Err(ErrorCode::Invalid));
    }
}

#[test]
fn mkdir_leaves_what_exists() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    bench.write(dom0, "/a", "1").unwrap();
    assert_eq!(bench.mkdir(dom0, "/a"), OK);
    assert_eq!(bench.mkdir(dom0, "/b/c"), OK);
    assert_eq!(bench.read(dom0, "/a"), value("1"));
    assert_eq!(bench.list(dom0, "/").unwrap(), ["tool", "a", "b"]);
}

#[test]
fn rm_needs_a_parent_but_no_node() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    bench.write(dom0, "/a/b/c", "1").unwrap();
    assert_eq!(bench.rm(dom0, "/a/x"), OK);
    assert_eq!(bench.rm(dom0, "/x/y"), Err(ErrorCode::NotFound));
    assert_eq!(bench.rm(dom0, "/a"), OK);
    assert_eq!(bench.read(dom0, "/a/b/c"), Err(ErrorCode::NotFound));
    assert_eq!(bench.rm(dom0, "/"), INVALID);
    assert_eq!(bench.list(dom0, "/").unwrap(), ["tool"]);
}

#[test]
fn a_long_directory_comes_in_parts() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    let expected: Vec<String> = (0..500).map(|n| format!("a-long-name-{n}")).collect();
    for name in &expected {
        bench.write(dom0, &format!("/d/{name}"), "").unwrap();
    }
    assert_eq!(bench.list(dom0, "/d"), Err(ErrorCode::TooBig));
    let mut list = Vec::new();
    let mut generations = Vec::new();
    loop {
        let request = format!("/d\0{}\0", list.len());
        let part = bench
            .ask(dom0, MessageType::DIRECTORY_PART, request.as_bytes())
            .unwrap();
        assert!(part.len() <= 4096);
        let end = part.iter().position(|byte| *byte == 0).unwrap();
        generations.push(part[..end].to_vec());
        list.extend_from_slice(&part[end + 1..]);
        if list.ends_with(b"\0\0") {
            break;
        }
        assert!(list.ends_with(b"\0"));
    }
    list.pop();
    let names = String::from_utf8(list).unwrap();
    let names: Vec<&str> = names.split_terminator('\0').collect();
    assert_eq!(names, expected);
    assert!(generations.len() > 1);
    assert!(generations.iter().all(|seen| *seen == generations[0]));
    let beyond = bench.ask(dom0, MessageType::DIRECTORY_PART, b"/d\x0099999\0");
    assert_eq!(beyond, Ok([&generations[0][..], b"\0\0"].concat()));
}

#[test]
fn malformed_requests_are_refused() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    for (kind, payload) in [
        (MessageType::READ, &b""[..]),
        (MessageType::READ, b"/"),
        (MessageType::READ, b"/\0/\0"),
        (MessageType::READ, b"\0"),
        (MessageType::READ, b"//\0"),
        (MessageType::READ, b"/a/\0"),
        (MessageType::READ, b"/a b\0"),
        (MessageType::READ, b"/\xff\0"),
        (MessageType::READ, b"@releaseDomain\0"),
        (MessageType::WRITE, b"/a"),
        (MessageType::WRITE, b"@x\0v"),
        (MessageType::MKDIR, b""),
        (MessageType::SET_PERMS, b"/tool\0"),
        (MessageType::SET_PERMS, b"/tool\0x0\0"),
        (MessageType::SET_PERMS, b"/tool\0n99999\0"),
        (MessageType::DIRECTORY_PART, b"/\0"),
        (MessageType::DIRECTORY_PART, b"/\0-1\0"),
        (MessageType::WATCH, b"/a\0"),
        (MessageType::WATCH, b"/a\0t"),
        (MessageType::WATCH, b"/a\0t\0u\0"),
        (MessageType::WATCH, b"\0t\0"),
        (MessageType::GET_DOMAIN_PATH, b"\0"),
        (MessageType::GET_DOMAIN_PATH, b"x\0"),
        (MessageType::INTRODUCE, b"5\0"),
        (MessageType::INTRODUCE, b"0\x001\x001\0"),
        (MessageType::INTRODUCE, b"32752\x001\x001\0"),
        (MessageType::INTRODUCE, b"5\x001\x000\0"),
        (MessageType::RELEASE, b"0\0"),
        (MessageType::CONTROL, b"help\0"),
    ] {
        assert_eq!(
            bench.ask(dom0, kind, payload),
            INVALID,
            "{kind} {payload:?}"
        );
    }
    assert_eq!(bench.list(dom0, "/").unwrap(), ["tool"]);
}

#[test]
fn unknown_requests_are_not_implemented() {
    let mut bench = Bench::default();
    let guest = bench.peer(5);
    for kind in [15, 16, 19, 20, 23, 1000, u32::MAX] {
        let answer = bench.ask(guest, MessageType(kind), b"/\0");
        assert_eq!(answer, Err(ErrorCode::NotImplemented), "{kind}");
    }
}

#[test]
fn domains_come_and_go_by_request_of_dom0() {
    let mut bench = Bench::default();
    let (dom0, guest) = (bench.peer(0), bench.peer(5));
    bench.watch_quietly(dom0, "@introduceDomain");
    bench.watch_quietly(dom0, "@releaseDomain");
    let ask = |bench: &mut Bench, kind, payload: &str| bench.ask(dom0, kind, payload.as_bytes());
    let introduced = MessageType::IS_DOMAIN_INTRODUCED;
    assert_eq!(ask(&mut bench, introduced, "0\0"), value("T\0"));
    assert_eq!(ask(&mut bench, introduced, "5\0"), value("F\0"));
    let missing = ask(&mut bench, MessageType::RELEASE, "5\0");
    assert_eq!(missing, Err(ErrorCode::NotFound));
    assert_eq!(ask(&mut bench, MessageType::INTRODUCE, "5\x001\x001\0"), OK);
    assert_eq!(bench.event_paths(dom0), ["@introduceDomain"]);
    assert_eq!(ask(&mut bench, introduced, "5\0"), value("T\0"));
    assert_eq!(ask(&mut bench, MessageType::RESUME, "5\0"), OK);
    assert_eq!(ask(&mut bench, MessageType::RELEASE, "5\0"), OK);
    assert_eq!(bench.event_paths(dom0), ["@releaseDomain"]);
    assert_eq!(ask(&mut bench, introduced, "5\0"), value("F\0"));
    for (kind, payload) in [
        (MessageType::INTRODUCE, "6\x001\x001\0"),
        (MessageType::RELEASE, "6\0"),
        (introduced, "5\0"),
        (MessageType::RESUME, "6\0"),
        (MessageType::CONTROL, "help\0"),
    ] {
        let answer = bench.ask(guest, kind, payload.as_bytes());
        assert_eq!(answer, Err(ErrorCode::Access), "{kind}");
    }
}

#[test]
fn anybody_may_ask_for_a_home_directory() {
    let mut bench = Bench::default();
    let guest = bench.peer(5);
    let answer = bench.ask(guest, MessageType::GET_DOMAIN_PATH, b"7\0");
    assert_eq!(answer, value("/local/domain/7\0"));
}

#[test]
fn requests_are_counted_by_type() {
    let mut bench = Bench::default();
    let dom0 = bench.peer(0);
    bench.read(dom0, "/").unwrap();
    bench.read(dom0, "/missing").unwrap_err();
    bench.mkdir(dom0, "/a").unwrap();
    let counts = bench.server.requests();
    assert_eq!(counts.of(MessageType::READ), 2);
    assert_eq!(counts.of(MessageType::MKDIR), 1);
    assert_eq!(counts.total(), 3);
}
