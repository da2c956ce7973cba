//! A connection while messages flow: the ring, the port, the shared areas and the devices on it
//! (binding sections 4 to 8).
//!
//! A turn is bounded: so many frames in, so many buffers per device, one chunk of an area, and
//! what is owed goes out as far as the ring has room. The peer's laziness blocks nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guest_memory::{Access, Area, RangeError, UnmapError};
use virtio_devices::{DeviceModel, Progress};
use virtio_msg::wire::{DevNum, MaxMessageSize, MsgId};
use virtio_msg::{
    Completion, DeviceBusAction, DeviceInfo, DeviceSide, DeviceSideBus, Features, Limits, PeerFault,
};
use xen_bus::keys::{BackendOffer, FrontendKeys, KeyError};
use xen_bus::messages::{PrivateMessage, RemoveRequest};
use xen_bus::ring::{MessageRing, OpenError, RingFault, SendError};
use xen_hal::{EvtchnError, MapError};
use xen_types::EvtchnPort;

use crate::devices::{Device, Devices};
use crate::gauges::LinkGauges;
use crate::grants::Grants;
use crate::guest_log::{GuestLog, in_full};
use crate::host::Host;
use crate::instance::InstanceId;
use crate::sharing::Sharing;
use crate::slot::{Slot, SlotEvent};

/// Frames taken from one ring in one turn.
const FRAMES_PER_TURN: usize = 64;
/// Buffers that one device serves in one turn.
const BUFFERS_PER_TURN: usize = 64;

/// Events without work in a row that cost the peer nothing; after so many, its events are
/// acknowledged late, so that a storm of them takes at most one turn per [`HOLD`].
const FREE_EVENTS: u32 = 64;
/// How late.
const HOLD: Duration = Duration::from_millis(1);

/// Why a connection ends: a fault of the peer, or of this host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkFault {
    /// The frontend's keys.
    #[error("frontend's keys: {0}")]
    Keys(#[from] KeyError),
    /// The ring's pages.
    #[error("ring: {0}")]
    Map(#[from] MapError),
    /// The ring's header.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The ring's window.
    #[error("ring: {0}")]
    Window(#[from] RangeError),
    /// The frontend's port.
    #[error("event channel: {0}")]
    Port(#[from] EvtchnError),
    /// The frontend broke the ring.
    #[error("ring: {0}")]
    Ring(#[from] RingFault),
    /// The frontend broke a bound.
    #[error(transparent)]
    Peer(#[from] PeerFault),
    /// Pages of the frontend's are still mapped although they were to be unmapped.
    #[error("area: {0}")]
    Unmap(#[from] UnmapError),
    /// The event channel failed.
    #[error("event channel: {0}")]
    Notify(std::io::Error),
}

/// What a turn of a link left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTurn {
    /// Nothing to do until an event or a completion.
    Idle,
    /// More to do at once.
    More,
    /// Everything has ended; nothing is mapped or bound any more.
    Ended,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    id: InstanceId,
    port: EvtchnPort,
    ring: MessageRing,
    /// The ring's pages; unmapped last.
    ring_area: Area,
    bus: DeviceSideBus,
    limits: Limits,
    sharing: Sharing,
    slots: BTreeMap<u16, Member>,
    frame: Vec<u8>,
    slot_events: Vec<SlotEvent>,
    removed: Vec<u16>,
    /// The port is masked since an event came.
    masked: bool,
    /// Events without work in a row.
    idle_events: u32,
    /// Not before this moment is the next event acknowledged.
    hold: Option<Instant>,
    ending: bool,
}

/// A device on this connection.
#[derive(Debug)]
struct Member {
    slot: Slot,
    departure: Departure,
}

/// How a device leaves the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    No,
    /// The driver was asked, and has not reset the device since.
    Asked,
    /// It goes as soon as it has no I/O in flight.
    Due,
}

impl Link {
    /// Maps the ring, checks its header and binds the port. Holds nothing if it fails.
    pub(crate) fn attach(
        host: &Host,
        id: InstanceId,
        keys: &FrontendKeys,
        offer: &BackendOffer,
        log: &mut GuestLog,
    ) -> Result<Self, LinkFault> {
        let layout = keys.check(offer)?;
        let mut mapping =
            host.platform
                .begin_mapping(id.frontend, layout.pages(), Access::Write)?;
        mapping.map(&keys.ring_refs)?;
        let ring_area = mapping.finish()?;
        let window = ring_area.lease().window(0, layout.bytes(), Access::Write)?;
        let ring = MessageRing::attach(window, layout, keys.session)?;
        let port = host
            .channels
            .bind_interdomain(id.frontend, keys.event_channel)?;
        let grants = keys
            .grant_addresses
            .then(|| Grants::new(host.platform.clone(), id.frontend, host.grant_buffers));
        let limits = Limits {
            max_message_size: MaxMessageSize::new(layout.message_size().into())
                .unwrap_or(MaxMessageSize::MIN),
            slots: u16::try_from(layout.slots()).unwrap_or(u16::MAX),
        };
        if log.admits() {
            tracing::info!(%id, session = %keys.session, slots = layout.slots(), grant_addresses = keys.grant_addresses, "attached");
        }
        Ok(Self {
            id,
            port,
            ring,
            ring_area,
            bus: DeviceSideBus::new(limits),
            limits,
            sharing: Sharing::new(offer, grants),
            slots: BTreeMap::new(),
            frame: vec![0; usize::from(layout.message_size())],
            slot_events: Vec::new(),
            removed: Vec::new(),
            masked: false,
            idle_events: 0,
            hold: None,
            ending: false,
        })
    }

    pub(crate) fn port(&self) -> EvtchnPort {
        self.port
    }

    /// Whether the connection is being ended.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending
    }

    /// What is held and was done.
    pub(crate) fn gauges(&self) -> LinkGauges {
        let counters = self.ring.counters();
        LinkGauges {
            port: self.port.0,
            ring_pages: self.ring.layout().pages(),
            areas: self.sharing.space().areas.len(),
            area_pages: self.sharing.space().areas.pages(),
            grant_ring_pages: self.sharing.space().ring_pages(),
            lent_pages: self.sharing.space().lent_pages(),
            messages_received: counters.received,
            messages_sent: counters.sent,
            notifications: counters.notifications,
            spurious_events: counters.spurious_wakes,
        }
    }

    /// The peer sent an event; its port is masked until the next turn acknowledges it.
    pub(crate) fn event(&mut self) {
        self.masked = true;
        if self.idle_events >= FREE_EVENTS {
            self.hold = Instant::now().checked_add(HOLD);
        }
    }

    /// When the link wants a turn even without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.hold
    }

    /// Shows a device to the driver side.
    pub(crate) fn add_device(&mut self, number: u16, device: &Device) {
        let about = device.model.describe();
        let queues = about.queue_max.len();
        let info = DeviceInfo {
            device_id: about.device_id,
            vendor_id: about.vendor_id,
            uuid: device.uuid,
            features: Features(about.features),
            prerequisites: &[],
            config: about.config,
            queue_max: about.queue_max,
        };
        let added = DeviceSide::new(info, self.limits)
            .map_err(|error| error.to_string())
            .and_then(|side| {
                self.bus
                    .add_device(DevNum(number), side)
                    .map_err(|error| error.to_string())
            });
        match added {
            Ok(()) => {
                let member = Member {
                    slot: Slot::new(queues),
                    departure: Departure::No,
                };
                self.slots.insert(number, member);
            }
            Err(error) => {
                tracing::error!(id = %self.id, dev_num = number, error, "device not shown");
            }
        }
    }

    /// Asks the driver to let a device go (section 8).
    pub(crate) fn ask_removal(&mut self, number: u16) {
        let Some(member) = self.slots.get_mut(&number) else {
            self.removed.push(number);
            return;
        };
        if member.departure == Departure::No {
            member.departure = if self.bus.device(DevNum(number)).is_some_and(is_unused) {
                member.slot.leave();
                Departure::Due
            } else {
                let request = PrivateMessage::RemoveRequest(RemoveRequest { dev_num: number });
                self.bus
                    .send_private_event(MsgId(request.msg_id()), &request.emit());
                Departure::Asked
            };
        }
    }

    /// Takes a device away; I/O in flight completes first.
    pub(crate) fn force_removal(&mut self, number: u16, devices: &mut Devices) {
        let Some(member) = self.slots.get_mut(&number) else {
            self.removed.push(number);
            return;
        };
        member.departure = Departure::Due;
        member.slot.leave();
        if let Some(model) = model(devices, number) {
            member.slot.begin_reset(model);
        }
    }

    /// Ends every device; later turns find out when nothing is in flight any more.
    pub(crate) fn begin_end(&mut self, devices: &mut Devices) {
        self.ending = true;
        for (number, member) in &mut self.slots {
            if let Some(model) = model(devices, *number) {
                member.slot.begin_reset(model);
            }
        }
    }

    /// One bounded turn. Also gives the numbers of devices that are gone from the bus.
    pub(crate) fn turn(
        &mut self,
        host: &mut Host,
        devices: &mut Devices,
        log: &mut GuestLog,
    ) -> (Result<LinkTurn, LinkFault>, Vec<u16>) {
        let result = if self.ending {
            Ok(self.turn_ending(devices))
        } else {
            self.turn_serving(host, devices, log)
        };
        (result, std::mem::take(&mut self.removed))
    }

    fn turn_serving(
        &mut self,
        host: &mut Host,
        devices: &mut Devices,
        log: &mut GuestLog,
    ) -> Result<LinkTurn, LinkFault> {
        // Acknowledged before the rings are looked at (section 4).
        self.hold = self.hold.filter(|until| *until > Instant::now());
        if self.masked && self.hold.is_none() {
            self.masked = false;
            host.channels
                .unmask(&[self.port])
                .map_err(LinkFault::Notify)?;
            self.idle_events = match self.ring.note_event()? {
                true => 0,
                false => self.idle_events.saturating_add(1),
            };
        }
        self.sharing.next_turn();
        let mut more = self.receive()?;
        more |= self.act(devices, log);
        more |= self.poll_devices(devices, log);
        self.depart();
        let space = self.sharing.space();
        more |= space.has_relief();
        // Before the answers to resets leave (section 6).
        space.release()?;
        more |= self.sharing.step(host, log, &mut self.bus)?;
        let stuck = self.send()?;
        let sleep = if more {
            let notify = self.ring.consume() | self.ring.flush();
            (notify, false)
        } else {
            let sleep = self.ring.prepare_sleep(stuck)?;
            (sleep.notify, sleep.may_wait)
        };
        if sleep.0 {
            host.channels.notify(self.port).map_err(LinkFault::Notify)?;
        }
        Ok(if sleep.1 {
            LinkTurn::Idle
        } else {
            LinkTurn::More
        })
    }

    /// Takes frames into bounded private memory; true: the budget ended first.
    fn receive(&mut self) -> Result<bool, LinkFault> {
        for _ in 0..FRAMES_PER_TURN {
            let Some(len) = self.ring.try_recv(&mut self.frame)? else {
                return Ok(false);
            };
            self.bus
                .receive(self.frame.get(..len).unwrap_or_default())?;
        }
        Ok(true)
    }

    /// Does what the frames ask for; true: the budget ended first, as each SET_VQUEUE may map rings.
    /// What is left stays with the bus, in its order.
    fn act(&mut self, devices: &mut Devices, log: &mut GuestLog) -> bool {
        while !self.sharing.is_spent() {
            let Some(action) = self.bus.poll_action() else {
                return false;
            };
            match action {
                DeviceBusAction::Device { dev_num, action } => {
                    let Some(member) = self.slots.get_mut(&dev_num.0) else {
                        continue;
                    };
                    let features = self
                        .bus
                        .device(dev_num)
                        .map_or(Features(0), DeviceSide::features);
                    if let Some(model) = model(devices, dev_num.0) {
                        let space = self.sharing.space();
                        member
                            .slot
                            .act(action, features, model, space, &mut self.slot_events);
                    }
                    report(&mut self.bus, log, dev_num, member, &mut self.slot_events);
                }
                DeviceBusAction::PrivateRequest(request) => {
                    self.sharing.request(self.id, &request);
                }
                DeviceBusAction::Pong { .. } => {}
            }
        }
        true
    }

    fn poll_devices(&mut self, devices: &mut Devices, log: &mut GuestLog) -> bool {
        let mut more = false;
        for (number, member) in &mut self.slots {
            if let Some(model) = model(devices, *number) {
                let space = self.sharing.space();
                let events = &mut self.slot_events;
                more |= member.slot.poll(model, space, BUFFERS_PER_TURN, events) == Progress::More;
                // What was waited for lets the requests behind it begin.
                more |= report(&mut self.bus, log, DevNum(*number), member, events);
            }
        }
        more
    }

    /// Takes devices off the bus whose time has come.
    fn depart(&mut self) {
        self.slots.retain(|number, member| {
            let goes = member.departure == Departure::Due && member.slot.is_idle();
            if goes {
                self.bus.remove_device(DevNum(*number));
                self.removed.push(*number);
            }
            !goes
        });
    }

    /// Sends what is owed; true: the ring is full and more is owed.
    fn send(&mut self) -> Result<bool, LinkFault> {
        while self.bus.has_output() {
            if !self.ring.has_room()? {
                return Ok(true);
            }
            if let Some(len) = self.bus.next_frame(&mut self.frame) {
                match self
                    .ring
                    .try_send(self.frame.get(..len).unwrap_or_default())
                {
                    Ok(()) => {}
                    Err(SendError::Fault(fault)) => return Err(fault.into()),
                    // There was room, and the bus keeps to the message size.
                    Err(error @ (SendError::Full | SendError::TooLong { .. })) => {
                        tracing::error!(id = %self.id, %error, "frame lost");
                    }
                }
            }
        }
        Ok(false)
    }

    /// Waits for I/O in flight, then unmaps and unbinds everything.
    fn turn_ending(&mut self, devices: &mut Devices) -> LinkTurn {
        let mut more = false;
        for (number, member) in &mut self.slots {
            if let Some(model) = model(devices, *number) {
                let space = self.sharing.space();
                let events = &mut self.slot_events;
                more |= member.slot.poll(model, space, BUFFERS_PER_TURN, events) == Progress::More;
            }
        }
        self.slot_events.clear();
        let idle = self.slots.values().all(|member| member.slot.is_idle());
        match (idle, more) {
            (true, _) => LinkTurn::Ended,
            (false, true) => LinkTurn::More,
            (false, false) => LinkTurn::Idle,
        }
    }

    /// Unmaps and unbinds everything, after [`LinkTurn::Ended`].
    ///
    /// # Errors
    /// Something may still be mapped or bound, for as long as this process lives.
    pub(crate) fn close(self, host: &Host) -> Result<(), LinkFault> {
        let Self {
            port,
            ring,
            ring_area,
            sharing,
            ..
        } = self;
        drop(ring);
        // Each is tried, whatever became of the others.
        let areas = sharing.unmap_all().map_err(LinkFault::from);
        let ring = ring_area.unmap().map_err(LinkFault::from);
        let port = host.channels.unbind(port).map_err(LinkFault::Notify);
        areas.and(ring).and(port)
    }
}

/// Passes on what a device's slot says; true: the device side may have more to ask for.
fn report(
    bus: &mut DeviceSideBus,
    log: &mut GuestLog,
    dev_num: DevNum,
    member: &mut Member,
    events: &mut Vec<SlotEvent>,
) -> bool {
    let mut completed = false;
    for event in events.drain(..) {
        match event {
            SlotEvent::Complete(completion) => {
                completed = true;
                if completion == Completion::ResetDone && member.departure == Departure::Asked {
                    member.departure = Departure::Due;
                    member.slot.leave();
                }
                bus.complete(dev_num, completion);
            }
            SlotEvent::Used(index) => {
                bus.update(dev_num, |device| device.used(index));
            }
            SlotEvent::ConfigChanged { offset, data } => {
                bus.update(dev_num, |device| device.config_changed(offset, &data));
            }
            SlotEvent::Refused { index, error } => {
                if log.admits() {
                    let error = in_full(&error);
                    tracing::warn!(id = %log.id(), %dev_num, queue = index, %error, "queue refused");
                }
            }
            SlotEvent::NeedsReset(reason) => {
                if log.admits() {
                    let reason = in_full(&reason);
                    tracing::warn!(id = %log.id(), %dev_num, %reason, "the driver broke a queue; the device needs a reset");
                }
                bus.update(dev_num, DeviceSide::needs_reset);
            }
        }
    }
    completed
}

fn model(devices: &mut Devices, number: u16) -> Option<&mut dyn DeviceModel> {
    Some(devices.get_mut(number)?.model.as_mut())
}

/// Whether no driver works with the device.
fn is_unused(device: &DeviceSide) -> bool {
    device.status().is_empty()
}
