//! The published binding (`docs/xen-bus-binding.md`) and its C header (`docs/virtio-msg-xen.h`) say
//! what the code does: every table behind a `checked:` comment, and every constant of the header.
//!
//! Not checked: prose, and the tables of section 3 that say in words what the table of every pair,
//! which `handshake_table.rs` makes from the code, says in full.

#[path = "published/header.rs"]
mod header;
#[path = "published/tables.rs"]
mod tables;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::Ordering;

use guest_memory::{Access, Area};
use xen_bus::config::DeviceConfig;
use xen_bus::handshake::{RETRY_DELAY, Wait, XenbusState};
use xen_bus::keys::{BackendOffer, Directory, FrontendKeys, REVISION};
use xen_bus::layout::{Direction, MAX_RING_PAGES, RingLayout};
use xen_bus::messages::{
    AREA_SHARE, AREA_UNSHARE, AreaReply, AreaResult, MessageError, PrivateMessage, REMOVE_REQUEST,
};
use xen_bus::ring::{
    Fence, MessageRing, RING_MAGIC, RING_VERSION, RingState, RingWords, Role, Word,
};
use xen_types::{BusAddr, EvtchnPort, Form, GrantRef, PAGE_SIZE, Session};

use tables::{TEXT, from_hex, need_vectors, number, row_of, slots, table};

const STATES: &str = include_str!("handshake/table.md");

#[test]
fn the_keys_of_an_offer_are_those_that_the_backend_writes() {
    let emitted: Directory = bytes(BackendOffer::new(Session(7)).emit());
    let rows = table("backend keys");
    let offered: Vec<_> = rows
        .iter()
        .filter(|row| row[1] == "backend" && row[0] != "error")
        .collect();
    let names: BTreeSet<_> = offered.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, BTreeSet::from(BackendOffer::KEYS));
    for row in offered {
        let [key, _, default, possible, absent, _] = &row[..] else {
            panic!("{row:?}");
        };
        if key != "session" {
            assert_eq!(emitted[key], default.as_bytes(), "{key}");
        }
        let accepts = |text: &Directory| BackendOffer::parse(text).is_ok();
        check_absent(&emitted, key, absent, accepts);
        check_possible(&emitted, key, possible, 0, accepts);
    }
    let nodes = rows.len() + ["the directory", "device/", "F's instances"].len();
    assert_said(&format!("{nodes} nodes owned by B"));
}

#[test]
fn the_keys_of_a_choice_are_those_that_the_frontend_writes() {
    let offer = BackendOffer::new(Session(7));
    let offered = bytes(offer.emit());
    let emitted = bytes(choice().emit());
    let rows = table("frontend keys");
    let names: BTreeSet<_> = rows
        .iter()
        .filter(|row| row[1] == "frontend")
        .map(|row| row[0].as_str())
        .collect();
    let expected = FrontendKeys::KEYS.into_iter().chain(["ring-ref<i>"]);
    assert_eq!(names, expected.collect());
    for row in rows.iter().filter(|row| row[1] == "frontend") {
        let [key, _, possible, absent, _] = &row[..] else {
            panic!("{row:?}");
        };
        let most = offered
            .get(&format!("max-{key}"))
            .or_else(|| offered.get(key))
            .map_or(0, |value| number(std::str::from_utf8(value).unwrap()));
        let key = key.replace("<i>", "0");
        let accepts = |text: &Directory| {
            FrontendKeys::parse(text).is_ok_and(|keys| keys.check(&offer).is_ok())
        };
        check_absent(&emitted, &key, absent, accepts);
        check_possible(&emitted, &key, possible, most, accepts);
    }
    let fixed = rows.len() - 1 + ["the directory"].len();
    let nodes = format!(
        "{} (ring order 0) to {} (order 4) owned by F",
        fixed + 1,
        fixed + MAX_RING_PAGES
    );
    assert_said(&nodes);
}

#[test]
fn the_grammar_of_a_device_has_these_keys() {
    let line = "type=blk,mode=rw,serial=root,queues=4,path=/srv/a.img";
    assert_said(line);
    assert_eq!(line.parse::<DeviceConfig>().unwrap().to_string(), line);
    let rows = table("config keys");
    let names: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    let (last, others) = names.split_last().unwrap();
    let error = "type=blk,x=1".parse::<DeviceConfig>().unwrap_err();
    let listed = format!("there are {} and {last}", others.join(", "));
    assert!(error.to_string().ends_with(&listed), "{error}");
}

#[test]
fn every_pair_of_states_is_printed_as_the_code_has_it() {
    let name = "crates/xen-bus/tests/handshake/table.md";
    let (_, rest) = TEXT.split_once(&format!("<!-- begin: {name} -->")).unwrap();
    let (printed, _) = rest.split_once(&format!("<!-- end: {name} -->")).unwrap();
    assert!(
        printed.trim() == STATES.trim(),
        "copy {name} into the document"
    );
}

#[test]
fn states_have_these_numbers_and_names() {
    let rows = table("states");
    let printed: Vec<_> = rows
        .iter()
        .map(|row| (number(&row[0]), row[1].clone()))
        .collect();
    let expected: Vec<_> = XenbusState::ALL[1..]
        .iter()
        .map(|state| (u64::from(state.number()), format!("{state:?}")))
        .collect();
    assert_eq!(printed, expected);
}

#[test]
fn fields_of_the_ring_lie_where_the_table_says() {
    let layout = RingLayout::new(2, 264).unwrap();
    let area = Area::anonymous(layout.pages() * PAGE_SIZE).unwrap();
    let window = || {
        let lease = area.lease();
        lease.window(0, layout.bytes(), Access::Write).unwrap()
    };
    MessageRing::create(window(), layout, Session(0x1234_5678)).unwrap();
    let header = |field: &str| match field {
        "magic, 0x424d5658" => Some(RING_MAGIC),
        "layout, 1" => Some(RING_VERSION),
        "stride" => Some(layout.stride()),
        "slots" => Some(layout.slots()),
        "session" => Some(0x1234_5678),
        _ => None,
    };
    let rows = table("ring");
    assert_eq!(rows.len(), 5 + words().len() + 1);
    for row in rows {
        let (offset, field) = (number(&row[0]), row[1].as_str());
        if let Some(value) = header(field) {
            let got = window().range().load_u32(offset, Ordering::Relaxed);
            assert_eq!(got.unwrap(), value, "{field}");
        } else if let Some((_, word)) = words().into_iter().find(|(name, _)| *name == field) {
            assert_eq!(offset, word.offset(), "{field}");
            let writer = match word {
                Word::Producer(direction) | Word::SpaceAt(direction) => writer(direction),
                Word::Consumer(Direction::ToDevice) | Word::WakeAt(Direction::ToDevice) => {
                    "backend"
                }
                Word::Consumer(Direction::ToDriver) | Word::WakeAt(Direction::ToDriver) => {
                    "frontend"
                }
            };
            assert_eq!(row[2], writer, "{field}");
        } else {
            assert_eq!(field, "to-device slots, then to-driver slots");
            assert_eq!(offset, layout.slot_offset(Direction::ToDevice, 0));
        }
    }
}

#[test]
fn slots_are_those_of_the_table() {
    for (message_size, order, slots) in slots() {
        let got = RingLayout::new(order, message_size).map_or(0, |layout| layout.slots());
        assert_eq!(got, slots, "order {order}, message size {message_size}");
    }
}

#[test]
fn both_sides_notify_as_the_vectors_of_need_say() {
    for (new, old, at, need) in need_vectors() {
        let layout = RingLayout::new(0, 264).unwrap();
        let messages = new.wrapping_sub(old);
        assert!(messages <= layout.slots(), "the ring cannot move so far");
        let ring = |words: &[(Word, u32)], state| {
            let words = Words(RefCell::new(words.iter().copied().collect()));
            MessageRing::resumed(words, layout, Role::Frontend, state)
        };

        let mut producer = ring(
            &[
                (Word::Consumer(Direction::ToDevice), old),
                (Word::WakeAt(Direction::ToDevice), at),
            ],
            RingState {
                produced: old,
                ..RingState::default()
            },
        );
        for _ in 0..messages {
            producer.try_send(&[0; 8]).unwrap();
        }
        assert_eq!(producer.flush(), need, "producer ({new}, {old}, {at})");

        let mut consumer = ring(
            &[
                (Word::Producer(Direction::ToDriver), new),
                (Word::SpaceAt(Direction::ToDriver), at),
            ],
            RingState {
                consumed: old,
                ..RingState::default()
            },
        );
        for _ in 0..messages {
            assert_eq!(consumer.try_recv(&mut [0; 264]), Ok(Some(8)));
        }
        assert_eq!(consumer.consume(), need, "consumer ({new}, {old}, {at})");
    }
}

#[test]
fn addresses_name_what_the_table_says() {
    for row in table("addresses") {
        let names = match BusAddr(number(&row[0])).form() {
            Some(Form::Area { id, offset }) => format!("area {id}, offset {offset}"),
            Some(Form::Grant { gref, offset }) => format!("grant {gref}, offset {offset}"),
            None => "nothing".to_owned(),
        };
        assert_eq!(row[1], names, "{}", row[0]);
    }
}

#[test]
fn messages_have_these_ids_and_lengths() {
    let known = [
        ("AREA_SHARE", AREA_SHARE),
        ("AREA_UNSHARE", AREA_UNSHARE),
        ("REMOVE_REQUEST (event)", REMOVE_REQUEST),
    ];
    let rows = table("message ids");
    for (name, id) in known {
        assert_eq!(number(&row_of(&rows, 1, name)[0]), u64::from(id));
    }
    for row in rows {
        let id = u8::try_from(number(&row[0])).unwrap();
        for (response, fields) in [(false, &row[3]), (true, &row[4])] {
            let result = PrivateMessage::parse(id, response, &[0; 64]);
            match result.unwrap_err() {
                MessageError::Length { expected, .. } => {
                    let len =
                        2 * fields.matches("le16").count() + 4 * fields.matches("le32").count();
                    assert_eq!(expected, len, "{row:?}");
                }
                MessageError::Unknown { .. } => assert_eq!(fields, "", "{row:?}"),
            }
        }
    }
}

#[test]
fn results_have_these_numbers() {
    let rows = table("results");
    for (row, result) in rows.iter().zip(0..) {
        assert_eq!(number(&row[0]), u64::from(result));
        assert_eq!(AreaResult(result).to_string(), row[1]);
    }
    let next = AreaResult(u16::try_from(rows.len()).unwrap()).to_string();
    assert!(next.starts_with("unknown"), "{next} is not in the table");
}

#[test]
fn payloads_are_those_of_the_vectors() {
    for row in table("message vectors") {
        let (id, kind) = row[0].split_once(' ').unwrap();
        let id = u8::try_from(number(id)).unwrap();
        let payload = from_hex(&row[1]);
        let message = PrivateMessage::parse(id, kind == "response", &payload).unwrap();
        assert_eq!(fields(&message), row[2]);
        assert_eq!(message.emit(), payload);
    }
}

#[test]
fn limits_are_those_of_the_constants_that_are_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for row in table("limits") {
        let (file, constant) = row[2].split_once(' ').unwrap();
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        let value = source
            .lines()
            .find_map(|line| {
                line.split_once(&format!("const {constant}: "))?
                    .1
                    .split_once(" = ")
            })
            .unwrap_or_else(|| panic!("{file} has no {constant}"))
            .1;
        let value = number(value.trim_end_matches(';'));
        assert_eq!(number(&row[1]), value, "{constant}");
    }
}

#[test]
fn waits_have_these_limits() {
    let rows = table("waits");
    for (name, limit) in [
        ("backend: devices asked to go", Wait::Drain.limit()),
        ("frontend: for an offer", Wait::Offer.limit()),
        ("frontend: for state 4", Wait::Connect.limit()),
        ("frontend: until faults are forgotten", Wait::Settle.limit()),
        (
            "either: until a step that came to nothing is tried again",
            RETRY_DELAY,
        ),
    ] {
        assert_eq!(number(&row_of(&rows, 0, name)[1]), limit.as_secs());
    }
    assert_eq!(rows.len(), 5);
}

fn assert_said(words: &str) {
    assert!(TEXT.contains(words), "the document does not say: {words}");
}

fn bytes(pairs: Vec<(String, String)>) -> Directory {
    let pairs = pairs.into_iter();
    pairs
        .map(|(key, value)| (key, value.into_bytes()))
        .collect()
}

fn choice() -> FrontendKeys {
    FrontendKeys {
        session: Session(7),
        revision: REVISION,
        transport_features: 0,
        message_size: 264,
        ring_page_order: 0,
        ring_refs: (8..8 + 16).map(GrantRef).collect(),
        event_channel: EvtchnPort(3),
        grant_addresses: false,
    }
}

fn check_absent(text: &Directory, key: &str, absent: &str, accepts: impl Fn(&Directory) -> bool) {
    let mut text = text.clone();
    text.remove(key);
    assert_eq!(accepts(&text), absent == "0", "without {key}");
}

/// Tries the bounds of a cell such as "52 to 8128", "0 to the offer", "not 0", "1" or "0, 1".
fn check_possible(
    text: &Directory,
    key: &str,
    possible: &str,
    most: u64,
    accepts: impl Fn(&Directory) -> bool,
) {
    let may_be = |value: u64| {
        let mut text = text.clone();
        text.insert(key.to_owned(), value.to_string().into_bytes());
        accepts(&text)
    };
    let (low, high) = match possible {
        "any" => (0, u32::MAX.into()),
        "not 0" => (1, u32::MAX.into()),
        "0, 1" => (0, 1),
        "the backend's" => (7, 7),
        // a mask, in hexadecimal
        "" | "bits of the offer" => {
            let mut text = text.clone();
            text.insert(key.to_owned(), b"0x80000000".to_vec());
            return assert_eq!(accepts(&text), possible.is_empty(), "{key}");
        }
        bounds => match bounds.split_once(" to ") {
            Some((low, "the offer")) => (number(low), most),
            Some((low, high)) => (number(low), number(high)),
            None => (number(bounds), number(bounds)),
        },
    };
    assert!(may_be(low) && may_be(high), "{key}: {low} to {high}");
    assert!(!may_be(high + 1), "{key}: {high} + 1");
    assert!(low == 0 || !may_be(low - 1), "{key}: {low} - 1");
}

fn fields(message: &PrivateMessage) -> String {
    match message {
        PrivateMessage::AreaShare(share) => format!(
            "area_id {}, flags {}, page_count {}, first {}",
            share.area_id,
            share.flags.bits(),
            share.page_count,
            share.first
        ),
        PrivateMessage::AreaUnshare(unshare) => format!("area_id {}", unshare.area_id),
        PrivateMessage::AreaShareReply(AreaReply { area_id, result })
        | PrivateMessage::AreaUnshareReply(AreaReply { area_id, result }) => {
            format!("area_id {area_id}, result {}", result.0)
        }
        PrivateMessage::RemoveRequest(remove) => format!("dev_num {}", remove.dev_num),
    }
}

fn writer(direction: Direction) -> &'static str {
    match direction {
        Direction::ToDevice => "frontend",
        Direction::ToDriver => "backend",
    }
}

fn words() -> [(&'static str, Word); 8] {
    let (to_device, to_driver) = (Direction::ToDevice, Direction::ToDriver);
    [
        ("to-device producer index", Word::Producer(to_device)),
        ("to-device space-at", Word::SpaceAt(to_device)),
        ("to-device consumer index", Word::Consumer(to_device)),
        ("to-device wake-at", Word::WakeAt(to_device)),
        ("to-driver producer index", Word::Producer(to_driver)),
        ("to-driver space-at", Word::SpaceAt(to_driver)),
        ("to-driver consumer index", Word::Consumer(to_driver)),
        ("to-driver wake-at", Word::WakeAt(to_driver)),
    ]
}

/// A ring without memory: the eight words alone, and frames of zeros.
struct Words(RefCell<HashMap<Word, u32>>);

impl RingWords for Words {
    fn load(&self, word: Word) -> u32 {
        self.0.borrow().get(&word).copied().unwrap_or(0)
    }

    fn store(&self, word: Word, value: u32) {
        self.0.borrow_mut().insert(word, value);
    }

    fn fence(&self, _: Fence) {}

    fn read(&self, _: u64, into: &mut [u8]) {
        into.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}
