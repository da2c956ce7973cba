//! A device end with one block device, asked frame by frame.

use super::{DEV, block_device, emit, limits, parse, setup};
use virtio_msg::wire::{
    DevNum, Event, EventAvail, FeatureBlocks, Frame, Presence, Request, Response, SetVqueue, Token,
    VqueueResponse,
};
use virtio_msg::{
    Action, Completion, DeviceBusAction, DeviceInfo, DeviceSide, DeviceSideBus, Features, Limits,
    QueueSetup, Status,
};

/// One frame of the device end.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Vec<u8>);

impl Answer {
    pub(crate) fn response(&self) -> Response<'_> {
        match parse(&self.0) {
            Frame::Response { response, .. } => response,
            other => panic!("not a response: {other:?}"),
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self.response() {
            Response::GetDeviceStatus { status } | Response::SetDeviceStatus { status } => {
                Status::from_bits(status).expect("known bits only")
            }
            other => panic!("no status: {other:?}"),
        }
    }

    pub(crate) fn vqueue(&self) -> VqueueResponse {
        match self.response() {
            Response::GetVqueue(queue) => queue,
            other => panic!("not of GET_VQUEUE: {other:?}"),
        }
    }
}

pub(crate) struct DeviceRig {
    pub(crate) bus: DeviceSideBus,
    /// What the owner of the device answers to CheckQueue, Start and WriteConfig.
    pub(crate) accept: bool,
    /// The owner leaves actions alone.
    pub(crate) hold: bool,
    /// Every action that came out.
    pub(crate) actions: Vec<Action>,
    next_token: u16,
}

impl DeviceRig {
    pub(crate) fn new() -> Self {
        Self::with(block_device(), limits())
    }

    pub(crate) fn with(info: DeviceInfo, limits: Limits) -> Self {
        let mut bus = DeviceSideBus::new(limits);
        bus.add_device(DEV, DeviceSide::new(info, limits).unwrap())
            .unwrap();
        let mut rig = Self {
            bus,
            accept: true,
            hold: false,
            actions: Vec::new(),
            next_token: 0x100,
        };
        let added = rig.frames();
        assert_eq!(added.len(), 1);
        assert_eq!(
            added[0][8..],
            [0, 0, 1, 0],
            "ADDED comes first: {:?}",
            Presence::ADDED
        );
        rig
    }

    /// A device that has run through the whole of its bring-up with queue 0 of 256.
    pub(crate) fn running() -> Self {
        let mut rig = Self::new();
        rig.negotiate(Features::REQUIRED | Features::RING_RESET | FLUSH_ONLY);
        rig.ask(set_vqueue(0, setup(0, 256)));
        assert_eq!(rig.set_status(0x0f).bits(), 0x0f);
        rig.actions.clear();
        rig
    }

    pub(crate) fn device(&self) -> &DeviceSide {
        self.bus.device(DEV).unwrap()
    }

    /// ACKNOWLEDGE, DRIVER, these features, FEATURES_OK.
    pub(crate) fn negotiate(&mut self, features: Features) {
        self.set_status(3);
        self.choose(features);
        assert_eq!(self.set_status(0x0b).bits(), 0x0b);
    }

    pub(crate) fn choose(&mut self, features: Features) {
        let blocks = FeatureBlocks::of(features, 0, 4);
        let answer = self.ask(Request::SetDriverFeatures {
            block_index: 0,
            blocks,
        });
        assert_eq!(answer.response(), Response::SetDriverFeatures);
    }

    pub(crate) fn set_status(&mut self, status: u32) -> Status {
        self.ask(Request::SetDeviceStatus { status }).status()
    }

    pub(crate) fn status(&mut self) -> Status {
        self.ask(Request::GetDeviceStatus).status()
    }

    pub(crate) fn vqueue(&mut self, index: u32) -> VqueueResponse {
        self.ask(Request::GetVqueue { index }).vqueue()
    }

    /// Gives one frame to the bus, and lets the owner act.
    pub(crate) fn give(&mut self, bytes: &[u8]) {
        self.bus.receive(bytes).expect("no fault of the peer");
        self.run();
    }

    /// Sends a request; gives its token.
    pub(crate) fn send(&mut self, request: Request<'_>) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.give(&emit(&Frame::Request {
            dev_num: DEV,
            token,
            request,
        }));
        token
    }

    /// Sends a request that must be answered at once, by one frame.
    pub(crate) fn ask(&mut self, request: Request<'_>) -> Answer {
        let token = self.send(request);
        let mut frames = self.frames();
        assert_eq!(frames.len(), 1, "exactly one answer");
        let answer = Answer(frames.remove(0));
        assert!(
            matches!(parse(&answer.0), Frame::Response { dev_num: DEV, token: echo, .. } if echo == token)
        );
        answer
    }

    pub(crate) fn kick(&mut self, index: u32) {
        let event = Event::Avail(EventAvail {
            index,
            next_offset: 0,
        });
        self.give(&emit(&Frame::Event {
            dev_num: DEV,
            event,
        }));
    }

    /// Lets the owner do what is to be done.
    pub(crate) fn run(&mut self) {
        while let Some(action) = self.bus.poll_action() {
            let DeviceBusAction::Device { dev_num, action } = action else {
                continue;
            };
            let completion = completion(&action, self.accept);
            self.actions.push(action);
            if let Some(completion) = completion
                && !self.hold
            {
                self.bus.complete(dev_num, completion);
            }
        }
    }

    pub(crate) fn complete(&mut self, completion: Completion) {
        self.bus.complete(DEV, completion);
        self.run();
    }

    /// Everything that the bus has to send.
    pub(crate) fn frames(&mut self) -> Vec<Vec<u8>> {
        drain(&mut self.bus)
    }

    pub(crate) fn quiet(&mut self) {
        assert_eq!(self.frames(), Vec::<Vec<u8>>::new(), "not quiet");
    }
}

/// The device's own bit that [`DeviceRig::running`] negotiates.
const FLUSH_ONLY: Features = super::FLUSH;

pub(crate) fn drain(bus: &mut DeviceSideBus) -> Vec<Vec<u8>> {
    let mut buf = vec![0xaa; 65535];
    let mut frames = Vec::new();
    while bus.has_output() {
        let len = bus.next_frame(&mut buf).expect("has_output was true");
        frames.push(buf[..len].to_vec());
    }
    assert_eq!(bus.next_frame(&mut buf), None, "has_output was false");
    frames
}

pub(crate) fn completion(action: &Action, accept: bool) -> Option<Completion> {
    Some(match action {
        Action::CheckQueue { index, .. } => Completion::QueueChecked {
            index: *index,
            accepted: accept,
        },
        Action::Start { .. } => Completion::Started { running: accept },
        Action::StopQueue { index } => Completion::QueueStopped { index: *index },
        Action::Reset => Completion::ResetDone,
        Action::WriteConfig { .. } => Completion::ConfigChecked { accepted: accept },
        Action::Kick { .. } => return None,
    })
}

pub(crate) fn set_vqueue(index: u32, setup: QueueSetup) -> Request<'static> {
    Request::SetVqueue(SetVqueue {
        index,
        flags: SetVqueue::ENABLE,
        size: setup.size.into(),
        descriptor_addr: setup.desc,
        driver_addr: setup.driver,
        device_addr: setup.device,
    })
}

pub(crate) fn dev(number: u16) -> DevNum {
    DevNum(number)
}
