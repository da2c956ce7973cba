//! The client against the server, over sockets.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xen_types::DomId;
use xenstore::server::Server;
use xenstore::wire::PathError;
use xenstore::{
    Access, Client, ErrorCode, MessageType, Permissions, StoreError, TRANSACT_ATTEMPTS, Tree,
    WatchEvent,
};

use crate::hub::connect;

fn store() -> Server {
    let mut server = Server::default();
    server
        .make_node("/local/domain/5", b"", Permissions::private(DomId(5)))
        .unwrap();
    server
}

fn event(path: &str, token: &str) -> WatchEvent {
    WatchEvent {
        path: path.to_owned(),
        token: token.to_owned(),
    }
}

/// All events that were fired up to now: what a server sends, it sends in order.
fn events(client: &mut Client) -> Vec<WatchEvent> {
    client.get_domain_path(DomId(0)).unwrap();
    std::iter::from_fn(|| client.next_event().unwrap()).collect()
}

/// Long enough for any machine; only a failing test waits that long.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn every_request_finds_its_counterpart() {
    let ([mut dom0], hub) = connect(store(), [0]);
    dom0.write("/a/b", "one").unwrap();
    dom0.write("/a/b", b"\0two\xff").unwrap();
    assert_eq!(dom0.read("/a/b").unwrap(), b"\0two\xff");
    assert_eq!(dom0.read_opt("/a/x").unwrap(), None);
    dom0.mkdir("/a/c").unwrap();
    assert_eq!(dom0.directory("/a").unwrap(), ["b", "c"]);
    assert_eq!(dom0.directory("/a/c").unwrap(), Vec::<String>::new());
    let perms = Permissions::private(DomId(5)).with(DomId(7), Access::Read);
    dom0.set_perms("/a", &perms).unwrap();
    assert_eq!(dom0.get_perms("/a").unwrap(), perms);
    dom0.rm("/a").unwrap();
    assert!(matches!(dom0.read("/a/b"), Err(StoreError::NotFound { path }) if path == "/a/b"));
    assert_eq!(dom0.get_domain_path(DomId(9)).unwrap(), "/local/domain/9");
    assert!(!dom0.is_domain_introduced(DomId(9)).unwrap());
    dom0.introduce(DomId(9), 1, 2).unwrap();
    assert!(dom0.is_domain_introduced(DomId(9)).unwrap());
    dom0.release(DomId(9)).unwrap();
    assert!(!dom0.is_domain_introduced(DomId(9)).unwrap());
    let counted = *dom0.requests();
    drop(dom0);
    assert_eq!(hub.join().unwrap().requests(), &counted);
    assert_eq!(counted.of(MessageType::WRITE), 2);
    assert_eq!(counted.total(), 17);
}

#[test]
fn errors_say_what_happened_to_which_path() {
    let ([mut guest], _hub) = connect(store(), [5]);
    let denied = guest.write("/tool/x", "1").unwrap_err();
    assert_eq!(
        denied.to_string(),
        "XenStore /tool/x: no permission (EACCES)"
    );
    assert!(denied.is_absent());
    let missing = guest.read("x").unwrap_err();
    assert_eq!(missing.to_string(), "XenStore x: does not exist");
    let full = guest.write("x", "v".repeat(3000)).unwrap_err();
    assert_eq!(
        full.to_string(),
        "XenStore x: WRITE goes beyond a quota of this domain (ENOSPC)"
    );
    let refused = guest.is_domain_introduced(DomId(1)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "XenStore domain 1: no permission (EACCES)"
    );
}

#[test]
fn what_cannot_be_right_is_not_sent() {
    let ([mut dom0], _hub) = connect(store(), [0]);
    for bad in ["", "/a b", "/a/", "/a\0b"] {
        assert!(matches!(dom0.read(bad), Err(StoreError::BadPath { path, .. }) if path == bad));
        assert!(dom0.watch(bad, "t").is_err());
    }
    assert!(matches!(
        dom0.write("/a//b", "1"),
        Err(StoreError::BadPath {
            reason: PathError::EmptyPart,
            ..
        })
    ));
    assert!(matches!(
        dom0.write("/a", "v".repeat(4094)),
        Err(StoreError::TooLong {
            len: 4097,
            max: 4096,
            ..
        })
    ));
    assert!(matches!(
        dom0.watch("/a", "to\0ken"),
        Err(StoreError::Token { .. })
    ));
    assert_eq!(dom0.requests().total(), 0);
    dom0.write("/a", "v".repeat(4093)).unwrap();
    assert_eq!(dom0.read("/a").unwrap().len(), 4093);
}

#[test]
fn relative_paths_are_those_of_the_guest() {
    let ([mut guest, mut dom0], _hub) = connect(store(), [5, 0]);
    guest.watch("device", "t").unwrap();
    assert_eq!(events(&mut guest), [event("device", "t")]);
    guest.write("device/virtio-msg/0/state", "1").unwrap();
    let path = "/local/domain/5/device/virtio-msg/0/state";
    assert_eq!(dom0.read(path).unwrap(), b"1");
    assert_eq!(
        events(&mut guest),
        [event("device/virtio-msg/0/state", "t")]
    );
}

#[test]
fn events_that_come_between_request_and_answer_are_kept() {
    let ([mut dom0], _hub) = connect(store(), [0]);
    dom0.watch("/a", "t").unwrap();
    // The server fires before it answers.
    dom0.write("/a/b", "1").unwrap();
    dom0.write("/a/b", "2").unwrap();
    dom0.rm("/a").unwrap();
    let expected = ["/a", "/a/b"].map(|path| event(path, "t"));
    assert_eq!(events(&mut dom0), expected, "equal ones wait as one");
}

#[test]
fn the_descriptor_becomes_readable_for_an_event() {
    let ([mut watcher, mut writer], _hub) = connect(store(), [0, 0]);
    watcher.watch("/a", "t").unwrap();
    assert_eq!(watcher.wait_event(LONG).unwrap(), Some(event("/a", "t")));
    assert_eq!(watcher.next_event().unwrap(), None);
    assert_eq!(watcher.wait_event(Duration::ZERO).unwrap(), None);
    writer.write("/a/b", "1").unwrap();
    let mut ready = [PollFd::from_borrowed_fd(watcher.as_fd(), PollFlags::IN)];
    let limit = Timespec::try_from(LONG).unwrap();
    assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1);
    assert_eq!(watcher.next_event().unwrap(), Some(event("/a/b", "t")));
}

#[test]
fn unwatch_silences_what_is_queued_already() {
    let ([mut dom0], _hub) = connect(store(), [0]);
    dom0.watch("/a", "t").unwrap();
    dom0.watch("/b", "u").unwrap();
    dom0.write("/a", "1").unwrap();
    dom0.unwatch("/a", "t").unwrap();
    assert_eq!(events(&mut dom0), [event("/b", "u")]);
    dom0.write("/a", "2").unwrap();
    assert_eq!(events(&mut dom0), []);
    assert!(matches!(
        dom0.unwatch("/a", "t"),
        Err(StoreError::NotFound { .. })
    ));
}

#[test]
fn a_refused_watch_leaves_the_one_that_stands() {
    let ([mut dom0], _hub) = connect(store(), [0]);
    dom0.watch("/a", "t").unwrap();
    assert!(matches!(
        dom0.watch("/a", "t"),
        Err(StoreError::Refused {
            code: ErrorCode::Exists,
            ..
        })
    ));
    assert_eq!(events(&mut dom0), [event("/a", "t")]);
    dom0.write("/a", "1").unwrap();
    assert_eq!(events(&mut dom0), [event("/a", "t")]);
}

#[test]
fn a_list_that_fits_into_no_message_comes_whole() {
    let ([mut dom0], _hub) = connect(store(), [0]);
    let names: Vec<String> = (0..700)
        .map(|n| format!("a-rather-long-name-{n}"))
        .collect();
    for name in &names {
        dom0.mkdir(&format!("/d/{name}")).unwrap();
    }
    assert_eq!(dom0.directory("/d").unwrap(), names);
    assert!(dom0.requests().of(MessageType::DIRECTORY_PART) > 1);
    let mut tx = dom0.begin().unwrap();
    tx.rm(&format!("/d/{}", names[0])).unwrap();
    assert_eq!(tx.directory("/d").unwrap(), names[1..]);
}

#[test]
fn a_dropped_transaction_is_aborted() {
    let ([mut guest], _hub) = connect(store(), [5]);
    // Twice as many as a guest may have open.
    for _ in 0..20 {
        let mut tx = guest.begin().unwrap();
        tx.write("a", "1").unwrap();
    }
    assert_eq!(guest.read_opt("a").unwrap(), None);
    let tx = guest.begin().unwrap();
    tx.abort().unwrap();
    assert_eq!(guest.requests().of(MessageType::TRANSACTION_END), 21);
}

#[test]
fn a_conflict_is_told_apart() {
    let ([mut one, mut two], _hub) = connect(store(), [0, 0]);
    let mut tx = one.begin().unwrap();
    assert_eq!(tx.read_opt("/a").unwrap(), None);
    tx.write("/b", "1").unwrap();
    two.write("/a", "1").unwrap();
    assert!(matches!(tx.commit(), Err(StoreError::Conflict)));
    assert_eq!(one.read_opt("/b").unwrap(), None);
}

#[test]
fn transact_does_everything_again_after_a_conflict() {
    let ([mut one, mut two], _hub) = connect(store(), [0, 0]);
    let mut attempts = 0;
    let seen: Result<_, StoreError> = one.transact(|tx| {
        attempts += 1;
        let seen = tx.read_opt("/a")?;
        if attempts < 3 {
            two.write("/a", attempts.to_string())?;
        }
        tx.write("/b", "done")?;
        Ok(seen)
    });
    assert_eq!(seen.unwrap(), Some(b"2".to_vec()));
    assert_eq!(attempts, 3);
    assert_eq!(two.read("/b").unwrap(), b"done");
}

#[test]
fn transact_gives_up_after_a_bounded_number_of_conflicts() {
    let ([mut one, mut two], _hub) = connect(store(), [0, 0]);
    let mut attempts = 0;
    let result: Result<(), StoreError> = one.transact(|tx| {
        attempts += 1;
        tx.read_opt("/a")?;
        two.write("/a", "1")
    });
    assert!(matches!(result, Err(StoreError::Conflict)));
    assert_eq!(attempts, TRANSACT_ATTEMPTS);
}

#[test]
fn an_error_inside_transact_aborts() {
    let ([mut dom0], _hub) = connect(store(), [0]);
    let result: Result<(), StoreError> = dom0.transact(|tx| {
        tx.write("/a", "1")?;
        tx.read("/missing").map(drop)
    });
    assert!(matches!(result, Err(StoreError::NotFound { .. })));
    assert_eq!(dom0.read_opt("/a").unwrap(), None);
}

#[test]
fn no_increment_of_two_racing_clients_is_lost() {
    const EACH: usize = 100;
    let ([one, two, mut reader], hub) = connect(store(), [0, 0, 0]);
    let threads = [one, two].map(|mut client| {
        std::thread::spawn(move || {
            let mut done = 0;
            while done < EACH {
                let result = client.transact(|tx| {
                    let count = tx.read_opt("/count")?.unwrap_or(b"0".to_vec());
                    let count = xen_types::parse_decimal(&count).unwrap();
                    tx.write("/count", (count + 1).to_string())
                });
                match result {
                    Ok(()) => done += 1,
                    Err(StoreError::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(
        reader.read("/count").unwrap(),
        (2 * EACH).to_string().as_bytes()
    );
    drop(reader);
    hub.join().unwrap();
}
