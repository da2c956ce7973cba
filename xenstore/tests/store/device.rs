//! The client over something that behaves as `/dev/xen/xenbus`: whole messages per write, some
//! failures as errno, answers to WATCH and UNWATCH without the request's id.

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use xenstore::wire::{Decoder, Message};
use xenstore::{Client, ErrorCode, MessageType, StoreError, Tree};

/// A kernel that gives each request, which must be one write, to `answer`.
fn device(
    mut answer: impl FnMut(Message) -> Vec<Message> + Send + 'static,
) -> (Client, JoinHandle<()>) {
    let (near, far) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let kernel = std::thread::spawn(move || {
        let mut packet = [0; 5000];
        loop {
            let (len, _) = rustix::net::recv(&far, &mut packet, RecvFlags::empty()).unwrap();
            if len == 0 {
                return;
            }
            let mut input = &packet[..len];
            let request = Decoder::default().decode(&mut input).unwrap();
            assert!(input.is_empty(), "one message per write");
            let mut bytes = Vec::new();
            for message in answer(request.expect("a whole message per write")) {
                message.encode(&mut bytes).unwrap();
            }
            rustix::net::send(&far, &bytes, SendFlags::empty()).unwrap();
        }
    });
    (Client::from_device(near).unwrap(), kernel)
}

fn message(kind: MessageType, req_id: u32, payload: &[u8]) -> Message {
    Message {
        kind,
        req_id,
        tx_id: 0,
        payload: payload.to_vec(),
    }
}

#[test]
fn each_message_is_one_write() {
    let (mut client, kernel) = device(|request| vec![request]);
    let value = "v".repeat(4000);
    client.write("device/x", &value).unwrap();
    assert_eq!(client.read("device/x").unwrap(), b"device/x\0");
    client.begin().unwrap_err();
    drop(client);
    kernel.join().unwrap();
}

#[test]
fn the_header_counts_against_the_kernels_buffer() {
    let (mut client, _kernel) = device(|request| vec![request]);
    client.write("/a", "v".repeat(4080 - 3)).unwrap();
    assert!(matches!(
        client.write("/a", "v".repeat(4080 - 2)),
        Err(StoreError::TooLong {
            len: 4081,
            max: 4080,
            ..
        })
    ));
}

#[test]
fn watches_of_old_kernels_are_answered_without_an_id_and_after_the_event() {
    let (mut client, _kernel) = device(|request| {
        let event = message(MessageType::WATCH_EVENT, 0xdead_beef, b"/a\0t\0");
        vec![event, message(request.kind, 0, b"OK\0")]
    });
    client.watch("/a", "t").unwrap();
    let event = client.next_event().unwrap().unwrap();
    assert_eq!((event.path.as_str(), event.token.as_str()), ("/a", "t"));
    client.unwatch("/a", "t").unwrap();
    assert_eq!(client.next_event().unwrap(), None);
}

#[test]
fn other_requests_need_their_id() {
    let (mut client, _kernel) = device(|request| vec![message(request.kind, 0, b"v")]);
    assert!(matches!(
        client.read("/a"),
        Err(StoreError::Protocol { .. })
    ));
    assert!(matches!(client.read("/a"), Err(StoreError::Closed)));
}

#[test]
fn an_errno_of_write_is_an_answer_and_the_connection_lives_on() {
    let full = OwnedFd::from(
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap(),
    );
    let mut client = Client::from_device(full).unwrap();
    for _ in 0..2 {
        assert!(matches!(
            client.watch("/a", "t"),
            Err(StoreError::Quota {
                code: ErrorCode::NoSpace,
                ..
            })
        ));
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Client::connect_device(&dir.path().join("xenbus")).unwrap_err();
    assert!(error.to_string().contains("xenbus"), "{error}");
}
