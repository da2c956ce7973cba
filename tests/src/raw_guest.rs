//! A guest that speaks the bus by hand, so that it can do at each step what no driver would.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use frontend_shim::{Block, Pool};
use guest_memory::{Access, AddressSpace as _};
use virtio_msg::wire::{
    BusMessage, DevNum, Event, EventAvail, FeatureBlocks, Frame, MaxMessageSize, MsgId, Request,
    Response, SetVqueue, Token,
};
use virtio_msg::{Features, Status};
use virtqueue::QueueLayout;
use xen_bus::directory::{directory_pages, write_directory};
use xen_bus::keys::{BackendOffer, FrontendKeys};
use xen_bus::layout::{MAX_RING_PAGE_ORDER, MIN_MESSAGE_SIZE};
use xen_bus::messages::{AreaResult, AreaShare, AreaUnshare, PrivateMessage, ShareFlags};
use xen_bus::ring::MessageRing;
use xen_hal::{EventChannels, GrantedPages, Platform};
use xen_types::{AreaId, BusAddr, DomId, EvtchnPort, Form};
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

/// A block device that the raw guest drives, with one queue whose every word it writes itself.
#[derive(Debug)]
pub struct RawDisk {
    /// The device number.
    pub dev_num: u16,
    /// The queue.
    pub layout: QueueLayout,
    /// The memory that it lies in.
    pub pool: Pool,
    offered: u16,
}

impl RawDisk {
    /// Descriptors of the queue.
    pub const SIZE: u16 = 8;

    /// Brings the device up over `pool`, with the required features alone.
    #[track_caller]
    pub fn bring_up(rig: &mut Rig, guest: &mut RawGuest, dev_num: u16, pool: Pool) -> Self {
        Self::bring_up_with(rig, guest, dev_num, pool, Features(0))
    }

    /// Brings the device up over `pool`, with these features and the required ones.
    #[track_caller]
    pub fn bring_up_with(
        rig: &mut Rig,
        guest: &mut RawGuest,
        dev_num: u16,
        mut pool: Pool,
        features: Features,
    ) -> Self {
        let len = QueueLayout::contiguous_bytes(Self::SIZE) as usize;
        let rings = pool.take(len).expect("room");
        let layout = QueueLayout::contiguous(pool.address(rings, 0), Self::SIZE);
        Self::negotiate_with(rig, guest, dev_num, features);
        Self::set_queue(rig, guest, dev_num, layout);
        assert!(guest.is_enabled(rig, dev_num, 0));
        let all = Self::negotiated() | Status::DRIVER_OK;
        assert_eq!(guest.set_status(rig, dev_num, all), all);
        Self {
            dev_num,
            layout,
            pool,
            offered: 0,
        }
    }

    /// Brings the device up once more after a reset, over the same queue, which is cleared.
    #[track_caller]
    pub fn restart(&mut self, rig: &mut Rig, guest: &mut RawGuest) {
        let len = QueueLayout::contiguous_bytes(Self::SIZE);
        self.write(self.layout.desc, &vec![0; len as usize]);
        Self::negotiate(rig, guest, self.dev_num);
        Self::set_queue(rig, guest, self.dev_num, self.layout);
        let all = Self::negotiated() | Status::DRIVER_OK;
        assert_eq!(guest.set_status(rig, self.dev_num, all), all);
        self.offered = 0;
    }

    /// Resets the device and brings it up as [`RawDisk::restart`] does, and waits for no answer; how
    /// many there will be.
    pub fn send_restart(&mut self, guest: &mut RawGuest) -> usize {
        let len = QueueLayout::contiguous_bytes(Self::SIZE);
        self.write(self.layout.desc, &vec![0; len as usize]);
        self.offered = 0;
        let reset = Request::SetDeviceStatus { status: 0 };
        Self::send_all(guest, self.dev_num, [reset]);
        let features = Self::up_to_features_ok(Features(0));
        Self::send_all(guest, self.dev_num, features);
        Self::send_queue_and_driver_ok(guest, self.dev_num, self.layout);
        6
    }

    /// Sends what follows FEATURES_OK, and waits for no answer.
    pub fn send_queue_and_driver_ok(guest: &mut RawGuest, dev_num: u16, layout: QueueLayout) {
        let status = (Self::negotiated() | Status::DRIVER_OK).bits();
        let status = Request::SetDeviceStatus { status };
        Self::send_all(guest, dev_num, [Self::set_vqueue(layout), status]);
    }

    fn send_all<const N: usize>(guest: &mut RawGuest, dev_num: u16, requests: [Request<'_>; N]) {
        for request in requests {
            let token = guest.token();
            guest.send(&Frame::Request {
                dev_num: DevNum(dev_num),
                token,
                request,
            });
        }
    }

    /// Up to FEATURES_OK, with the required features alone.
    #[track_caller]
    pub fn negotiate(rig: &mut Rig, guest: &mut RawGuest, dev_num: u16) {
        Self::negotiate_with(rig, guest, dev_num, Features(0));
    }

    /// Up to FEATURES_OK, with these features and the required ones.
    #[track_caller]
    pub fn negotiate_with(rig: &mut Rig, guest: &mut RawGuest, dev_num: u16, features: Features) {
        for request in Self::up_to_features_ok(features) {
            guest.request(rig, dev_num, request);
        }
        assert_eq!(guest.status(rig, dev_num), Self::negotiated());
    }

    fn up_to_features_ok(features: Features) -> [Request<'static>; 3] {
        let status = |status: Status| Request::SetDeviceStatus {
            status: status.bits(),
        };
        let features = Features(features.0 | Features::REQUIRED.0);
        [
            status(Status::ACKNOWLEDGE | Status::DRIVER),
            Request::SetDriverFeatures {
                block_index: 0,
                blocks: FeatureBlocks::of(features, 0, 2),
            },
            status(Self::negotiated()),
        ]
    }

    /// The status after [`RawDisk::negotiate`].
    #[must_use]
    pub fn negotiated() -> Status {
        Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK
    }

    /// SET_VQUEUE of queue 0.
    #[track_caller]
    pub fn set_queue(rig: &mut Rig, guest: &mut RawGuest, dev_num: u16, layout: QueueLayout) {
        guest.request(rig, dev_num, Self::set_vqueue(layout));
    }

    fn set_vqueue(layout: QueueLayout) -> Request<'static> {
        Request::SetVqueue(SetVqueue {
            index: 0,
            flags: SetVqueue::ENABLE,
            size: layout.size.into(),
            descriptor_addr: layout.desc,
            driver_addr: layout.avail,
            device_addr: layout.used,
        })
    }

    /// The memory, of which nothing is taken any more.
    #[must_use]
    pub fn into_empty_pool(self) -> Pool {
        let Some(Form::Area { id, .. }) = BusAddr(self.layout.desc).form() else {
            panic!("the queue lies in no area")
        };
        Pool::new(self.pool.into_pages(), id)
    }

    /// Cuts memory off the pool; its bus address.
    pub fn take(&mut self, len: usize) -> (Block, u64) {
        let block = self.pool.take(len).expect("room");
        (block, self.pool.address(block, 0))
    }

    /// Writes a descriptor.
    pub fn describe(&mut self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(self.layout.desc + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available and kicks.
    pub fn offer(&mut self, guest: &mut RawGuest, head: u16) {
        let slot = u64::from(self.offered % Self::SIZE);
        self.write(self.layout.avail + 4 + 2 * slot, &head.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
        self.claim(self.offered);
        self.kick(guest);
    }

    /// Writes the index of the available ring.
    pub fn claim(&mut self, index: u16) {
        self.write(self.layout.avail + 2, &index.to_le_bytes());
    }

    /// EVENT_AVAIL.
    pub fn kick(&self, guest: &mut RawGuest) {
        Self::kick_queue(guest, self.dev_num);
    }

    /// EVENT_AVAIL of queue 0.
    pub fn kick_queue(guest: &mut RawGuest, dev_num: u16) {
        let event = Event::Avail(EventAvail {
            index: 0,
            next_offset: 0,
        });
        let dev_num = DevNum(dev_num);
        guest.send(&Frame::Event { dev_num, event });
    }

    /// A read of `len` bytes from `sector` on into `data`, at descriptors `first` to `first` + 2.
    /// Gives the address of its status byte.
    pub fn read_request(&mut self, first: u16, sector: u64, data: u64, len: u32) -> u64 {
        self.request(first, 0, sector, (data, len, WRITE))
    }

    /// A write, as [`RawDisk::read_request`].
    pub fn write_request(&mut self, first: u16, sector: u64, data: u64, len: u32) -> u64 {
        self.request(first, 1, sector, (data, len, 0))
    }

    fn request(
        &mut self,
        first: u16,
        kind: u32,
        sector: u64,
        (data, len, flag): (u64, u32, u16),
    ) -> u64 {
        let (_, control) = self.take(17);
        let mut header = [0; 17];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        header[16] = 0xff;
        self.write(control, &header);
        self.describe(first, control, 16, NEXT, first + 1);
        self.describe(first + 1, data, len, NEXT | flag, first + 2);
        self.describe(first + 2, control + 16, 1, WRITE, 0);
        control + 16
    }

    /// The index of the used ring.
    #[must_use]
    pub fn used(&self) -> u16 {
        let mut bytes = [0; 2];
        bytes.copy_from_slice(&self.read(self.layout.used + 2, 2));
        u16::from_le_bytes(bytes)
    }

    /// Memory of the pool.
    #[must_use]
    pub fn read(&self, address: u64, len: u32) -> Vec<u8> {
        let range = self.pool.translate(address, len, Access::Read);
        let mut bytes = vec![0; len as usize];
        range
            .expect("in the pool")
            .read(0, &mut bytes)
            .expect("all of it");
        bytes
    }

    /// Overwrites memory of the pool.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("length");
        let range = self.pool.translate(address, len, Access::Write);
        range
            .expect("in the pool")
            .write(0, bytes)
            .expect("all of it");
    }
}

/// Descriptor flag: the chain goes on.
pub(crate) const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub(crate) const WRITE: u16 = 2;
