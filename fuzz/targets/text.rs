//! Values that a peer or a person writes into XenStore.

#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_bus::config::DeviceConfig;
use xen_bus::handshake::XenbusState;
use xen_bus::keys::{BackendOffer, Directory, FrontendKeys};
use xen_types::parse_decimal;
use xenstore::wire::Permissions;

fuzz_target!(|data: &[u8]| {
    let _ = XenbusState::parse(data);
    if let Some(number) = parse_decimal(data) {
        assert_eq!(number.to_string().as_bytes(), data);
    }
    if let Ok(perms) = Permissions::parse(data) {
        assert!(perms.entries() <= data.len());
    }
    if let Ok(text) = str::from_utf8(data)
        && let Ok(config) = text.parse::<DeviceConfig>()
    {
        assert_eq!(config.to_string().parse().as_ref(), Ok(&config));
    }
    let directory = directory(data);
    if let Ok(keys) = FrontendKeys::parse(&directory) {
        assert_eq!(
            FrontendKeys::parse(&written(keys.emit())).as_ref(),
            Ok(&keys)
        );
        if let Ok(offer) = BackendOffer::parse(&directory) {
            let _ = keys.check(&offer);
        }
    }
    if let Ok(offer) = BackendOffer::parse(&directory) {
        assert_eq!(
            BackendOffer::parse(&written(offer.emit())).as_ref(),
            Ok(&offer)
        );
    }
});

/// Lines `key=value`.
fn directory(data: &[u8]) -> Directory {
    data.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let (key, value) = line.split_at(line.iter().position(|byte| *byte == b'=')?);
            Some((str::from_utf8(key).ok()?.to_owned(), value[1..].to_vec()))
        })
        .collect()
}

fn written(pairs: Vec<(String, String)>) -> Directory {
    pairs
        .into_iter()
        .map(|(key, value)| (key, value.into_bytes()))
        .collect()
}
