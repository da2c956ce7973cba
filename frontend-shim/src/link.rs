//! The frontend's end of a connection: ring, port and bus (binding sections 4 and 6).

use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use guest_memory::Access;
use virtio_msg::wire::{MaxMessageSize, MsgId};
use virtio_msg::{DriverSideBus, Instant, Limits, PrivateId};
use xen_bus::directory::{directory_pages, write_directory};
use xen_bus::keys::{BUS_VERSION, BackendOffer, FrontendKeys};
use xen_bus::layout::DEFAULT_MESSAGE_SIZE;
use xen_bus::messages::{AreaShare, PrivateMessage, ShareFlags};
use xen_bus::ring::{MessageRing, RingCounters, SendError};
use xen_hal::{EventChannels, GrantedPages, Platform, RevokeError};
use xen_types::{AreaId, DomId, EvtchnPort};

use crate::clock::Clock;
use crate::error::FrontendError;
use crate::instance::Instance;
use crate::news::News;
use crate::pool::Pool;

/// Frames taken from the ring in one pump.
const FRAMES_PER_PUMP: usize = 256;
/// Events without work in a row that cost the backend nothing; after so many, its events are
/// acknowledged late, so that a storm of them wakes this process at most once per [`HOLD`].
const FREE_EVENTS: u32 = 64;
/// How late.
const HOLD: Duration = Duration::from_millis(1);
/// Id of the one area.
const POOL_ID: u16 = 1;

/// What a user-space frontend chooses (binding section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// The ring has 2^order pages.
    pub ring_page_order: u32,
    /// The largest message in bytes; less if the backend offers less.
    pub message_size: u16,
    /// Whether to name buffers by their grants, if the backend offers that: queues stay in the
    /// shared area.
    pub grant_addresses: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            ring_page_order: 2,
            message_size: DEFAULT_MESSAGE_SIZE,
            grant_addresses: false,
        }
    }
}

/// What a link needs of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host<'a> {
    pub(crate) platform: &'a Platform,
    pub(crate) channels: &'a EventChannels,
    pub(crate) clock: &'a Arc<Clock>,
}

/// A connection.
#[derive(Debug)]
pub struct Link {
    handle: u32,
    number: u64,
    backend: DomId,
    platform: Platform,
    port: EvtchnPort,
    ring: MessageRing,
    ring_pages: GrantedPages,
    bus: DriverSideBus,
    news: News,
    pool: Option<Pool>,
    /// Buffers are named by their grants.
    grant_addresses: bool,
    clock: Arc<Clock>,
    frame: Vec<u8>,
    /// The port is masked since an event came.
    masked: bool,
    /// Events without work in a row.
    idle_events: u32,
    /// Not before this moment is the next event acknowledged.
    hold: Option<Moment>,
}

impl Link {
    /// Allocates ring and port, writes the ring's header, and gives the keys to publish.
    pub(crate) fn create(
        host: Host<'_>,
        instance: &Instance,
        offer: &BackendOffer,
        options: LinkOptions,
        answer_limit: Duration,
        number: u64,
    ) -> Result<(Self, FrontendKeys), FrontendError> {
        let handle = instance.handle;
        let layout = offer
            .layout(options.ring_page_order, options.message_size.into())
            .map_err(|error| FrontendError::Offer(error.into()))?;
        let ring_pages = host
            .platform
            .grant_pages(instance.backend, layout.pages(), Access::Write)
            .map_err(|source| FrontendError::Grant { handle, source })?;
        let window = ring_pages
            .area
            .lease()
            .window(0, layout.bytes(), Access::Write)
            .map_err(|error| internal(handle, &error))?;
        let ring = MessageRing::create(window, layout, offer.session)
            .map_err(|error| internal(handle, &error))?;
        let port = host.channels.alloc_unbound(instance.backend)?;
        let keys = FrontendKeys {
            session: offer.session,
            revision: offer.revision,
            transport_features: 0,
            message_size: layout.message_size().into(),
            ring_page_order: layout.order(),
            ring_refs: ring_pages.refs.clone(),
            event_channel: port,
            grant_addresses: options.grant_addresses && offer.grant_addresses,
        };
        tracing::debug!(handle, BUS_VERSION, slots = layout.slots(), %port, "ring shared");
        let limits = Limits {
            max_message_size: MaxMessageSize::new(layout.message_size().into())
                .unwrap_or(MaxMessageSize::MIN),
            slots: u16::try_from(layout.slots()).unwrap_or(u16::MAX),
        };
        let link = Self {
            handle,
            number,
            backend: instance.backend,
            platform: host.platform.clone(),
            port,
            ring,
            ring_pages,
            bus: DriverSideBus::new(limits, answer_limit),
            news: News::default(),
            pool: None,
            grant_addresses: keys.grant_addresses,
            clock: host.clock.clone(),
            frame: vec![0; usize::from(layout.message_size())],
            masked: false,
            idle_events: 0,
            hold: None,
        };
        Ok((link, keys))
    }

    /// Which of the frontend's connections this is, by its own count: the session is a number that
    /// the backend chooses.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The bus.
    pub fn bus(&mut self) -> &mut DriverSideBus {
        &mut self.bus
    }

    /// The largest message of this connection.
    #[must_use]
    pub fn max_message_size(&self) -> MaxMessageSize {
        MaxMessageSize::new(self.ring.layout().message_size().into()).unwrap_or(MaxMessageSize::MIN)
    }

    /// The clock of the bus, as of the last tick.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// What the ring counted.
    #[must_use]
    pub fn counters(&self) -> RingCounters {
        self.ring.counters()
    }

    /// What the bus said of itself.
    pub(crate) fn news(&mut self) -> &mut News {
        &mut self.news
    }

    /// The shared memory, once an area was shared.
    #[must_use]
    pub fn pool(&self) -> Option<&Pool> {
        self.pool.as_ref()
    }

    /// As [`Link::pool`], to take blocks.
    pub fn pool_mut(&mut self) -> Option<&mut Pool> {
        self.pool.as_mut()
    }

    /// Grants `pages` pages and asks the backend to map them; the answer goes by the id given.
    /// The directory is kept until then.
    pub(crate) fn begin_share(&mut self, pages: usize) -> Result<Sharing, FrontendError> {
        let handle = self.handle;
        let grant = |pages, access| {
            self.platform
                .grant_pages(self.backend, pages, access)
                .map_err(|source| FrontendError::Grant { handle, source })
        };
        let data = grant(pages, Access::Write)?;
        let directory = grant(directory_pages(pages), Access::Read)?;
        let len = directory.area.len() as u64;
        directory
            .area
            .range(0, len, Access::Write)
            .map_err(|error| internal(handle, &error))
            .and_then(|window| {
                write_directory(&data.refs, &directory.refs, window)
                    .map_err(|error| internal(handle, &error))
            })?;
        let first = directory.refs.first().copied().unwrap_or_default();
        let message = PrivateMessage::AreaShare(AreaShare {
            area_id: POOL_ID,
            flags: ShareFlags::DEVICE_WRITE,
            page_count: u32::try_from(pages).unwrap_or(u32::MAX),
            first,
        });
        let now = self.now();
        let id = self
            .bus
            .send_private(now, MsgId(message.msg_id()), &message.emit())
            .ok_or_else(|| internal(handle, &"AREA_SHARE does not fit a message"))?;
        Ok(Sharing {
            id,
            data,
            _directory: directory,
        })
    }

    /// The backend has mapped the area.
    pub(crate) fn finish_share(&mut self, sharing: Sharing) {
        if let Some(id) = AreaId::new(POOL_ID) {
            let pool = Pool::new(sharing.data, id);
            self.pool = Some(pool.naming_grants(self.grant_addresses));
        }
    }

    /// The peer sent an event; its port is masked until the event is acknowledged.
    pub(crate) fn event(&mut self) {
        self.masked = true;
        if self.idle_events >= FREE_EVENTS {
            self.hold = self.clock.exact().checked_add(HOLD);
        }
    }

    /// Acknowledges an event if one came and the time for it has: before the ring is looked at.
    pub(crate) fn acknowledge(&mut self, channels: &EventChannels) -> Result<(), FrontendError> {
        self.hold = self.hold.filter(|until| !self.clock.has_passed(*until));
        if self.masked && self.hold.is_none() {
            self.masked = false;
            channels.unmask(&[self.port])?;
            self.idle_events = match self.ring.note_event()? {
                true => 0,
                false => self.idle_events.saturating_add(1),
            };
        }
        Ok(())
    }

    /// Takes what came and writes what is due, as far as there is room.
    pub(crate) fn pump(&mut self) -> Result<(), FrontendError> {
        let now = self.now();
        self.bus.handle_timeout(now);
        for _ in 0..FRAMES_PER_PUMP {
            let Some(len) = self.ring.try_recv(&mut self.frame)? else {
                break;
            };
            let frame = self.frame.get(..len).unwrap_or_default();
            self.bus
                .receive(now, frame)
                .map_err(|fault| internal(self.handle, &fault))?;
        }
        self.news.hear(&mut self.bus);
        self.send()
    }

    /// Publishes everything, notifies if that is due, and arms the wake-up. False: there is
    /// something to do at once.
    pub(crate) fn prepare_sleep(
        &mut self,
        channels: &EventChannels,
    ) -> Result<bool, FrontendError> {
        self.send()?;
        let sleep = self.ring.prepare_sleep(self.bus.has_output())?;
        if sleep.notify {
            channels.notify(self.port)?;
        }
        Ok(sleep.may_wait)
    }

    /// When the bus wants to look at its timers, or an event is due to be acknowledged.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let bus = self.bus.poll_timeout();
        let bus = bus.map(|at| self.clock.at(Duration::from_nanos(at.0)));
        [bus, self.hold].into_iter().flatten().min()
    }

    /// The connection is over: what is outstanding has failed.
    pub(crate) fn stop(&mut self) {
        let numbers: Vec<_> = self.bus.devices().collect();
        for dev_num in numbers {
            self.bus.remove_device(dev_num);
        }
    }

    /// Closes the port and revokes every grant. Gives back what could not be revoked, for another
    /// try: none of it may be used again before.
    pub(crate) fn revoke(self, channels: &EventChannels) -> Vec<GrantedPages> {
        let Self {
            handle,
            port,
            ring,
            ring_pages,
            pool,
            ..
        } = self;
        drop(ring);
        if let Err(error) = channels.unbind(port) {
            tracing::warn!(handle, %port, %error, "port not closed");
        }
        let pool = pool.map(Pool::into_pages);
        revoke_all(handle, [Some(ring_pages), pool].into_iter().flatten())
    }

    fn send(&mut self) -> Result<(), FrontendError> {
        while self.bus.has_output() && self.ring.has_room()? {
            if let Some(len) = self.bus.next_frame(&mut self.frame) {
                match self
                    .ring
                    .try_send(self.frame.get(..len).unwrap_or_default())
                {
                    Ok(()) => {}
                    Err(SendError::Fault(fault)) => return Err(fault.into()),
                    Err(error) => return Err(internal(self.handle, &error)),
                }
            }
        }
        Ok(())
    }
}

/// An area that the backend was asked to map.
#[derive(Debug)]
pub(crate) struct Sharing {
    id: PrivateId,
    data: GrantedPages,
    _directory: GrantedPages,
}

impl Sharing {
    /// By which the answer is known.
    pub(crate) fn id(&self) -> PrivateId {
        self.id
    }
}

/// Revokes pages; gives back those that somebody here still uses.
pub(crate) fn revoke_all(
    handle: u32,
    pages: impl IntoIterator<Item = GrantedPages>,
) -> Vec<GrantedPages> {
    let mut kept = Vec::new();
    for pages in pages {
        match pages.revoke() {
            Ok(()) => {}
            Err(RevokeError::Leased { pages, leases }) => {
                tracing::debug!(handle, leases, "pages not revoked yet");
                kept.push(pages);
            }
            Err(error) => tracing::error!(handle, %error, "pages not revoked"),
        }
    }
    kept
}

fn internal(handle: u32, why: &dyn std::fmt::Display) -> FrontendError {
    FrontendError::Disconnected {
        handle,
        why: why.to_string(),
    }
}
