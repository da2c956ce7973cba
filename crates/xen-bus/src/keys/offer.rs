//! What a backend offers (binding section 2, backend directory).

use xen_types::Session;

use super::reader::{Reader, pairs};
use super::{
    BUS_VERSION, DEFAULT_MAX_AREA_PAGES, DEFAULT_MAX_AREAS, Directory, KeyError, REVISION,
};
use crate::layout::{
    DEFAULT_MESSAGE_SIZE, LayoutError, MAX_MESSAGE_SIZE, MAX_RING_PAGE_ORDER, MIN_MESSAGE_SIZE,
    RingLayout,
};

/// What a backend publishes with state 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendOffer {
    /// Chosen afresh for each new session.
    pub session: Session,
    /// virtio-msg revision.
    pub revision: u32,
    /// Transport feature bits; bit 0 is strict configuration.
    pub transport_features: u32,
    /// The longest message, in bytes, that the frontend may choose.
    pub max_message_size: u32,
    /// The highest page order that the frontend may choose for the ring.
    pub max_ring_page_order: u32,
    /// How many areas may be shared at a time.
    pub max_areas: u32,
    /// How many data pages all areas may have together.
    pub max_area_pages: u32,
    /// Whether addresses may name grants (binding section 5).
    pub grant_addresses: bool,
}

impl BackendOffer {
    /// The keys that [`BackendOffer::parse`] looks up.
    pub const KEYS: [&'static str; 9] = [
        "bus-version",
        "session",
        "revision",
        "transport-features",
        "max-message-size",
        "max-ring-page-order",
        "max-areas",
        "max-area-pages",
        "feature-grant-addresses",
    ];

    /// The offer of a backend whose administrator changed nothing.
    #[must_use]
    pub const fn new(session: Session) -> Self {
        Self {
            session,
            revision: REVISION,
            transport_features: 0,
            max_message_size: DEFAULT_MESSAGE_SIZE as u32,
            max_ring_page_order: MAX_RING_PAGE_ORDER,
            max_areas: DEFAULT_MAX_AREAS,
            max_area_pages: DEFAULT_MAX_AREA_PAGES,
            grant_addresses: true,
        }
    }

    /// Reads an offer from the backend's directory.
    ///
    /// # Errors
    /// Names the first key that is missing, malformed or out of bounds.
    pub fn parse(directory: &Directory) -> Result<Self, KeyError> {
        let keys = Reader { directory };
        keys.exactly("bus-version", BUS_VERSION)?;
        Ok(Self {
            session: Session(keys.decimal("session")?),
            revision: keys.exactly("revision", REVISION)?,
            transport_features: keys.features("transport-features")?,
            max_message_size: keys.within(
                "max-message-size",
                MIN_MESSAGE_SIZE.into(),
                MAX_MESSAGE_SIZE.into(),
            )?,
            max_ring_page_order: keys.within("max-ring-page-order", 0, MAX_RING_PAGE_ORDER)?,
            max_areas: keys.decimal("max-areas")?,
            max_area_pages: keys.decimal("max-area-pages")?,
            grant_addresses: keys.flag("feature-grant-addresses")?,
        })
    }

    /// The pairs to write.
    #[must_use]
    pub fn emit(&self) -> Vec<(String, String)> {
        pairs([
            ("bus-version", BUS_VERSION.to_string()),
            ("session", self.session.to_string()),
            ("revision", self.revision.to_string()),
            (
                "transport-features",
                format!("{:#x}", self.transport_features),
            ),
            ("max-message-size", self.max_message_size.to_string()),
            ("max-ring-page-order", self.max_ring_page_order.to_string()),
            ("max-areas", self.max_areas.to_string()),
            ("max-area-pages", self.max_area_pages.to_string()),
            (
                "feature-grant-addresses",
                u32::from(self.grant_addresses).to_string(),
            ),
        ])
    }

    /// The ring of a frontend that would like `order` and `message_size`, each cut to the offer.
    ///
    /// # Errors
    /// What is left makes no ring.
    pub fn layout(&self, order: u32, message_size: u32) -> Result<RingLayout, LayoutError> {
        RingLayout::new(
            order.min(self.max_ring_page_order),
            message_size.min(self.max_message_size),
        )
    }
}
