//! A guest without the product's frontend: one thread, one ring, one area, one disk. For what the
//! frontend does not do: the order of messages of Linux's transport, a thousand guests with little
//! memory each, and floods.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use frontend_shim::Pool;
use guest_memory::{Access, AddressSpace};
use virtio_msg::wire::{
    BusMessage, DevNum, Event, EventAvail, Frame, MaxMessageSize, MsgId, Request, Response, Token,
};
use virtio_msg::{Features, Status, stock};
use virtqueue::RingFeatures;
use xen_bus::directory::{directory_pages, write_directory};
use xen_bus::keys::{BackendOffer, FrontendKeys};
use xen_bus::messages::{AREA_SHARE, AreaResult, AreaShare, PrivateMessage, ShareFlags};
use xen_bus::ring::MessageRing;
use xen_hal::{GrantedPages, Platform};
use xen_types::{AreaId, DomId, PAGE_SIZE};
use xenstore::{Client, Tree as _};

use crate::blk_queue::{BlkQueue, Disk};
use crate::end::End;
use crate::machine::Machine;

/// Longer than anything takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(30);
const DEVICE: DevNum = DevNum(0);
const MESSAGE_SIZE: u16 = 264;
const AREA: u16 = 1;
/// VIRTIO_BLK_F_FLUSH
const F_FLUSH: Features = Features::bit(9);
/// VIRTIO_BLK_F_MQ
const F_MQ: Features = Features::bit(12);

/// A guest whose memory is shared.
#[derive(Debug)]
pub(crate) struct BareGuest {
    end: End,
    pool: Pool,
    token: u16,
    /// The device said that it used buffers.
    used: bool,
    /// Requests sent.
    pub(crate) requests: u64,
    frame: [u8; MESSAGE_SIZE as usize],
    _ring_pages: GrantedPages,
    _store: Client,
}

impl BareGuest {
    /// Connects bus `handle` of the domain `domid` with a ring of 2^`order` pages, and shares
    /// `pages` pages.
    pub(crate) fn connect(
        machine: &Machine,
        domid: DomId,
        handle: u32,
        order: u32,
        pages: usize,
    ) -> anyhow::Result<Self> {
        let platform = Platform::open(&machine.spec(domid))?;
        let channels = platform.event_channels()?;
        let mut store = machine.store(domid)?;
        let front = format!("device/virtio-msg/{handle}");
        let back = format!("/local/domain/0/backend/virtio-msg/{domid}/{handle}");
        wait_for(&mut store, &format!("{back}/state"), b"2")?;
        let mut directory = BTreeMap::new();
        for key in BackendOffer::KEYS {
            if let Some(value) = store.read_opt(&format!("{back}/{key}"))? {
                directory.insert(key.to_owned(), value);
            }
        }
        let offer = BackendOffer::parse(&directory)?;
        let layout = offer.layout(order, MESSAGE_SIZE.into())?;
        let grant = |pages, access| platform.grant_pages(DomId::DOM0, pages, access);
        let ring_pages = grant(layout.pages(), Access::Write)?;
        let window = ring_pages
            .area
            .lease()
            .window(0, layout.bytes(), Access::Write)?;
        let ring = MessageRing::create(window, layout, offer.session)?;
        let port = channels.alloc_unbound(DomId::DOM0)?;
        let keys = FrontendKeys {
            session: offer.session,
            revision: offer.revision,
            transport_features: 0,
            message_size: layout.message_size().into(),
            ring_page_order: layout.order(),
            ring_refs: ring_pages.refs.clone(),
            event_channel: port,
            grant_addresses: false,
        };
        for (key, value) in keys.emit() {
            store.write(&format!("{front}/{key}"), value)?;
        }
        store.write(&format!("{front}/state"), "3")?;
        wait_for(&mut store, &format!("{back}/state"), b"4")?;
        store.write(&format!("{front}/state"), "4")?;

        let data = grant(pages, Access::Write)?;
        let directory = grant(directory_pages(pages), Access::Read)?;
        let len = directory.area.len() as u64;
        let window = directory.area.range(0, len, Access::Write)?;
        write_directory(&data.refs, &directory.refs, window)?;
        let share = AreaShare {
            area_id: AREA,
            flags: ShareFlags::DEVICE_WRITE,
            page_count: u32::try_from(pages)?,
            first: *directory.refs.first().context("no directory")?,
        };
        let mut guest = Self {
            end: End::new(ring, channels, port),
            pool: Pool::new(data, AreaId::new(AREA).context("area id")?),
            token: 0,
            used: false,
            requests: 0,
            frame: [0; MESSAGE_SIZE as usize],
            _ring_pages: ring_pages,
            _store: store,
        };
        guest.share(share)?;
        Ok(guest)
    }

    /// Brings the device up as Linux's virtio-msg transport does: each message waits for the answer
    /// to the one before; fields of configuration space are read one by one.
    pub(crate) fn bring_up_in_stock_order(
        &mut self,
        queues: u16,
        depth: u16,
        request_bytes: u32,
    ) -> anyhow::Result<Vec<BlkQueue>> {
        let base = self.base()?;
        let stride = BlkQueue::bytes(depth, request_bytes).next_multiple_of(PAGE_SIZE) as u64;
        let ring = RingFeatures {
            indirect: true,
            event_idx: true,
        };
        let (mut ready, mut setups) = (Vec::new(), Vec::new());
        for index in 0..queues {
            let at = base + u64::from(index) * stride;
            let queue = BlkQueue::new(&self.pool, at, depth, request_bytes, ring)?;
            setups.push(queue.setup());
            ready.push(queue);
        }
        // A device with one queue does not offer MQ.
        let many = match queues {
            1 => Features::default(),
            _ => F_MQ,
        };
        let features = Features(
            F_FLUSH.0
                | many.0
                | Features::INDIRECT_DESC.0
                | Features::EVENT_IDX.0
                | Features::REQUIRED.0,
        );
        let mut status = None;
        for request in stock::block_bring_up(features, &setups) {
            status = self.ask(request)?;
        }
        let runs = status.is_some_and(|status| status.contains(Status::DRIVER_OK));
        ensure!(runs, "the device does not run");
        Ok(ready)
    }

    /// Takes the device out of service.
    pub(crate) fn reset(&mut self) -> anyhow::Result<()> {
        let status = Status::empty().bits();
        self.ask(Request::SetDeviceStatus { status }).map(drop)
    }

    /// Sends the backend an event without a message; how many.
    pub(crate) fn storm(&mut self) -> anyhow::Result<u64> {
        self.end.channels.notify(self.end.port)?;
        Ok(1)
    }

    /// Fills the ring with kicks of queue 0, whether it has anything or not; how many.
    pub(crate) fn flood(&mut self) -> anyhow::Result<u64> {
        let mut kicks = 0;
        while self.end.ring.has_room()? {
            self.send(&kick())?;
            kicks += 1;
        }
        self.end.publish()?;
        Ok(kicks)
    }

    /// Sends a request and sleeps until it was answered; the status, if the answer has one.
    fn ask(&mut self, request: Request<'_>) -> anyhow::Result<Option<Status>> {
        self.requests += 1;
        let token = self.next_token();
        self.send(&Frame::Request {
            dev_num: DEVICE,
            token,
            request,
        })?;
        loop {
            let len = self.end.receive(&mut self.frame)?;
            match parse(self.frame.get(..len).unwrap_or_default())? {
                Frame::Response {
                    token: of,
                    response,
                    ..
                } if of == token => {
                    return Ok(match response {
                        Response::GetDeviceStatus { status }
                        | Response::SetDeviceStatus { status } => {
                            Some(Status::from_bits_retain(status))
                        }
                        _ => None,
                    });
                }
                Frame::Event {
                    event: Event::Used { .. },
                    ..
                } => self.used = true,
                _ => {}
            }
        }
    }

    fn share(&mut self, share: AreaShare) -> anyhow::Result<()> {
        let token = self.next_token();
        let message = PrivateMessage::AreaShare(share);
        let payload = message.emit();
        self.send(&Frame::Bus {
            token,
            message: BusMessage::Private {
                msg_id: MsgId(message.msg_id()),
                response: false,
                payload: payload.into(),
            },
        })?;
        loop {
            let len = self.end.receive(&mut self.frame)?;
            let frame = parse(self.frame.get(..len).unwrap_or_default())?;
            let Frame::Bus {
                message:
                    BusMessage::Private {
                        msg_id, payload, ..
                    },
                ..
            } = frame
            else {
                continue;
            };
            if msg_id.0 != AREA_SHARE {
                continue;
            }
            return match PrivateMessage::parse(AREA_SHARE, true, &payload)? {
                PrivateMessage::AreaShareReply(reply) if reply.result == AreaResult::DONE => Ok(()),
                other => bail!("the area was not mapped: {other:?}"),
            };
        }
    }

    fn send(&mut self, frame: &Frame<'_>) -> anyhow::Result<()> {
        let mut bytes = [0; MESSAGE_SIZE as usize];
        let len = frame.emit(&mut bytes).context("the frame is too long")?;
        Ok(self
            .end
            .ring
            .try_send(bytes.get(..len).unwrap_or_default())?)
    }

    fn wait_used(&mut self) -> anyhow::Result<()> {
        while !std::mem::take(&mut self.used) {
            let len = self.end.receive(&mut self.frame)?;
            self.used = matches!(
                parse(self.frame.get(..len).unwrap_or_default())?,
                Frame::Event {
                    event: Event::Used { .. },
                    ..
                }
            );
        }
        Ok(())
    }

    /// 0 is no request's.
    fn next_token(&mut self) -> Token {
        self.token = self.token.checked_add(1).unwrap_or(1);
        Token(self.token)
    }

    fn base(&mut self) -> anyhow::Result<u64> {
        let block = self.pool.take(PAGE_SIZE)?;
        let base = self.pool.address(block, 0);
        self.pool.give_back(block);
        Ok(base)
    }
}

/// A bare guest's disk with one queue.
#[derive(Debug)]
pub(crate) struct BareDisk {
    pub(crate) guest: BareGuest,
    queue: BlkQueue,
}

impl BareDisk {
    /// The one device of bus `handle` of a domain, over as little memory as its requests need.
    pub(crate) fn start(
        machine: &Machine,
        domid: DomId,
        handle: u32,
        depth: u16,
        request_bytes: u32,
    ) -> anyhow::Result<Self> {
        let pages = BlkQueue::bytes(depth, request_bytes).div_ceil(PAGE_SIZE);
        let mut guest = BareGuest::connect(machine, domid, handle, 0, pages)?;
        let queue = guest.bring_up_in_stock_order(1, depth, request_bytes)?;
        let queue = queue.into_iter().next().context("no queue")?;
        Ok(Self { guest, queue })
    }
}

impl Disk for BareDisk {
    fn parts(&mut self) -> anyhow::Result<(&mut BlkQueue, &dyn AddressSpace)> {
        Ok((&mut self.queue, &self.guest.pool))
    }

    fn kick(&mut self) -> anyhow::Result<()> {
        self.guest.send(&kick())
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        self.guest.wait_used()
    }
}

fn kick() -> Frame<'static> {
    Frame::Event {
        dev_num: DEVICE,
        event: Event::Avail(EventAvail {
            index: 0,
            next_offset: 0,
        }),
    }
}

fn parse(bytes: &[u8]) -> anyhow::Result<Frame<'_>> {
    let max = MaxMessageSize::new(MESSAGE_SIZE.into()).context("message size")?;
    Ok(Frame::parse(bytes, max)?)
}

/// Waits until a node has this value.
fn wait_for(store: &mut Client, path: &str, value: &[u8]) -> anyhow::Result<()> {
    store.watch(path, "wait")?;
    while store.read_opt(path)?.as_deref() != Some(value) {
        store
            .wait_event(LIMIT)?
            .with_context(|| format!("{path} never was {}", value.escape_ascii()))?;
    }
    Ok(store.unwatch(path, "wait")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk_queue::{Operation, drive};

    fn line(dir: &std::path::Path, queues: u16) -> String {
        let path = dir.join("disk.img");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        format!("type=blk,queues={queues},path={}", path.display())
    }

    #[test]
    fn the_stock_order_takes_as_many_messages_as_the_transport_of_linux() {
        for (queues, requests) in [(1, 29), (2, 33), (8, 51)] {
            let dir = tempfile::tempdir().unwrap();
            let mut machine = Machine::start().unwrap();
            let domid = machine.guest(&[line(dir.path(), queues)]).unwrap();
            let mut guest = BareGuest::connect(&machine, domid, 0, 2, 128).unwrap();
            let before = machine.counters(domid).unwrap().evtchn_send;
            let ready = guest.bring_up_in_stock_order(queues, 1, 4096).unwrap();
            let sends = machine.counters(domid).unwrap().evtchn_send - before;
            assert_eq!(ready.len(), usize::from(queues));
            assert_eq!((guest.requests, sends), (requests, requests));
        }
    }

    #[test]
    fn a_bare_disk_serves_requests() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = Machine::start().unwrap();
        let domid = machine.create_domain().unwrap();
        machine.bus(domid, 3, &[line(dir.path(), 1)]).unwrap();
        let mut disk = BareDisk::start(&machine, domid, 3, 4, 512).unwrap();
        drive(&mut disk, 4, 100, &mut || Operation::GetId).unwrap();
        disk.guest.reset().unwrap();
    }
}
