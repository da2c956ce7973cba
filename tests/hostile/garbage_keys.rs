//! Garbage in every key that it may write.
//!
//! Attack: It publishes state 3 with keys that are missing, out of bounds, of any bytes, or that
//! name pages, ports and a ring header that are not what they should be.
//!
//! Outcome: The backend reads the keys once, in one transaction, checks each against its offer, maps
//! the ring only when all are good, and ends the instance (binding sections 2 and 3). The guest may
//! try again.
//!
//! Class: 10 (XSA-115), 2 (XSA-270)

use guest_memory::Access;
use tests::Random;
use xen_bus::keys::FrontendKeys;
use xenstore::Tree as _;

use crate::rig::stage::{Stage, assert_serves};

const LINE: &str = "WARN cannot attach id=domain … bus 0 fault=…";

/// The instance has ended, and the reason has each of `words`.
#[track_caller]
fn assert_refused(stage: &mut Stage, words: &[&str]) {
    stage.assert_ended(LINE);
    let error = stage.backend_says("error").unwrap();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

/// The hostile guest writes its keys after `spoil` has had them; the backend's reason.
#[track_caller]
fn refused(spoil: impl FnOnce(&mut Vec<(String, String)>), words: &[&str]) {
    let mut stage = Stage::new();
    let mut keys = stage.guest.share_ring(2).emit();
    spoil(&mut keys);
    stage.guest.publish(&keys);
    assert_refused(&mut stage, words);
    stage.finish();
}

fn set(keys: &mut Vec<(String, String)>, key: &str, value: &str) {
    keys.retain(|(name, _)| name != key);
    keys.push((key.to_owned(), value.to_owned()));
}

#[test]
fn state_3_without_any_key_but_the_session() {
    refused(
        |keys| keys.retain(|(key, _)| key == "session"),
        &["is missing"],
    );
}

#[test]
fn state_3_without_a_session_is_not_looked_at() {
    let mut stage = Stage::new();
    stage.guest.publish(&[]);
    stage.rig.settle();
    assert_eq!(stage.backend_says("state").as_deref(), Some("2"));
    stage.assert_honest_served();
}

#[test]
fn another_session() {
    let mut stage = Stage::new();
    let mut keys = stage.guest.share_ring(2).emit();
    let (_, session) = keys.iter().find(|(key, _)| key == "session").unwrap();
    let other = (session.parse::<u32>().unwrap() ^ 1).to_string();
    set(&mut keys, "session", &other);
    stage.guest.publish(&keys);
    stage.rig.settle();
    // A leftover: that frontend will see the new session (section 3).
    assert_eq!(stage.backend_says("state").as_deref(), Some("2"));
    stage.assert_honest_served();
}

#[test]
fn each_key_missing() {
    for key in FrontendKeys::KEYS {
        // Absent features are off; without a session it is a leftover.
        if !matches!(
            key,
            "transport-features" | "feature-grant-addresses" | "session"
        ) {
            let words = format!("key {key} is missing");
            refused(|keys| keys.retain(|(name, _)| name != key), &[&words]);
        }
    }
    refused(
        |keys| keys.retain(|(name, _)| name != "ring-ref3"),
        &["key ring-ref3 is missing"],
    );
}

#[test]
fn each_key_out_of_bounds() {
    for (key, value) in [
        ("bus-version", "2"),
        ("revision", "0"),
        ("transport-features", "0x1"),
        ("message-size", "51"),
        ("message-size", "265"),
        ("ring-page-order", "5"),
        ("ring-page-order", "4294967295"),
        ("event-channel", "0"),
        ("feature-grant-addresses", "2"),
        ("ring-ref0", "0"),
    ] {
        let word = key.replace('-', " ");
        let named = |error: &str| error.contains(key) || error.contains(&word);
        let mut stage = Stage::new();
        let mut keys = stage.guest.share_ring(2).emit();
        set(&mut keys, key, value);
        stage.guest.publish(&keys);
        assert_refused(&mut stage, &["frontend's keys"]);
        let error = stage.backend_says("error").unwrap();
        assert!(named(&error), "{key}={value}: {error}");
    }
}

#[test]
fn each_key_malformed() {
    for key in FrontendKeys::KEYS.into_iter().chain(["ring-ref0"]) {
        if key != "session" {
            let words = ["frontend's keys", key, "expected"];
            refused(|keys| set(keys, key, "-1 /etc/passwd"), &words);
        }
    }
}

#[test]
fn a_value_of_thousands_of_bytes_is_not_repeated_in_the_error() {
    let mut stage = Stage::new();
    let mut keys = stage.guest.share_ring(2).emit();
    set(&mut keys, "message-size", &"9".repeat(2000));
    stage.guest.publish(&keys);
    assert_refused(&mut stage, &["key message-size"]);
    assert!(stage.backend_says("error").unwrap().len() < 200);
}

#[test]
fn references_that_are_not_granted() {
    let unknown = |keys: &mut Vec<_>| set(keys, "ring-ref2", "4000000000");
    refused(unknown, &["ring: domain 2: ", "cannot be mapped"]);
}

#[test]
fn references_that_are_read_only() {
    let mut stage = Stage::new();
    let mut keys = stage.guest.share_ring(2).emit();
    let page = stage.guest.grant(1, Access::Read);
    set(&mut keys, "ring-ref0", &page.refs[0].to_string());
    stage.guest.publish(&keys);
    assert_refused(&mut stage, &["ring: domain 2: ", "read-only"]);
}

#[test]
fn a_port_that_is_not_there() {
    let unknown = |keys: &mut Vec<_>| set(keys, "event-channel", "999");
    refused(unknown, &["event channel", "999"]);
}

#[test]
fn a_port_that_was_closed() {
    let mut stage = Stage::new();
    let mut keys = stage.guest.share_ring(2).emit();
    let old = stage.guest.closed_port().to_string();
    set(&mut keys, "event-channel", &old);
    stage.guest.publish(&keys);
    assert_refused(&mut stage, &["event channel", &old]);
}

#[test]
fn a_ring_header_that_lies() {
    for (offset, field) in [
        (0, "magic"),
        (4, "layout"),
        (8, "stride"),
        (12, "slots"),
        (16, "session"),
    ] {
        let mut stage = Stage::new();
        let keys = stage.guest.share_ring(2).emit();
        stage.guest.scribble(offset, 0xdead_beef);
        stage.guest.publish(&keys);
        assert_refused(&mut stage, &["ring header", field, "0xdeadbeef"]);
    }
}

#[test]
fn a_guest_may_try_again_after_it_was_refused() {
    let mut stage = Stage::new();
    let mut keys = stage.guest.share_ring(2).emit();
    set(&mut keys, "message-size", "9999");
    stage.guest.publish(&keys);
    assert_refused(&mut stage, &["message-size"]);
    stage.guest.drop_link();
    stage.guest.write("state", "1");
    let mut disk = stage.hostile_disk();
    assert_serves(&mut stage.rig, &mut stage.guest, &mut disk);
}

#[test]
fn any_bytes_in_any_key() {
    let mut random = Random::seeded(7);
    for _ in 0..40 {
        let mut stage = Stage::new();
        let keys = stage.guest.share_ring(2).emit();
        let (key, _) = &keys[usize::try_from(random.below(keys.len() as u64)).unwrap()];
        let len = random.below(40);
        let bytes: Vec<u8> = (0..len)
            .map(|_| u8::try_from(random.below(256)).unwrap())
            .collect();
        // A number may be a good one.
        if bytes.iter().all(u8::is_ascii_digit) {
            continue;
        }
        for (key, value) in &keys {
            stage.guest.write(key, value);
        }
        let path = stage.bus.front(key);
        stage.guest.store.write(&path, bytes).unwrap();
        stage.guest.write("state", "3");
        stage.rig.settle();
        if key == "session" {
            stage.assert_state("2");
        } else {
            assert_refused(&mut stage, &[]);
        }
        stage.finish();
    }
}
