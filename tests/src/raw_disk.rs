//! A block device of a raw guest, every word of whose queue the guest writes itself.

use frontend_shim::{Block, Pool};
use guest_memory::{Access, AddressSpace as _};
use virtio_msg::wire::{DevNum, Event, EventAvail, FeatureBlocks, Frame, Request, SetVqueue};
use virtio_msg::{Features, Status};
use virtqueue::QueueLayout;
use xen_types::{BusAddr, Form};

use crate::{RawGuest, Rig};

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
