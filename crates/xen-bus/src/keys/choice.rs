//! What a frontend chooses (binding section 2, frontend directory).

use xen_types::{EvtchnPort, GrantRef, Session};

use super::reader::{Reader, pairs};
use super::{BUS_VERSION, BackendOffer, Directory, KeyError, REVISION};
use crate::layout::{MAX_RING_PAGE_ORDER, RingLayout};

/// What a frontend writes before state 3: its choice within the offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendKeys {
    /// Echo of the backend's.
    pub session: Session,
    /// virtio-msg revision.
    pub revision: u32,
    /// Transport feature bits.
    pub transport_features: u32,
    /// The longest message in bytes.
    pub message_size: u32,
    /// The ring has 2^order pages.
    pub ring_page_order: u32,
    /// Grants of the ring's pages, in order.
    pub ring_refs: Vec<GrantRef>,
    /// An unbound port for the backend.
    pub event_channel: EvtchnPort,
    /// Whether addresses may name grants.
    pub grant_addresses: bool,
}

impl FrontendKeys {
    /// The keys that [`FrontendKeys::parse`] looks up: these, and as many `ring-ref<i>` (see
    /// [`ring_ref_key`]) as `ring-page-order` says.
    pub const KEYS: [&'static str; 8] = [
        "bus-version",
        "session",
        "revision",
        "transport-features",
        "message-size",
        "ring-page-order",
        "event-channel",
        "feature-grant-addresses",
    ];

    /// Reads a frontend's choice from its directory.
    ///
    /// # Errors
    /// Names the first key that is missing, malformed or outside of what the binding allows at
    /// all. [`FrontendKeys::check`] compares it with an offer.
    pub fn parse(directory: &Directory) -> Result<Self, KeyError> {
        let keys = Reader { directory };
        keys.exactly("bus-version", BUS_VERSION)?;
        let ring_page_order = keys.within("ring-page-order", 0, MAX_RING_PAGE_ORDER)?;
        let ring_refs = (0..1 << ring_page_order)
            .map(|page| keys.nonzero(&ring_ref_key(page)).map(GrantRef))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            session: Session(keys.decimal("session")?),
            revision: keys.exactly("revision", REVISION)?,
            transport_features: keys.features("transport-features")?,
            message_size: keys.decimal("message-size")?,
            ring_page_order,
            ring_refs,
            event_channel: EvtchnPort(keys.nonzero("event-channel")?),
            grant_addresses: keys.flag("feature-grant-addresses")?,
        })
    }

    /// Compares the choice with what was offered; the layout of the ring that was chosen.
    ///
    /// # Errors
    /// Names the first key that goes beyond the offer.
    pub fn check(&self, offer: &BackendOffer) -> Result<RingLayout, KeyError> {
        let refuse = |key, got, expected| Err(KeyError::Refused { key, got, expected });
        if self.session != offer.session {
            return refuse("session", self.session.0, offer.session.to_string());
        }
        if self.transport_features & !offer.transport_features != 0 {
            let expected = format!("bits of {:#x}", offer.transport_features);
            return refuse("transport-features", self.transport_features, expected);
        }
        if self.message_size > offer.max_message_size {
            let expected = format!("at most {}", offer.max_message_size);
            return refuse("message-size", self.message_size, expected);
        }
        if self.grant_addresses && !offer.grant_addresses {
            return refuse("feature-grant-addresses", 1, "0".into());
        }
        if self.ring_page_order > offer.max_ring_page_order {
            let expected = format!("at most {}", offer.max_ring_page_order);
            return refuse("ring-page-order", self.ring_page_order, expected);
        }
        Ok(RingLayout::new(self.ring_page_order, self.message_size)?)
    }

    /// The pairs to write, before state 3.
    #[must_use]
    pub fn emit(&self) -> Vec<(String, String)> {
        let mut out = pairs([
            ("bus-version", BUS_VERSION.to_string()),
            ("session", self.session.to_string()),
            ("revision", self.revision.to_string()),
            (
                "transport-features",
                format!("{:#x}", self.transport_features),
            ),
            ("message-size", self.message_size.to_string()),
            ("ring-page-order", self.ring_page_order.to_string()),
            ("event-channel", self.event_channel.to_string()),
            (
                "feature-grant-addresses",
                u32::from(self.grant_addresses).to_string(),
            ),
        ]);
        for (page, gref) in (0..).zip(&self.ring_refs) {
            out.push((ring_ref_key(page), gref.to_string()));
        }
        out
    }
}

/// The key with the grant of page `page` of the ring.
#[must_use]
pub fn ring_ref_key(page: u32) -> String {
    format!("ring-ref{page}")
}
