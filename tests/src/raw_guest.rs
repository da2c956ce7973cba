//! A guest that speaks the bus by hand, so that it can do at each step what no driver would.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use frontend_shim::Pool;
use guest_memory::Access;
use virtio_msg::Status;
use virtio_msg::wire::{
    BusMessage, DevNum, Frame, MaxMessageSize, MsgId, Request, Response, Token,
};
use xen_bus::directory::{directory_pages, write_directory};
use xen_bus::keys::{BackendOffer, FrontendKeys};
use xen_bus::layout::{MAX_RING_PAGE_ORDER, MIN_MESSAGE_SIZE};
use xen_bus::messages::{AreaResult, AreaShare, AreaUnshare, PrivateMessage, ShareFlags};
use xen_bus::ring::MessageRing;
use xen_hal::{EventChannels, GrantedPages, Platform};
use xen_types::{AreaId, DomId, EvtchnPort};
use xenstore::{Client, Tree as _};

use crate::{Bus, LIMIT, Rig};

/// How long a turn waits for what the guest sent.
const TURN: Duration = Duration::from_millis(1);
/// The largest message of the raw guest's ring.
const MESSAGE_SIZE: u16 = 264;

/// A guest.
#[derive(Debug)]
pub struct RawGuest {
    /// Its bus.
    pub bus: Bus,
    /// Its connection to XenStore.
    pub store: Client,
    platform: Platform,
    channels: EventChannels,
    link: Option<RawLink>,
    /// Frames that came and were not asked for.
    pub events: Vec<Vec<u8>>,
    /// Whether it will choose grant addresses.
    pub grant_addresses: bool,
    last_token: u16,
}

/// A ring and a port of the guest's.
#[derive(Debug)]
struct RawLink {
    ring: MessageRing,
    pages: GrantedPages,
    port: EvtchnPort,
}

impl RawGuest {
    /// The guest that `bus` was made for; it has done nothing yet.
    #[must_use]
    pub fn new(rig: &Rig, bus: Bus) -> Self {
        let platform = Platform::open(&rig.machine.spec(bus.guest)).expect("platform");
        Self {
            bus,
            store: rig.machine.store(bus.guest),
            channels: platform.event_channels().expect("event channels"),
            platform,
            link: None,
            events: Vec::new(),
            grant_addresses: false,
            last_token: 0,
        }
    }

    /// Grants a ring of 2^`order` pages and allocates a port, as the offer asks for; nothing is published.
    pub fn share_ring(&mut self, order: u32) -> FrontendKeys {
        self.share_ring_for(order, MESSAGE_SIZE)
    }

    /// As [`RawGuest::share_ring`], for messages of up to `message_size` bytes.
    fn share_ring_for(&mut self, order: u32, message_size: u16) -> FrontendKeys {
        let offer = self.offer();
        let layout = offer.layout(order, message_size.into()).expect("layout");
        let pages = self.grant(layout.pages(), Access::Write);
        let window = pages.area.lease().window(0, layout.bytes(), Access::Write);
        let ring = MessageRing::create(window.expect("window"), layout, offer.session);
        let port = self.channels.alloc_unbound(DomId::DOM0).expect("port");
        let keys = FrontendKeys {
            session: offer.session,
            revision: offer.revision,
            transport_features: 0,
            message_size: layout.message_size().into(),
            ring_page_order: order,
            ring_refs: pages.refs.clone(),
            event_channel: port,
            grant_addresses: self.grant_addresses,
        };
        self.link = Some(RawLink {
            ring: ring.expect("ring"),
            pages,
            port,
        });
        keys
    }

    /// Writes keys, then state 3.
    pub fn publish(&mut self, keys: &[(String, String)]) {
        for (key, value) in keys {
            self.write(key, value);
        }
        self.write("state", "3");
    }

    /// Writes a key of its own directory.
    pub fn write(&mut self, key: &str, value: &str) {
        let path = self.bus.front(key);
        self.store.write(&path, value).expect(key);
    }

    /// From state 1 to messages flow.
    #[track_caller]
    pub fn connect(&mut self, rig: &mut Rig) {
        self.connect_over(rig, 2, MESSAGE_SIZE);
    }

    /// As [`RawGuest::connect`], over the ring with the most slots.
    #[track_caller]
    pub fn connect_over_most_slots(&mut self, rig: &mut Rig) {
        self.connect_over(rig, MAX_RING_PAGE_ORDER, MIN_MESSAGE_SIZE);
    }

    #[track_caller]
    fn connect_over(&mut self, rig: &mut Rig, order: u32, message_size: u16) {
        rig.until_node(&self.bus.back("state"), "2");
        let keys = self.share_ring_for(order, message_size);
        self.publish(&keys.emit());
        rig.until_node(&self.bus.back("state"), "4");
        self.write("state", "4");
        rig.settle();
    }

    /// Revokes the ring and closes the port.
    pub fn drop_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.channels.unbind(link.port).expect("port");
        }
    }

    /// A port that was open for the backend, and is no more.
    #[must_use]
    pub fn closed_port(&self) -> EvtchnPort {
        let port = self.channels.alloc_unbound(DomId::DOM0).expect("port");
        self.channels.unbind(port).expect("port");
        port
    }

    /// Grants zeroed pages to the backend.
    #[must_use]
    pub fn grant(&self, pages: usize, access: Access) -> GrantedPages {
        let granted = self.platform.grant_pages(DomId::DOM0, pages, access);
        granted.expect("grant")
    }

    /// Overwrites a word of the ring's pages.
    pub fn scribble(&mut self, offset: u64, value: u32) {
        let area = &self.link().pages.area;
        let range = area.range(offset, 4, Access::Write).expect("in the ring");
        range.write(0, &value.to_le_bytes()).expect("in the ring");
    }

    /// How many frames it has sent over this ring.
    pub fn produced(&mut self) -> u32 {
        self.link().ring.state().produced
    }

    /// How many frames it has taken from this ring.
    pub fn consumed(&mut self) -> u32 {
        self.link().ring.state().consumed
    }

    /// Every byte of the ring's pages.
    pub fn ring_bytes(&mut self) -> Vec<u8> {
        let area = &self.link().pages.area;
        let mut bytes = vec![0; area.len()];
        let range = area.range(0, area.len() as u64, Access::Read);
        range
            .and_then(|range| range.read(0, &mut bytes))
            .expect("the ring");
        bytes
    }

    /// Puts bytes into the next slot of the ring, whatever they are, and notifies.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let link = self.link();
        link.ring.try_send(bytes).expect("room in the ring");
        let _ = link.ring.flush();
        self.notify();
    }

    /// Sends a frame and notifies.
    pub fn send(&mut self, frame: &Frame<'_>) {
        let mut bytes = [0; MESSAGE_SIZE as usize];
        let len = frame.emit(&mut bytes).expect("room in a message");
        self.send_bytes(&bytes[..len]);
    }

    /// Puts the same bytes into every free slot of the ring and notifies.
    pub fn flood(&mut self, bytes: &[u8]) {
        let link = self.link();
        while link.ring.has_room().expect("ring") {
            link.ring.try_send(bytes).expect("room in the ring");
        }
        let _ = link.ring.flush();
        self.notify();
    }

    /// Sends an event to the backend without a reason.
    pub fn notify(&mut self) {
        let port = self.link().port;
        self.channels.notify(port).expect("notify");
    }

    /// The frames that have come.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let link = self.link.as_mut().expect("a ring");
        let mut frames = Vec::new();
        let mut buffer = [0; MESSAGE_SIZE as usize];
        while let Some(len) = link.ring.try_recv(&mut buffer).expect("ring") {
            frames.push(buffer[..len].to_vec());
        }
        if link.ring.consume() {
            self.channels.notify(link.port).expect("notify");
        }
        frames
    }

    /// A token that no request has.
    pub fn token(&mut self) -> Token {
        self.last_token += 1;
        Token(self.last_token)
    }

    /// Sends a frame, and waits for the frame that answers `token`.
    #[track_caller]
    pub fn ask(&mut self, rig: &mut Rig, frame: &Frame<'_>, token: Token) -> Vec<u8> {
        self.send(frame);
        self.answer(rig, token)
    }

    /// Waits for the frame that answers `token`.
    #[track_caller]
    pub fn answer(&mut self, rig: &mut Rig, token: Token) -> Vec<u8> {
        rig.until("an answer", |_| {
            let mut found = None;
            for frame in self.receive() {
                if parse(&frame).token() == Some(token) {
                    found = Some(frame);
                } else {
                    self.events.push(frame);
                }
            }
            found
        })
    }

    /// As [`RawGuest::request`]; returns in the very turn of the backend that answers.
    #[track_caller]
    pub fn request_turn_by_turn(&mut self, rig: &mut Rig, dev_num: u16, request: Request<'_>) {
        let token = self.token();
        let dev_num = DevNum(dev_num);
        self.send(&Frame::Request {
            dev_num,
            token,
            request,
        });
        let is_answer = |frame: &Vec<u8>| parse(frame).token() == Some(token);
        let deadline = Instant::now() + LIMIT;
        while !self.receive().iter().any(is_answer) {
            assert!(Instant::now() < deadline, "no answer to {token:?}");
            rig.service().turn(Some(TURN)).expect("backend");
        }
    }

    /// Sends a request to a device and waits for its answer.
    #[track_caller]
    pub fn request(&mut self, rig: &mut Rig, dev_num: u16, request: Request<'_>) -> Vec<u8> {
        let token = self.token();
        let dev_num = DevNum(dev_num);
        let frame = Frame::Request {
            dev_num,
            token,
            request,
        };
        self.ask(rig, &frame, token)
    }

    /// Writes the device status; what it is then.
    #[track_caller]
    pub fn set_status(&mut self, rig: &mut Rig, dev_num: u16, status: Status) -> Status {
        let status = status.bits();
        let answer = self.request(rig, dev_num, Request::SetDeviceStatus { status });
        match parse(&answer) {
            Frame::Response {
                response: Response::SetDeviceStatus { status },
                ..
            } => Status::from_bits_retain(status),
            other => panic!("{other:?}"),
        }
    }

    /// Reads the device status.
    #[track_caller]
    pub fn status(&mut self, rig: &mut Rig, dev_num: u16) -> Status {
        match parse(&self.request(rig, dev_num, Request::GetDeviceStatus)) {
            Frame::Response {
                response: Response::GetDeviceStatus { status },
                ..
            } => Status::from_bits_retain(status),
            other => panic!("{other:?}"),
        }
    }

    /// Whether the queue is enabled.
    #[track_caller]
    pub fn is_enabled(&mut self, rig: &mut Rig, dev_num: u16, index: u32) -> bool {
        match parse(&self.request(rig, dev_num, Request::GetVqueue { index })) {
            Frame::Response {
                response: Response::GetVqueue(queue),
                ..
            } => queue.flags != 0,
            other => panic!("{other:?}"),
        }
    }

    /// Asks the backend to map `message`; its answer.
    #[track_caller]
    pub fn share(&mut self, rig: &mut Rig, message: AreaShare) -> AreaResult {
        self.private(rig, &PrivateMessage::AreaShare(message))
    }

    /// Takes an area back; the backend's answer.
    #[track_caller]
    pub fn unshare(&mut self, rig: &mut Rig, area_id: u16) -> AreaResult {
        self.private(rig, &PrivateMessage::AreaUnshare(AreaUnshare { area_id }))
    }

    /// Sends a private request and waits for nothing.
    pub fn send_private(&mut self, message: &PrivateMessage) -> Token {
        let token = self.token();
        let payload = message.emit();
        let message = BusMessage::Private {
            msg_id: MsgId(message.msg_id()),
            response: false,
            payload: payload.into(),
        };
        self.send(&Frame::Bus { token, message });
        token
    }

    fn private(&mut self, rig: &mut Rig, message: &PrivateMessage) -> AreaResult {
        let token = self.send_private(message);
        let answer = self.answer(rig, token);
        let Frame::Bus {
            message: BusMessage::Private {
                msg_id, payload, ..
            },
            ..
        } = parse(&answer)
        else {
            panic!("{answer:?}")
        };
        match PrivateMessage::parse(msg_id.0, true, &payload).expect("an answer") {
            PrivateMessage::AreaShareReply(reply) | PrivateMessage::AreaUnshareReply(reply) => {
                reply.result
            }
            other => panic!("{other:?}"),
        }
    }

    /// Shares `pages` zeroed pages as area `id`.
    #[track_caller]
    pub fn share_pool(&mut self, rig: &mut Rig, id: u16, pages: usize) -> Pool {
        let (data, directory, share) = self.grant_area(id, pages);
        assert_eq!(self.share(rig, share), AreaResult::DONE);
        directory.revoke().expect("the backend holds no directory");
        Pool::new(data, AreaId::new(id).expect("area id"))
    }

    /// Grants `pages` zeroed pages and their directory; what shares them as area `id`.
    #[must_use]
    pub fn grant_area(&self, id: u16, pages: usize) -> (GrantedPages, GrantedPages, AreaShare) {
        let data = self.grant(pages, Access::Write);
        let directory = self.grant(directory_pages(pages), Access::Read);
        let len = directory.area.len() as u64;
        let window = directory.area.range(0, len, Access::Write).expect("window");
        write_directory(&data.refs, &directory.refs, window).expect("directory");
        let share = AreaShare {
            area_id: id,
            flags: ShareFlags::DEVICE_WRITE,
            page_count: u32::try_from(pages).expect("pages"),
            first: directory.refs[0],
        };
        (data, directory, share)
    }

    fn offer(&mut self) -> BackendOffer {
        let mut found = BTreeMap::new();
        for key in BackendOffer::KEYS {
            if let Some(value) = self.store.read_opt(&self.bus.back(key)).expect(key) {
                found.insert(key.to_owned(), value);
            }
        }
        BackendOffer::parse(&found).expect("offer")
    }

    fn link(&mut self) -> &mut RawLink {
        self.link.as_mut().expect("a ring")
    }
}

/// Reads a frame.
fn parse(bytes: &[u8]) -> Frame<'_> {
    let max = MaxMessageSize::new(MESSAGE_SIZE.into()).expect("size");
    Frame::parse(bytes, max).expect("a frame of the backend")
}

/// What a frame answers.
trait Answers {
    fn token(&self) -> Option<Token>;
}

impl Answers for Frame<'_> {
    fn token(&self) -> Option<Token> {
        match self {
            Frame::Response { token, .. } => Some(*token),
            Frame::Bus { token, message } if message.is_response() => Some(*token),
            _ => None,
        }
    }
}
