//! The keys by which the two sides of an instance make each other's acquaintance (binding
//! section 2), parsed from and printed to the text that XenStore holds.
//!
//! Reading and writing XenStore is the caller's: it hands over what it read and gets pairs of key
//! and value back. Keys that are not named here are never looked at. The peer's text is
//! hostile; every number has bounds.

mod choice;
mod offer;
mod reader;

pub use choice::{FrontendKeys, ring_ref_key};
pub use offer::BackendOffer;

use std::collections::BTreeMap;

use crate::layout::LayoutError;

/// The bus version that this crate implements: it names the ring header and the state rules.
pub const BUS_VERSION: u32 = 1;

/// The virtio-msg revision that this binding carries.
pub const REVISION: u32 = 1;

/// How many areas a backend offers to an instance if nobody says otherwise.
pub const DEFAULT_MAX_AREAS: u32 = 64;

/// How many data pages all areas of an instance may have together if nobody says otherwise:
/// 16 MiB, a guest's share of what a PV dom0 can map.
pub const DEFAULT_MAX_AREA_PAGES: u32 = 4096;

/// What was read from a directory of XenStore, by key.
pub type Directory = BTreeMap<String, Vec<u8>>;

/// A key that the peer got wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key is not there.
    #[error("key {key} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// The value is not a number of the form that the binding wants.
    #[error("key {key} is \"{got}\", {expected} expected")]
    Malformed {
        /// The key.
        key: String,
        /// What stands there, cut and escaped.
        got: String,
        /// The form.
        expected: &'static str,
    },
    /// The value is not among those that are possible here.
    #[error("key {key} is {got}, {expected} expected")]
    Refused {
        /// The key.
        key: &'static str,
        /// What stands there.
        got: u32,
        /// What may stand there.
        expected: String,
    },
    /// Page order and message size make no ring.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xen_types::{EvtchnPort, GrantRef, Session};

    use super::*;

    fn directory(pairs: Vec<(String, String)>) -> Directory {
        pairs
            .into_iter()
            .map(|(key, value)| (key, value.into_bytes()))
            .collect()
    }

    fn offer() -> BackendOffer {
        BackendOffer::new(Session(7))
    }

    fn choice() -> FrontendKeys {
        FrontendKeys {
            session: Session(7),
            revision: 1,
            transport_features: 0,
            message_size: 264,
            ring_page_order: 1,
            ring_refs: vec![GrantRef(8), GrantRef(4_000_000_000)],
            event_channel: EvtchnPort(3),
            grant_addresses: false,
        }
    }

    fn changed(pairs: Vec<(String, String)>, key: &str, value: &str) -> Directory {
        let mut directory = directory(pairs);
        directory.insert(key.into(), value.into());
        directory
    }

    #[test]
    fn what_is_emitted_is_read_back_and_fits() {
        let text = directory(offer().emit());
        assert_eq!(text["transport-features"], b"0x0");
        assert_eq!(text["max-message-size"], b"264");
        assert_eq!(BackendOffer::parse(&text), Ok(offer()));
        assert_eq!(text.len(), BackendOffer::KEYS.len());
        assert!(BackendOffer::KEYS.iter().all(|key| text.contains_key(*key)));

        let text = directory(choice().emit());
        assert_eq!(text["ring-ref1"], b"4000000000");
        assert_eq!(FrontendKeys::parse(&text), Ok(choice()));
        assert_eq!(text.len(), FrontendKeys::KEYS.len() + 2);
        assert!(FrontendKeys::KEYS.iter().all(|key| text.contains_key(*key)));
        let layout = choice().check(&offer()).unwrap();
        assert_eq!((layout.order(), layout.message_size()), (1, 264));
    }

    #[test]
    fn absent_features_are_off_and_unknown_keys_are_ignored() {
        let mut text = changed(choice().emit(), "feature-polling", "whatever");
        text.remove("transport-features");
        text.remove("feature-grant-addresses");
        text.insert("ring-ref2".into(), "not looked at".into());
        assert_eq!(FrontendKeys::parse(&text), Ok(choice()));
    }

    #[test]
    fn every_key_without_a_default_is_needed() {
        for (key, _) in choice().emit() {
            let mut text = directory(choice().emit());
            text.remove(&key);
            let result = FrontendKeys::parse(&text);
            if key.contains("feature") {
                assert_eq!(result, Ok(choice()), "{key}");
            } else {
                assert_eq!(result, Err(KeyError::Missing { key }));
            }
        }
    }

    #[test]
    fn errors_name_the_key_and_what_was_expected() {
        for (key, value, message) in [
            ("bus-version", "2", "key bus-version is 2, 1 expected"),
            ("revision", "0", "key revision is 0, 1 expected"),
            (
                "ring-page-order",
                "5",
                "key ring-page-order is 5, 0 to 4 expected",
            ),
            (
                "session",
                "07",
                "key session is \"07\", a decimal number without leading zeros expected",
            ),
            (
                "ring-ref1",
                "0",
                "key ring-ref1 is \"0\", a number other than 0 expected",
            ),
            (
                "event-channel",
                "0",
                "key event-channel is \"0\", a number other than 0 expected",
            ),
            (
                "transport-features",
                "0x+1",
                "key transport-features is \"0x+1\", 0x and up to 8 hexadecimal digits expected",
            ),
            (
                "transport-features",
                "0x000000001",
                "key transport-features is \"0x000000001\", \
                 0x and up to 8 hexadecimal digits expected",
            ),
            (
                "feature-grant-addresses",
                "2",
                "key feature-grant-addresses is \"2\", 0 or 1 expected",
            ),
        ] {
            let text = changed(choice().emit(), key, value);
            let error = FrontendKeys::parse(&text).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let text = changed(offer().emit(), "max-message-size", "8129");
        let error = BackendOffer::parse(&text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "key max-message-size is 8129, 52 to 8128 expected"
        );
    }

    #[test]
    fn a_long_hostile_value_is_cut_and_escaped_in_the_error() {
        let text = changed(choice().emit(), "session", &"\n".repeat(4000));
        let error = FrontendKeys::parse(&text).unwrap_err().to_string();
        assert!(error.len() < 200 && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_choice_beyond_the_offer_is_refused() {
        let offer = BackendOffer {
            max_ring_page_order: 0,
            grant_addresses: false,
            ..offer()
        };
        let fits = FrontendKeys {
            ring_page_order: 0,
            ring_refs: vec![GrantRef(8)],
            ..choice()
        };
        assert!(fits.check(&offer).is_ok());
        for (keys, message) in [
            (
                FrontendKeys {
                    session: Session(8),
                    ..fits.clone()
                },
                "key session is 8, 7 expected",
            ),
            (
                FrontendKeys {
                    transport_features: 1,
                    ..fits.clone()
                },
                "key transport-features is 1, bits of 0x0 expected",
            ),
            (
                FrontendKeys {
                    message_size: 265,
                    ..fits.clone()
                },
                "key message-size is 265, at most 264 expected",
            ),
            (
                FrontendKeys {
                    message_size: 51,
                    ..fits.clone()
                },
                "message size is 51, 52 to 8128 is allowed",
            ),
            (
                FrontendKeys {
                    grant_addresses: true,
                    ..fits.clone()
                },
                "key feature-grant-addresses is 1, 0 expected",
            ),
            (choice(), "key ring-page-order is 1, at most 0 expected"),
        ] {
            assert_eq!(keys.check(&offer).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_wish_is_cut_to_the_offer() {
        let offer = BackendOffer {
            max_ring_page_order: 1,
            max_message_size: 128,
            ..offer()
        };
        let layout = offer.layout(2, 264).unwrap();
        assert_eq!((layout.order(), layout.message_size()), (1, 128));
    }

    proptest! {
        #[test]
        fn any_value_of_any_key_is_read_without_panic(
            nth in 0usize..10,
            value in prop_oneof![any::<Vec<u8>>(), "(0x)?[0-9a-f]{0,10}".prop_map(String::into_bytes)],
        ) {
            let mut text = directory(choice().emit());
            if let Some(any) = text.values_mut().nth(nth) {
                any.clone_from(&value);
            }
            if let Ok(keys) = FrontendKeys::parse(&text) {
                let _ = keys.check(&offer());
            }
            let mut text = directory(offer().emit());
            if let Some(any) = text.values_mut().nth(nth) {
                *any = value;
            }
            if let Ok(offer) = BackendOffer::parse(&text) {
                prop_assert!(offer.layout(4, 52).is_ok());
            }
        }
    }
}
