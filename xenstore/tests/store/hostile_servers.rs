//! A client faces a daemon that is dead, dying or mad: it errs, it never hangs.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use proptest::prelude::*;
use xenstore::wire::{Decoder, Message};
use xenstore::{Client, MessageType, StoreError, Tree};

/// A client whose daemon sent `bytes` ahead of everything, and the daemon's end.
fn ahead(bytes: &[u8]) -> (Client, UnixStream) {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(bytes).unwrap();
    (Client::from_stream(near).unwrap(), far)
}

fn encoded(kind: MessageType, req_id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let message = Message {
        kind,
        req_id,
        tx_id: 0,
        payload: payload.to_vec(),
    };
    message.encode(&mut bytes).unwrap();
    bytes
}

/// The first request of a client has this id.
const FIRST: u32 = 1;

/// The client's connection is over after the error.
fn assert_broken(client: &mut Client) {
    assert!(matches!(client.read("/a"), Err(StoreError::Closed)));
    assert!(matches!(client.next_event(), Err(StoreError::Closed)));
}

#[test]
fn a_daemon_that_does_not_answer_is_named_after_the_time_limit() {
    let (mut client, _daemon) = ahead(b"");
    client.set_timeout(Duration::from_millis(20));
    let error = client.read("/a").unwrap_err();
    assert_eq!(
        error.to_string(),
        "XenStore did not answer READ /a within 20ms: is the daemon alive?"
    );
    assert_broken(&mut client);
}

#[test]
fn a_daemon_that_does_not_read_is_named_too() {
    let (mut client, _daemon) = ahead(b"");
    client.set_timeout(Duration::from_millis(20));
    let mut tries = 0;
    // Answers never come; but the buffers of the socket take some requests before that matters.
    while !matches!(
        client.write("/a", "v".repeat(4000)),
        Err(StoreError::Timeout { .. })
    ) {
        tries += 1;
        assert!(tries < 1000);
    }
    assert_broken(&mut client);
}

#[test]
fn an_event_that_was_read_along_with_an_answer_is_not_slept_over() {
    let watched = encoded(MessageType::WATCH, FIRST, b"OK\0");
    let read = encoded(MessageType::READ, FIRST + 1, b"value");
    let event = encoded(MessageType::WATCH_EVENT, 0, b"/a\0t\0");
    let (mut client, mut daemon) = ahead(&watched);
    client.watch("/a", "t").unwrap();
    daemon.write_all(&[read, event].concat()).unwrap();
    assert_eq!(client.read("/b").unwrap(), b"value");
    // The descriptor will never say so.
    assert!(client.has_event());
}

#[test]
fn half_an_answer_is_no_answer() {
    let whole = encoded(MessageType::READ, FIRST, b"value");
    let (mut client, _daemon) = ahead(&whole[..whole.len() - 1]);
    client.set_timeout(Duration::from_millis(20));
    assert!(matches!(client.read("/a"), Err(StoreError::Timeout { .. })));
    assert_broken(&mut client);
}

#[test]
fn a_daemon_that_dies_ends_the_request_at_once() {
    for bytes in [
        Vec::new(),
        encoded(MessageType::READ, FIRST, b"v")[..10].to_vec(),
    ] {
        let (mut client, mut daemon) = ahead(&bytes);
        let request = std::thread::spawn(move || {
            let result = client.read("/a");
            (client, result)
        });
        let mut header = [0; 16];
        daemon.read_exact(&mut header).unwrap();
        drop(daemon);
        let (mut client, result) = request.join().unwrap();
        assert!(result.is_err() && !matches!(result, Err(StoreError::Timeout { .. })));
        assert_broken(&mut client);
    }
}

#[test]
fn wrong_answers_end_the_connection() {
    for bad in [
        encoded(MessageType::READ, FIRST + 1, b"v"),
        encoded(MessageType::WRITE, FIRST, b"v"),
        encoded(MessageType::ERROR, FIRST + 1, b"ENOENT\0"),
        encoded(MessageType::READ, 0, b"v"),
        encoded(MessageType(99), FIRST, b""),
        encoded(MessageType::WATCH_EVENT, 0, b"no nul, no token"),
        encoded(MessageType::WATCH_EVENT, 0, b"/bad path\0t\0"),
    ] {
        let (mut client, _daemon) = ahead(&bad);
        assert!(
            matches!(client.read("/a"), Err(StoreError::Protocol { .. })),
            "{bad:?}"
        );
        assert_broken(&mut client);
    }
}

#[test]
fn an_answer_longer_than_the_protocol_allows_ends_the_connection() {
    let mut header = encoded(MessageType::READ, FIRST, b"");
    header[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
    let (mut client, _daemon) = ahead(&header);
    assert!(matches!(client.read("/a"), Err(StoreError::Wire(_))));
    assert_broken(&mut client);
}

#[test]
fn an_unknown_error_name_is_a_refusal() {
    let (mut client, _daemon) = ahead(&encoded(MessageType::ERROR, FIRST, b"EWHATEVER\0"));
    assert!(matches!(client.read("/a"), Err(StoreError::Refused { .. })));
}

#[test]
fn names_that_are_none_do_not_get_through() {
    for bad in [&b"a/b\0"[..], b"\0", b"a\0\0", b"\xff\0", b"a b\0"] {
        let (mut client, _daemon) = ahead(&encoded(MessageType::DIRECTORY, FIRST, bad));
        let answer = client.directory("/a");
        assert!(
            matches!(answer, Err(StoreError::Protocol { .. })),
            "{bad:?}"
        );
    }
    let (mut client, _daemon) = ahead(&encoded(MessageType::GET_PERMS, FIRST, b"x9\0"));
    assert!(matches!(
        client.get_perms("/a"),
        Err(StoreError::Permissions { .. })
    ));
}

/// Sends `chunk` until the client closes.
fn flood(mut daemon: UnixStream, chunk: Vec<u8>) {
    std::thread::spawn(move || while daemon.write_all(&chunk).is_ok() {});
}

#[test]
fn events_without_end_do_not_hold_a_request_for_ever() {
    let (mut client, daemon) = ahead(b"");
    client.set_timeout(Duration::from_millis(50));
    flood(
        daemon,
        encoded(MessageType::WATCH_EVENT, 0, b"/a\0t\0").repeat(500),
    );
    assert!(matches!(client.read("/a"), Err(StoreError::Timeout { .. })));
}

#[test]
fn events_of_nobodys_watch_do_not_hold_a_look_for_ever() {
    let (mut client, daemon) = ahead(b"");
    flood(
        daemon,
        encoded(MessageType::WATCH_EVENT, 0, b"/a\0t\0").repeat(500),
    );
    let error = loop {
        match client.next_event() {
            Ok(None) => {}
            Ok(Some(event)) => panic!("{event:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Protocol { .. }), "{error}");
}

#[test]
fn a_directory_that_never_ends_is_given_up() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut client = Client::from_stream(near).unwrap();
    let daemon = std::thread::spawn(move || {
        let mut decoder = Decoder::default();
        let mut bytes = [0; 4096];
        let part = [b"1\0".to_vec(), b"name\0".repeat(800)].concat();
        while let Ok(read @ 1..) = far.read(&mut bytes) {
            let mut input = &bytes[..read];
            while let Some(request) = decoder.decode(&mut input).unwrap() {
                let answer = match request.kind {
                    MessageType::DIRECTORY => {
                        encoded(MessageType::ERROR, request.req_id, b"E2BIG\0")
                    }
                    kind => encoded(kind, request.req_id, &part),
                };
                far.write_all(&answer).unwrap();
            }
        }
    });
    assert!(matches!(
        client.directory("/a"),
        Err(StoreError::Protocol { .. })
    ));
    drop(client);
    daemon.join().unwrap();
}

/// As a list of children is that grows while it is read.
#[test]
fn a_directory_that_changes_between_its_parts_is_read_anew() {
    let part = |req_id, payload: &[u8]| encoded(MessageType::DIRECTORY_PART, req_id, payload);
    let answers = [
        encoded(MessageType::ERROR, FIRST, b"E2BIG\0"),
        part(FIRST + 1, b"7\0one\0"),
        part(FIRST + 2, b"8\0three\0\0"),
        part(FIRST + 3, b"8\0one\0two\0"),
        part(FIRST + 4, b"8\0three\0\0"),
    ];
    let (mut client, mut daemon) = ahead(&[]);
    let daemon = std::thread::spawn(move || {
        let mut asked = Vec::new();
        let mut decoder = Decoder::default();
        let mut bytes = [0; 4096];
        for answer in answers {
            let read = daemon.read(&mut bytes).unwrap();
            let mut input = &bytes[..read];
            let request = decoder.decode(&mut input).unwrap().unwrap();
            asked.push(String::from_utf8(request.payload).unwrap());
            daemon.write_all(&answer).unwrap();
        }
        asked
    });
    assert_eq!(client.directory("/a").unwrap(), ["one", "two", "three"]);
    let asked = daemon.join().unwrap();
    let offsets = ["/a\0", "/a\x000\0", "/a\x004\0", "/a\x000\0", "/a\x008\0"];
    assert_eq!(asked, offsets);
}

#[test]
fn a_socket_where_nobody_listens_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let error = Client::connect_socket(&path).unwrap_err();
    assert!(error.to_string().contains("socket"), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(Client::connect_socket(&path).is_ok());
    drop(listener);
    assert!(matches!(
        Client::connect_socket(&path),
        Err(StoreError::Connect { .. })
    ));
}

proptest! {
    #[test]
    fn any_bytes_from_the_daemon_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (mut client, daemon) = ahead(&bytes);
        daemon.shutdown(std::net::Shutdown::Write).unwrap();
        prop_assert!(client.read("/a").is_err());
        assert_broken(&mut client);
    }

    /// Messages that are whole but have any contents.
    #[test]
    fn any_messages_from_the_daemon_are_survived(
        messages in proptest::collection::vec((0u32..24, 0u32..3, "(/|a|\0|ENOENT|\\PC){0,6}"), 0..8),
    ) {
        let bytes: Vec<u8> = messages
            .iter()
            .flat_map(|(kind, req_id, payload)| encoded(MessageType(*kind), *req_id, payload.as_bytes()))
            .collect();
        let (mut client, daemon) = ahead(&bytes);
        daemon.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = client.watch("/a", "t");
        let _ = client.directory("/a");
        let _ = client.get_perms("/a");
        let _ = client.transact(|tx| tx.write("/a", "1"));
        while let Ok(Some(_)) = client.next_event() {}
    }
}
