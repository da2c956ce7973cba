//! The library's transport trait over a driver side of the bus (virtio-msg sections 5 and 7).
//!
//! The library writes registers; this bus has messages that are asked and answered, and a state
//! machine that checks each answer. So registers are a picture of it: the device is looked at once
//! ([`BusTransport::probe`]), brought up when FEATURES_OK is written, and runs after DRIVER_OK. The
//! trait has no errors: the first one is kept, and read by [`crate::ForeignBus::open`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use frontend_shim::{FrontendError, Wants};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr};
use virtio_msg::{DriverAction, Features, QueueSetup};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::bus::Shared;
use crate::error::ForeignError;
use crate::memory;

/// Queues that any of the library's drivers has, at most.
const MAX_QUEUES: u16 = 8;
/// Bytes of configuration space that are read, at most: a GPU's or a sound card's are fewer.
const CONFIG_LEN: u32 = 256;

/// One device of a bus, for one driver. Dropping it resets the device.
#[derive(Debug)]
pub struct BusTransport {
    shared: Rc<Shared>,
    dev_num: u16,
    kind: DeviceType,
    offered: Features,
    wanted: Features,
    max_sizes: BTreeMap<u16, u16>,
    queues: BTreeMap<u16, QueueSetup>,
    status: DeviceStatus,
    config: Vec<u8>,
    generation: u32,
    fault: Fault,
}

/// The first thing that went wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault(Rc<RefCell<Option<String>>>);

impl Fault {
    pub(crate) fn take(&self) -> Option<String> {
        self.0.borrow_mut().take()
    }

    fn set(&self, error: &FrontendError) {
        let why = match error {
            FrontendError::Device { why, .. } => why.clone(),
            other => other.to_string(),
        };
        self.0.borrow_mut().get_or_insert(why);
    }

    fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl BusTransport {
    /// Looks at a device: what it is, offers and has. It is reset afterwards.
    pub(crate) fn probe(shared: &Rc<Shared>, dev_num: u16) -> Result<Self, ForeignError> {
        let mut frontend = shared.frontend.borrow_mut();
        let wants = Wants {
            features: Features(!Features::EVENT_IDX.0),
            queues: MAX_QUEUES,
            config_len: CONFIG_LEN,
        };
        frontend.start_device(dev_num, wants)?;
        let seen = (|| {
            let mut max_sizes = BTreeMap::new();
            let limit = frontend.limits().answer;
            let mut next = Some(frontend.wait_device(dev_num, limit)?);
            while let Some(action) = next {
                match action {
                    DriverAction::NeedQueue { index, max_size } => {
                        max_sizes.insert(index, max_size);
                    }
                    DriverAction::Failed(fault) => {
                        return Err(frontend.device_error(dev_num, fault));
                    }
                    _ => {}
                }
                next = frontend.poll_device(dev_num)?;
            }
            let look = |side: &mut virtio_msg::DriverSide| {
                let kind = side.info().device_id;
                (kind, side.features(), side.config().to_vec())
            };
            Ok((max_sizes, frontend.with_device(dev_num, look)?))
        })();
        frontend.reset_device(dev_num)?;
        let (max_sizes, (kind, offered, config)) = seen?;
        let kind =
            DeviceType::try_from(kind).map_err(|_| ForeignError::UnknownType { dev_num, kind })?;
        drop(frontend);
        Ok(Self {
            shared: Rc::clone(shared),
            dev_num,
            kind,
            offered,
            wanted: Features::default(),
            max_sizes,
            queues: BTreeMap::new(),
            status: DeviceStatus::empty(),
            config,
            generation: 0,
            fault: Fault::default(),
        })
    }

    /// What went wrong; shared with the transport.
    pub(crate) fn fault(&self) -> Fault {
        self.fault.clone()
    }

    /// Keeps an error, if it is the first.
    fn keep<T>(&self, result: Result<T, FrontendError>) -> Option<T> {
        result.map_err(|error| self.fault.set(&error)).ok()
    }

    /// Brings the device up to where its queues are wanted.
    fn begin(&mut self) -> Result<(), FrontendError> {
        let wants = Wants {
            features: self.wanted,
            queues: MAX_QUEUES,
            config_len: CONFIG_LEN,
        };
        let dev_num = self.dev_num;
        let mut frontend = self.shared.frontend.borrow_mut();
        frontend.start_device(dev_num, wants)?;
        let limit = frontend.limits().answer;
        loop {
            match frontend.wait_device(dev_num, limit)? {
                DriverAction::NeedQueue { .. } | DriverAction::Ready { .. } => break,
                DriverAction::Failed(fault) => return Err(frontend.device_error(dev_num, fault)),
                _ => {}
            }
        }
        self.config = frontend.with_device(dev_num, |side| side.config().to_vec())?;
        Ok(())
    }

    /// Declines the queues that the driver left out, and waits until the device runs.
    fn run(&self) -> Result<(), FrontendError> {
        let dev_num = self.dev_num;
        let mut frontend = self.shared.frontend.borrow_mut();
        let limit = frontend.limits().answer;
        let now = frontend.link()?.now();
        let unused = self
            .max_sizes
            .keys()
            .filter(|index| !self.queues.contains_key(index));
        for index in unused {
            frontend
                .with_device(dev_num, |side| side.decline_queue(now, *index))?
                .map_err(|error| frontend.device_error(dev_num, error))?;
        }
        while !frontend.with_device(dev_num, |side| side.is_running())? {
            if let DriverAction::Failed(fault) = frontend.wait_device(dev_num, limit)? {
                return Err(frontend.device_error(dev_num, fault));
            }
        }
        Ok(())
    }

    /// Resets the device and takes it off the bus.
    fn reset(&mut self) {
        self.queues.clear();
        let mut frontend = self.shared.frontend.borrow_mut();
        let driven = frontend.link().is_ok_and(|link| {
            let mut driven = link.bus().devices();
            driven.any(|number| number.0 == self.dev_num)
        });
        if driven && let Err(error) = frontend.reset_device(self.dev_num) {
            tracing::warn!(dev_num = self.dev_num, %error, "not reset");
            self.shared.tainted.set(true);
        }
    }

    /// Sends EVENT_AVAIL at once.
    fn kick(&self, queue: u16) -> Result<(), FrontendError> {
        let mut frontend = self.shared.frontend.borrow_mut();
        frontend.with_device(self.dev_num, |side| side.kick(queue, 0))?;
        frontend.pump()?;
        frontend.flush()?;
        // What came may have been the end of it.
        frontend.with_device(self.dev_num, |_| ())
    }

    /// Takes what the device said; what of it the driver should know.
    fn listen(&mut self) -> Result<InterruptStatus, FrontendError> {
        let mut status = InterruptStatus::empty();
        let mut frontend = self.shared.frontend.borrow_mut();
        frontend.pump()?;
        while let Some(action) = frontend.poll_device(self.dev_num)? {
            match action {
                DriverAction::Used(_) => status |= InterruptStatus::QUEUE_INTERRUPT,
                DriverAction::ConfigChanged => {
                    status |= InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT;
                    self.generation = self.generation.wrapping_add(1);
                    self.config =
                        frontend.with_device(self.dev_num, |side| side.config().to_vec())?;
                }
                DriverAction::NeedsReset => {
                    return Err(frontend.device_error(self.dev_num, "needs a reset"));
                }
                DriverAction::Failed(fault) => {
                    return Err(frontend.device_error(self.dev_num, fault));
                }
                _ => {}
            }
        }
        Ok(status)
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<bool, FrontendError> {
        let dev_num = self.dev_num;
        let mut frontend = self.shared.frontend.borrow_mut();
        let limit = frontend.limits().answer;
        let now = frontend.link()?.now();
        frontend
            .with_device(dev_num, |side| side.write_config(now, offset, bytes))?
            .map_err(|error| frontend.device_error(dev_num, error))?;
        loop {
            match frontend.wait_device(dev_num, limit)? {
                DriverAction::ConfigWritten { accepted, .. } => return Ok(accepted),
                DriverAction::Failed(fault) => return Err(frontend.device_error(dev_num, fault)),
                _ => {}
            }
        }
    }

    /// Answers the one request in flight for a device that is gone, with nothing written: a call
    /// that blocks would spin for ever.
    fn answer_for_device(&self, queue: u16) {
        let Some(setup) = self.queues.get(&queue) else {
            return;
        };
        let size = usize::from(setup.size);
        let last = |index: u16| u64::from(index.wrapping_sub(1) % setup.size);
        let head = memory::with_ring(setup.driver, 4 + 2 * size, |avail| {
            let next = avail.load_u16(2, Ordering::Acquire).ok()?;
            let head = avail.load_u16(4 + 2 * last(next), Ordering::Relaxed).ok()?;
            Some((next, head))
        });
        let answered = head.and_then(|(next, head)| {
            memory::with_ring(setup.device, 4 + 8 * size, |used| {
                let lone = used.load_u16(2, Ordering::Relaxed).ok()?.wrapping_add(1) == next;
                if lone {
                    let entry = 4 + 8 * last(next);
                    used.store_u32(entry, head.into(), Ordering::Relaxed).ok()?;
                    used.store_u32(entry + 4, 0, Ordering::Relaxed).ok()?;
                    used.store_u16(2, next, Ordering::Release).ok()?;
                }
                Some(lone)
            })
        });
        tracing::warn!(
            dev_num = self.dev_num,
            answered = answered == Some(true),
            "a request to a device that is gone"
        );
    }
}

impl Transport for BusTransport {
    fn device_type(&self) -> DeviceType {
        self.kind
    }

    fn read_device_features(&mut self) -> u64 {
        // The library knows no bit beyond 63.
        u64::try_from(self.offered.0 & u128::from(u64::MAX)).unwrap_or_default()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.wanted = Features(driver_features.into());
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.max_sizes.get(&queue).copied().unwrap_or(0).into()
    }

    fn notify(&mut self, queue: u16) {
        let kicked = if self.fault.is_set() {
            None
        } else {
            self.keep(self.kick(queue))
        };
        if kicked.is_none() {
            self.answer_for_device(queue);
        }
    }

    fn get_status(&self) -> DeviceStatus {
        if self.fault.is_set() {
            self.status | DeviceStatus::DEVICE_NEEDS_RESET
        } else {
            self.status
        }
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let added = status.difference(self.status);
        if status.is_empty() {
            self.reset();
        }
        if added.contains(DeviceStatus::FEATURES_OK) {
            let begun = self.begin();
            if self.keep(begun).is_none() {
                return;
            }
        }
        if added.contains(DeviceStatus::DRIVER_OK) && self.keep(self.run()).is_none() {
            return;
        }
        self.status = status;
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let setup = QueueSetup {
            size: u16::try_from(size).unwrap_or(0),
            desc: descriptors,
            driver: driver_area,
            device: device_area,
        };
        let dev_num = self.dev_num;
        let provided = {
            let mut frontend = self.shared.frontend.borrow_mut();
            frontend.link().map(|link| link.now()).and_then(|now| {
                frontend
                    .with_device(dev_num, |side| side.provide_queue(now, queue, setup))?
                    .map_err(|error| frontend.device_error(dev_num, error))
            })
        };
        if self.keep(provided).is_some() {
            self.queues.insert(queue, setup);
        }
    }

    /// The device as a whole: it offers no reset of one queue to these drivers, and they call this
    /// before they free the queue's memory.
    fn queue_unset(&mut self, _queue: u16) {
        self.reset();
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.queues.contains_key(&queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let heard = self.listen();
        self.keep(heard).unwrap_or_default()
    }

    fn read_config_generation(&self) -> u32 {
        self.generation
    }

    fn read_config_space<T: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let end = offset.checked_add(size_of::<T>());
        let bytes = end.and_then(|end| self.config.get(offset..end));
        let bytes = bytes.ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_bytes(bytes).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        let offset = u32::try_from(offset).map_err(|_| Error::ConfigSpaceTooSmall)?;
        let written = self.write_config(offset, value.as_bytes());
        match self.keep(written) {
            Some(true) => Ok(()),
            _ => Err(Error::IoError),
        }
    }
}

impl Drop for BusTransport {
    fn drop(&mut self) {
        self.reset();
    }
}
