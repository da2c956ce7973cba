//! Two ends joined by a loopback, a scripted owner of the devices, a scripted user of the drivers, and a virtual clock.
//!
//! A test may tamper with every frame on its way to the driver.

use super::device::completion;
use super::{DEV, block_device, emit, limits, parse, setup, wants};
use std::collections::VecDeque;
use virtio_msg::bus::{Bus, BusInfo, Loopback, Traced, Way};
use virtio_msg::wire::{DevNum, Event, Frame, MaxMessageSize, Request, Response};
use virtio_msg::{
    Action, DeviceBusAction, DeviceInfo, DeviceSide, DeviceSideBus, DriverAction, DriverBusAction,
    DriverConfig, DriverFault, DriverSide, DriverSideBus, Instant, Limits, PrivateRequest,
};

/// The owner of the devices.
#[derive(Default)]
pub(crate) struct Owner {
    pub(crate) reject: bool,
    pub(crate) hold: bool,
    pub(crate) actions: Vec<(DevNum, Action)>,
}

/// The user of the drivers.
#[derive(Default)]
pub(crate) struct User {
    /// Leaves NeedQueue unanswered.
    pub(crate) idle: bool,
    pub(crate) actions: Vec<(DevNum, DriverAction)>,
    pub(crate) bus_actions: Vec<DriverBusAction>,
}

type Tamper = Box<dyn FnMut(Vec<u8>) -> Vec<Vec<u8>>>;

pub(crate) struct Pair {
    pub(crate) driver: DriverSideBus,
    pub(crate) device: DeviceSideBus,
    pub(crate) driver_end: Traced<Loopback>,
    pub(crate) device_end: Loopback,
    pub(crate) now: Instant,
    pub(crate) owner: Owner,
    pub(crate) user: User,
    /// Private requests that came out of the device end.
    pub(crate) private: Vec<PrivateRequest>,
    /// Answers to PINGs of the device end.
    pub(crate) device_pongs: Vec<u32>,
    /// The device end does not read.
    pub(crate) mute: bool,
    /// A frame of the driver end for which there was no room.
    no_room: Option<Vec<u8>>,
    tamper: Option<Tamper>,
    buf: Vec<u8>,
}

impl Pair {
    /// A block device at number 0, and a driver side that has not begun.
    pub(crate) fn new() -> Self {
        Self::with(block_device(), wants(), limits())
    }

    pub(crate) fn with(info: DeviceInfo, wants: DriverConfig, limits: Limits) -> Self {
        let mut pair = Self::empty(limits);
        pair.add(DEV, info, wants);
        pair
    }

    pub(crate) fn empty(limits: Limits) -> Self {
        let max_message_size = limits.max_message_size;
        let info = BusInfo {
            revision: 1,
            max_message_size,
            features: 0,
        };
        let (driver_end, device_end) = Loopback::pair(info, usize::from(limits.slots));
        Pair {
            driver: DriverSideBus::new(limits, wants().request_timeout),
            device: DeviceSideBus::new(limits),
            driver_end: Traced::new(driver_end),
            device_end,
            now: Instant(0),
            owner: Owner::default(),
            user: User::default(),
            private: Vec::new(),
            device_pongs: Vec::new(),
            mute: false,
            no_room: None,
            tamper: None,
            buf: vec![0; 65535],
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        let max_message_size = self.device_end.info().max_message_size;
        Limits {
            max_message_size,
            slots: super::SLOTS,
        }
    }

    pub(crate) fn add(&mut self, dev_num: DevNum, info: DeviceInfo, wants: DriverConfig) {
        let limits = self.limits();
        self.device
            .add_device(dev_num, DeviceSide::new(info, limits).unwrap())
            .unwrap();
        self.driver
            .add_device(dev_num, DriverSide::new(wants, limits.max_message_size));
        self.step();
    }

    /// A pair whose device runs, with queues 0 and 2 enabled.
    pub(crate) fn running() -> Self {
        let mut pair = Self::new();
        pair.start();
        assert!(pair.driver().is_running(), "{:?}", pair.user.actions);
        pair.forget();
        pair
    }

    /// Starts the driver and runs to the end.
    pub(crate) fn start(&mut self) {
        let now = self.now;
        self.drive(|driver| driver.start(now));
    }

    /// Uses the driver side of device 0 and runs to the end.
    pub(crate) fn drive<R>(&mut self, with: impl FnOnce(&mut DriverSide) -> R) -> R {
        let result = self.driver.update(DEV, with).unwrap();
        self.run();
        result
    }

    /// Uses the device side of device 0 and runs to the end.
    pub(crate) fn own<R>(&mut self, with: impl FnOnce(&mut DeviceSide) -> R) -> R {
        let result = self.device.update(DEV, with).unwrap();
        self.run();
        result
    }

    pub(crate) fn driver(&self) -> &DriverSide {
        self.driver.device(DEV).unwrap()
    }

    pub(crate) fn device(&self) -> &DeviceSide {
        self.device.device(DEV).unwrap()
    }

    /// From now on each frame to the driver becomes what `tamper` makes of it.
    pub(crate) fn tamper_frames(&mut self, tamper: impl FnMut(Vec<u8>) -> Vec<Vec<u8>> + 'static) {
        self.tamper = Some(Box::new(tamper));
    }

    /// From now on each response becomes what `tamper` makes of it; none: it is lost.
    pub(crate) fn tamper(
        &mut self,
        mut tamper: impl for<'a> FnMut(Response<'a>) -> Option<Response<'a>> + 'static,
    ) {
        self.tamper_frames(move |bytes| match parse(&bytes) {
            Frame::Response {
                dev_num,
                token,
                response,
            } => tamper(response)
                .map(|response| {
                    emit(&Frame::Response {
                        dev_num,
                        token,
                        response,
                    })
                })
                .into_iter()
                .collect(),
            _ => vec![bytes],
        });
    }

    pub(crate) fn honest(&mut self) {
        self.tamper = None;
    }

    /// Gives the driver end a frame that the device end did not send.
    pub(crate) fn inject(&mut self, frame: &Frame<'_>) {
        self.inject_bytes(&emit(frame));
    }

    pub(crate) fn inject_bytes(&mut self, bytes: &[u8]) {
        self.driver
            .receive(self.now, bytes)
            .expect("no fault of the peer");
        self.run();
    }

    pub(crate) fn inject_event(&mut self, event: Event<'_>) {
        self.inject(&Frame::Event {
            dev_num: DEV,
            event,
        });
    }

    /// Runs until nothing moves, without the clock.
    pub(crate) fn run(&mut self) {
        while self.step() {}
    }

    /// Everything that the driver end has goes over, is answered, and comes back. Says whether anything moved.
    pub(crate) fn step(&mut self) -> bool {
        let sent = self.send_from_driver();
        let acted = !self.mute && self.device_turn();
        let received = self.receive_at_driver();
        let used = self.user_turn();
        sent || acted || received || used
    }

    fn send_from_driver(&mut self) -> bool {
        let mut moved = false;
        loop {
            if let Some(frame) = &self.no_room {
                if self.driver_end.try_send(frame).is_err() {
                    return moved;
                }
                self.no_room = None;
                moved = true;
            }
            let has_output = self.driver.has_output();
            let len = self.driver.next_frame(&mut self.buf);
            assert_eq!(has_output, len.is_some());
            match len {
                Some(len) => self.no_room = Some(self.buf[..len].to_vec()),
                None => return moved,
            }
        }
    }

    fn device_turn(&mut self) -> bool {
        let mut moved = false;
        while let Some(len) = self.device_end.try_recv(&mut self.buf) {
            self.device
                .receive(&self.buf[..len])
                .expect("no fault of the driver end");
            self.owner_turn();
            moved = true;
        }
        self.owner_turn();
        moved | self.send_from_device()
    }

    fn owner_turn(&mut self) {
        while let Some(action) = self.device.poll_action() {
            match action {
                DeviceBusAction::Device { dev_num, action } => {
                    let completion = completion(&action, !self.owner.reject);
                    self.owner.actions.push((dev_num, action));
                    if let Some(completion) = completion
                        && !self.owner.hold
                    {
                        self.device.complete(dev_num, completion);
                    }
                }
                DeviceBusAction::PrivateRequest(request) => self.private.push(request),
                DeviceBusAction::Pong { data } => self.device_pongs.push(data),
            }
        }
    }

    fn send_from_device(&mut self) -> bool {
        let mut moved = false;
        while self.device.has_output() {
            let len = self
                .device
                .next_frame(&mut self.buf)
                .expect("has_output was true");
            let frame = self.buf[..len].to_vec();
            let frames = match &mut self.tamper {
                Some(tamper) => tamper(frame),
                None => vec![frame],
            };
            for frame in frames {
                self.device_end
                    .try_send(&frame)
                    .expect("the driver end reads");
                self.receive_at_driver();
            }
            moved = true;
        }
        moved
    }

    fn receive_at_driver(&mut self) -> bool {
        let mut moved = false;
        while let Some(len) = self.driver_end.try_recv(&mut self.buf) {
            self.driver
                .receive(self.now, &self.buf[..len])
                .expect("no fault of the device end");
            moved = true;
        }
        moved
    }

    fn user_turn(&mut self) -> bool {
        let mut todo = VecDeque::new();
        while let Some(action) = self.driver.poll_action() {
            todo.push_back(action);
        }
        let moved = !todo.is_empty();
        for action in todo {
            match action {
                DriverBusAction::Device { dev_num, action } => {
                    if let DriverAction::NeedQueue { index, max_size } = action
                        && !self.user.idle
                    {
                        let now = self.now;
                        let setup = setup(index, max_size.min(128));
                        let given = self
                            .driver
                            .update(dev_num, |driver| driver.provide_queue(now, index, setup));
                        given.unwrap().unwrap();
                    }
                    self.user.actions.push((dev_num, action));
                }
                other => self.user.bus_actions.push(other),
            }
        }
        moved
    }

    /// Lets time pass, with every timer on its way, and runs.
    pub(crate) fn pass(&mut self, until: Instant) {
        while let Some(at) = self.driver.poll_timeout().filter(|at| *at <= until) {
            assert!(at >= self.now, "a timer in the past");
            self.now = at;
            self.driver.handle_timeout(at);
            self.run();
        }
        self.now = until;
    }

    /// Forgets what was recorded.
    pub(crate) fn forget(&mut self) {
        self.driver_end.take();
        self.owner.actions.clear();
        self.user.actions.clear();
        self.user.bus_actions.clear();
    }

    /// What the driver end sent since the last look.
    pub(crate) fn sent(&mut self) -> Vec<Vec<u8>> {
        let out = |(way, frame)| (way == Way::Out).then_some(frame);
        self.driver_end.take().into_iter().filter_map(out).collect()
    }

    /// The requests that the driver end sent since the last look.
    pub(crate) fn requests(&mut self) -> Vec<Request<'static>> {
        let max = MaxMessageSize::new(65535).unwrap();
        let request = |bytes: Vec<u8>| match Frame::parse(&bytes, max) {
            Ok(Frame::Request { request, .. }) => Some(request.into_owned()),
            _ => None,
        };
        self.sent().into_iter().filter_map(request).collect()
    }

    /// What the user of device 0 was told since the last look.
    pub(crate) fn told(&mut self) -> Vec<DriverAction> {
        let actions = std::mem::take(&mut self.user.actions);
        actions
            .into_iter()
            .filter(|(dev_num, _)| *dev_num == DEV)
            .map(|(_, action)| action)
            .collect()
    }

    /// What the owner of device 0 was asked since the last look.
    pub(crate) fn asked(&mut self) -> Vec<Action> {
        let actions = std::mem::take(&mut self.owner.actions);
        actions
            .into_iter()
            .filter(|(dev_num, _)| *dev_num == DEV)
            .map(|(_, action)| action)
            .collect()
    }

    /// Why the driver of device 0 gave up, if it did.
    pub(crate) fn failure(&mut self) -> Option<DriverFault> {
        self.told().into_iter().find_map(|action| match action {
            DriverAction::Failed(fault) => Some(fault),
            _ => None,
        })
    }
}
