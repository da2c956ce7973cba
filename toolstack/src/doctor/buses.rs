//! The buses of a guest, as its own directory in XenStore shows them (binding sections 2 and 3).

use frontend_shim::Instance;
use xen_bus::handshake::XenbusState;
use xen_hal::PlatformSpec;
use xen_types::DomId;
use xenstore::Tree as _;

use super::Check;
use super::checks::{ok, typed, warn};
use crate::platform;

/// A bus, and the states of its two sides.
#[derive(Debug)]
pub(super) struct Bus {
    handle: u32,
    backend: DomId,
    own: XenbusState,
    peer: XenbusState,
}

/// Asks XenStore.
pub(super) fn look(spec: &PlatformSpec) -> anyhow::Result<Vec<Bus>> {
    let mut store = platform::open_store(spec)?;
    let mut buses = Vec::new();
    for instance in Instance::list(&mut store)? {
        let own = store.read_opt(&instance.own("state"))?;
        buses.push(Bus {
            handle: instance.handle,
            backend: instance.backend,
            own: own.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)),
            peer: instance.backend_state(&mut store)?,
        });
    }
    Ok(buses)
}

/// What to make of them.
pub(super) fn judge(spec: &PlatformSpec, buses: &[Bus]) -> Vec<Check> {
    if buses.is_empty() {
        let found = "this domain has none; `vmsg attach` in dom0 gives it one with a device";
        return vec![ok("bus", found)];
    }
    buses.iter().map(|bus| bus.judge(spec)).collect()
}

impl Bus {
    fn judge(&self, spec: &PlatformSpec) -> Check {
        let Self {
            handle,
            backend,
            own,
            peer,
        } = self;
        let found = |what: &str| format!("bus {handle} of domain {backend}: {what}");
        match (peer, own) {
            (XenbusState::Connected, XenbusState::Connected) => ok("bus", found("connected")),
            (XenbusState::InitWait, _) => ok(
                "bus",
                found("its backend waits for a driver, as `vmsg frontend list` is one"),
            ),
            (XenbusState::Initialised | XenbusState::Connected, _) => {
                ok("bus", found("a driver comes or goes"))
            }
            (XenbusState::Initialising, _) => warn(
                "bus",
                found("no backend runs there"),
                typed(spec, *backend, "backend"),
            ),
            (XenbusState::Closed, XenbusState::Closed) => {
                ok("bus", found("closed: its last driver has left in order"))
            }
            (XenbusState::Closing | XenbusState::Closed, _) => warn(
                "bus",
                found("its backend has closed it"),
                "`vmsg list` in dom0 says why; it opens again unless it is being detached",
            ),
            _ => warn(
                "bus",
                found("its backend's state cannot be read"),
                "`vmsg list` in dom0 shows whether that domain is gone",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn the_states_of_a_bus_are_told_with_what_to_type() {
        let bus = |peer, own| Bus {
            handle: 3,
            backend: DomId(0),
            own,
            peer,
        };
        let judge = |peer, own| bus(peer, own).judge(&"hosted:/m,1".parse().unwrap());
        let connected = judge(XenbusState::Connected, XenbusState::Connected);
        assert_eq!(connected.found, "bus 3 of domain 0: connected");
        let free = judge(XenbusState::InitWait, XenbusState::Closed);
        assert_eq!(free.verdict, Verdict::Ok);
        let dead = judge(XenbusState::Initialising, XenbusState::Initialising);
        assert_eq!(dead.verdict, Verdict::Warn);
        let advice = "vmsg --platform hosted:/m,0 backend";
        assert_eq!(dead.advice.as_deref(), Some(advice));
        let left = judge(XenbusState::Closed, XenbusState::Closed);
        assert_eq!(left.verdict, Verdict::Ok);
        for peer in [XenbusState::Closed, XenbusState::Unknown] {
            assert_eq!(judge(peer, XenbusState::Connected).verdict, Verdict::Warn);
        }
        let on_xen = bus(XenbusState::Initialising, XenbusState::Initialising);
        let advice = on_xen.judge(&PlatformSpec::Xen).advice.unwrap();
        assert_eq!(advice, "in domain 0: vmsg backend");
    }
}
