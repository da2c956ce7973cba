//! Garbage in the backend's directory (binding section 2). The user sees
//! `bus 0: not connected after 30s, the backend in domain 0 is in state 2 (the backend's offer: …)`,
//! with the key and what is wrong with it.

use tests::LIMIT;

use crate::stage::{Stage, assert_says};

#[test]
fn an_offer_that_is_none_is_refused_with_the_name_of_the_key() {
    let long = [b'9'; 4000];
    let rows: [(&str, &[u8]); 11] = [
        ("bus-version", b"2"),
        ("bus-version", b""),
        ("revision", b"0"),
        ("revision", b"4294967297"),
        ("max-message-size", b"51"),
        ("max-message-size", b"8129"),
        ("max-ring-page-order", b"5"),
        ("max-ring-page-order", b"-1"),
        ("max-areas", &[0xff, 0xfe, 0]),
        ("max-area-pages", &long),
        ("feature-grant-addresses", b"yes"),
    ];
    for (key, value) in rows {
        let stage = Stage::new();
        let error = stage.play(
            |backend, _| backend.offer(&[(key, value)]),
            |mut frontend| {
                frontend.name_grants();
                frontend.connect(LIMIT).unwrap_err()
            },
        );
        assert_says(
            &error.to_string(),
            &["bus 0", "domain 0", "the backend's offer", key],
        );
        let holdings = stage.machine.holdings(stage.bus.guest);
        assert_eq!(holdings, tests::Holdings::default(), "{key}");
    }
}

#[test]
fn an_offer_of_what_nobody_wants_is_not_even_looked_at() {
    let stage = Stage::new();
    stage.play(
        |backend, _| {
            backend.offer(&[
                ("transport-features", b"12"),
                ("feature-grant-addresses", b"yes"),
            ]);
            backend.connect();
        },
        |mut frontend| frontend.connect(LIMIT).unwrap(),
    );
}
