//! A backend that speaks the bus by hand, the mirror image of [`crate::RawGuest`]: an honest block
//! device whose every word a test may change on its way.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd as _;
use std::time::Instant;

use guest_memory::{Access, Area};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_msg::wire::{DevNum, Frame, MaxMessageSize};
use virtio_msg::{
    Action, Completion, DeviceBusAction, DeviceInfo, DeviceSide, DeviceSideBus, Features, Limits,
    QueueSetup,
};
use xen_bus::keys::{BackendOffer, FrontendKeys};
use xen_bus::layout::RingLayout;
use xen_bus::messages::{AreaReply, AreaResult, AreaShare, PrivateMessage};
use xen_bus::ring::MessageRing;
use xen_hal::{EventChannels, Platform};
use xen_types::{DomId, EvtchnPort, GrantRef, PAGE_SIZE, Session};
use xenstore::{Client, Tree as _};

use crate::{Bus, LIMIT, Machine, Toolstack};

/// The session of a raw backend.
const SESSION: Session = Session(77);
/// Sectors of its disk.
pub const RAW_SECTORS: u64 = 128;

/// A backend of one bus.
#[derive(Debug)]
pub struct RawBackend {
    /// Dom0's hand in XenStore.
    pub toolstack: Toolstack,
    bus: Bus,
    store: Client,
    platform: Platform,
    channels: EventChannels,
    offer: BackendOffer,
    link: Option<RawLink>,
    /// What the guest shared as its area.
    area: Option<Area>,
    queue: Option<QueueSetup>,
}

/// The ring and the port of a guest's, and an honest device on them.
#[derive(Debug)]
struct RawLink {
    ring: MessageRing,
    area: Area,
    layout: RingLayout,
    port: EvtchnPort,
    honest: DeviceSideBus,
    /// Frames that wait for room in the ring.
    unsent: VecDeque<Vec<u8>>,
}

/// What a raw backend does that an honest one would not.
pub trait Lies {
    /// Changes a frame of the honest device; what is sent instead.
    fn frame(&mut self, _parsed: &Frame<'_>, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    /// The guest kicked its queue.
    fn kicked(&mut self, _queue: &RawQueue<'_>) {}
}

/// Says the truth and serves nothing.
#[derive(Clone, Copy, Debug)]
pub struct Honest;

impl Lies for Honest {}

impl RawBackend {
    /// A backend of a bus that the toolstack has made; it has done nothing yet.
    #[must_use]
    pub fn new(machine: &Machine, bus: Bus) -> Self {
        let platform = Platform::open(&machine.spec(DomId::DOM0)).expect("platform");
        Self {
            toolstack: Toolstack::new(machine.store(DomId::DOM0)),
            store: machine.store(DomId::DOM0),
            bus,
            channels: platform.event_channels().expect("event channels"),
            platform,
            offer: BackendOffer::new(SESSION),
            link: None,
            area: None,
            queue: None,
        }
    }

    /// Publishes an offer in which `lies` stand in place of the true keys, and state 2.
    pub fn offer(&mut self, lies: &[(&str, &[u8])]) {
        for (key, value) in self.offer.emit() {
            let lie = lies.iter().find(|(name, _)| *name == key);
            let value = lie.map_or(value.as_bytes(), |(_, lie)| *lie);
            self.store.write(&self.bus.back(&key), value).expect("key");
        }
        self.write_state("2");
    }

    /// Writes its state, whatever it is.
    pub fn write_state(&mut self, state: &str) {
        self.toolstack.write(&self.bus.back("state"), state);
    }

    /// Waits until the frontend is in a state.
    pub fn wait_for(&mut self, state: &str) {
        self.toolstack.wait_for(&self.bus.front("state"), state);
    }

    /// From the frontend's state 3 to messages flow.
    pub fn connect(&mut self) {
        self.wait_for("3");
        let mut found = BTreeMap::new();
        let home = self.bus.front("state").replace("/state", "");
        for key in self.store.directory(&home).expect("directory") {
            if let Some(value) = self.store.read_opt(&self.bus.front(&key)).expect("key") {
                found.insert(key, value);
            }
        }
        let keys = FrontendKeys::parse(&found).expect("keys");
        let layout = keys.check(&self.offer).expect("layout");
        let area = self.map(&keys.ring_refs);
        let window = area.lease().window(0, layout.bytes(), Access::Write);
        let ring = MessageRing::attach(window.expect("window"), layout, keys.session);
        let port = self
            .channels
            .bind_interdomain(self.bus.guest, keys.event_channel)
            .expect("port");
        let limits = Limits {
            max_message_size: MaxMessageSize::new(layout.message_size().into()).expect("size"),
            slots: u16::try_from(layout.slots()).expect("slots"),
        };
        let mut honest = DeviceSideBus::new(limits);
        let side = DeviceSide::new(blk(), limits).expect("a device");
        honest.add_device(DevNum(0), side).expect("its number");
        self.link = Some(RawLink {
            ring: ring.expect("ring"),
            area,
            layout,
            port,
            honest,
            unsent: VecDeque::new(),
        });
        self.write_state("4");
        self.wait_for("4");
    }

    /// Frames that the guest has sent.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.link().ring.counters().received
    }

    /// Serves as `lies` say until `done` says so.
    pub fn serve(&mut self, lies: &mut dyn Lies, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < deadline, "the frontend never ended");
            self.wait_event();
            for action in self.receive() {
                self.act(action, lies);
            }
            self.answer(lies);
        }
    }

    /// Sends an event without a reason.
    pub fn notify(&self) {
        self.channels.notify(self.link().port).expect("notify");
    }

    /// Overwrites a word of the ring's pages.
    pub fn scribble(&self, offset: u64, value: u32) {
        let range = self.link().area.range(offset, 4, Access::Write);
        range
            .and_then(|range| range.write(0, &value.to_le_bytes()))
            .expect("in the ring");
    }

    /// Unmaps and closes everything, as if it had died.
    pub fn drop_link(&mut self) {
        self.area = None;
        if let Some(link) = self.link.take() {
            self.channels.unbind(link.port).expect("port");
        }
    }

    fn receive(&mut self) -> Vec<DeviceBusAction> {
        let link = self.link.as_mut().expect("a ring");
        let mut buffer = vec![0; usize::from(link.layout.message_size())];
        while let Ok(Some(len)) = link.ring.try_recv(&mut buffer) {
            link.honest
                .receive(&buffer[..len])
                .expect("a frontend that keeps to its bounds");
        }
        std::iter::from_fn(|| link.honest.poll_action()).collect()
    }

    fn act(&mut self, action: DeviceBusAction, lies: &mut dyn Lies) {
        match action {
            DeviceBusAction::PrivateRequest(request) => {
                let message = PrivateMessage::parse(request.msg_id.0, false, &request.payload);
                let Ok(PrivateMessage::AreaShare(share)) = message else {
                    panic!("{message:?}")
                };
                self.area = Some(self.map_area(share));
                let reply = PrivateMessage::AreaShareReply(AreaReply {
                    area_id: share.area_id,
                    result: AreaResult::DONE,
                });
                let honest = &mut self.link.as_mut().expect("a ring").honest;
                honest.answer_private(request.msg_id, request.token, &reply.emit());
            }
            DeviceBusAction::Device { dev_num, action } => {
                let end = match action {
                    Action::CheckQueue { index, setup } => {
                        self.queue = Some(setup);
                        let accepted = true;
                        Some(Completion::QueueChecked { index, accepted })
                    }
                    Action::Start { .. } => Some(Completion::Started { running: true }),
                    Action::StopQueue { index } => Some(Completion::QueueStopped { index }),
                    Action::Reset => Some(Completion::ResetDone),
                    Action::WriteConfig { .. } => {
                        Some(Completion::ConfigChecked { accepted: false })
                    }
                    Action::Kick { .. } => {
                        if let (Some(area), Some(setup)) = (&self.area, self.queue) {
                            lies.kicked(&RawQueue { area, setup });
                        }
                        None
                    }
                };
                let honest = &mut self.link.as_mut().expect("a ring").honest;
                if let Some(end) = end {
                    honest.complete(dev_num, end);
                } else {
                    honest.update(dev_num, |device| device.used(0));
                }
            }
            DeviceBusAction::Pong { .. } => {}
        }
    }

    fn answer(&mut self, lies: &mut dyn Lies) {
        let size = self.link().layout.message_size();
        let max = MaxMessageSize::new(size.into()).expect("size");
        let mut buffer = vec![0; size.into()];
        loop {
            let link = self.link.as_mut().expect("a ring");
            let Some(len) = link.honest.next_frame(&mut buffer) else {
                break;
            };
            let bytes = &buffer[..len];
            let parsed = Frame::parse(bytes, max).expect("a frame of its own");
            link.unsent.extend(lies.frame(&parsed, bytes));
        }
        let link = self.link.as_mut().expect("a ring");
        while let Some(frame) = link.unsent.front()
            && link.ring.try_send(frame).is_ok()
        {
            link.unsent.pop_front();
        }
        let notify = link.ring.consume() | link.ring.flush();
        if notify {
            self.notify();
        }
    }

    /// Waits for an event, or for a moment.
    fn wait_event(&mut self) {
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 5_000_000,
        };
        let mut fds = [PollFd::from_borrowed_fd(
            self.channels.as_fd(),
            PollFlags::IN,
        )];
        poll(&mut fds, Some(&moment)).expect("poll");
        let mut ports = Vec::new();
        self.channels.pending(&mut ports).expect("events");
        self.channels.unmask(&ports).expect("unmask");
    }

    fn map_area(&self, share: AreaShare) -> Area {
        let mut left = usize::try_from(share.page_count).expect("pages");
        let mut next = share.first;
        let mut refs = Vec::new();
        while left > 0 {
            let page = self.map(&[next]);
            let mut bytes = [0; PAGE_SIZE];
            let range = page.range(0, PAGE_SIZE as u64, Access::Read);
            range.expect("a page").read(0, &mut bytes).expect("a page");
            let mut words = bytes
                .chunks(4)
                .map(|word| GrantRef(u32::from_le_bytes(word.try_into().expect("a word"))));
            next = words.next().expect("a link");
            refs.extend(words.take(left));
            left = usize::try_from(share.page_count).expect("pages") - refs.len();
        }
        self.map(&refs)
    }

    /// Maps pages of the guest's, for writing where that may be.
    fn map(&self, refs: &[GrantRef]) -> Area {
        let map = |access| {
            let mut mapping = self
                .platform
                .begin_mapping(self.bus.guest, refs.len(), access)?;
            mapping.map(refs)?;
            mapping.finish()
        };
        map(Access::Write)
            .or_else(|_| map(Access::Read))
            .expect("pages of the guest's")
    }

    fn link(&self) -> &RawLink {
        self.link.as_ref().expect("a ring")
    }
}

/// The guest's queue, in the backend's hands.
#[derive(Debug)]
pub struct RawQueue<'a> {
    area: &'a Area,
    setup: QueueSetup,
}

impl RawQueue<'_> {
    /// Descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.setup.size
    }

    /// How many chains the guest has made available.
    #[must_use]
    pub fn available(&self) -> u16 {
        u16::from_le_bytes(self.read(self.setup.driver + 2))
    }

    /// The head of the chain of this number.
    #[must_use]
    pub fn head(&self, number: u16) -> u16 {
        let slot = u64::from(number % self.setup.size);
        u16::from_le_bytes(self.read(self.setup.driver + 4 + 2 * slot))
    }

    /// Writes the used entry of this number.
    pub fn put(&self, number: u16, id: u32, len: u32) {
        let slot = u64::from(number % self.setup.size);
        let entry = self.setup.device + 4 + 8 * slot;
        self.write(entry, &id.to_le_bytes());
        self.write(entry + 4, &len.to_le_bytes());
    }

    /// Writes the used index.
    pub fn publish(&self, index: u16) {
        self.write(self.setup.device + 2, &index.to_le_bytes());
    }

    fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let range = self.area.range(offset(address), N as u64, Access::Read);
        let range = range.expect("in the area");
        range.read_array(0).expect("all of it")
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        let range = self.area.range(offset(address), len, Access::Write);
        range
            .expect("in the area")
            .write(0, bytes)
            .expect("all of it");
    }
}

/// The byte in its area that a bus address names.
fn offset(address: u64) -> u64 {
    address & 0xffff_ffff_ffff
}

/// A block device that says it can flush.
fn blk() -> DeviceInfo {
    let mut config = vec![0; 60];
    config[..8].copy_from_slice(&RAW_SECTORS.to_le_bytes());
    DeviceInfo {
        device_id: 2,
        vendor_id: 0,
        uuid: [0; 16],
        features: Features(Features::REQUIRED.0 | Features::bit(9).0),
        prerequisites: &[],
        config,
        queue_max: vec![128],
    }
}
