//! Devices: identity, status, reset; the general clauses on requests and answers.

use crate::rig::{Answer, DEV, DeviceRig, block_device, emit, limits, parse, set_vqueue, setup};
use std::borrow::Cow;
use virtio_msg::wire::{
    DevNum, Event, EventAvail, FeatureBlocks, Frame, MsgId, Request, Response, Token,
    VqueueResponse,
};
use virtio_msg::{Action, BadDeviceInfo, Completion, DeviceInfo, DeviceSide, Features, Status};

const NO_QUEUE: VqueueResponse = VqueueResponse {
    index: 0,
    max_size: 0,
    cur_size: 0,
    flags: 0,
    descriptor_addr: 0,
    driver_addr: 0,
    device_addr: 0,
};

fn every_request() -> Vec<Request<'static>> {
    vec![
        Request::GetDeviceInfo,
        Request::GetDeviceFeatures {
            block_index: 0,
            num_blocks: 4,
        },
        Request::SetDriverFeatures {
            block_index: 0,
            blocks: FeatureBlocks::of(Features::REQUIRED, 0, 2),
        },
        Request::GetConfig {
            offset: 0,
            length: 8,
        },
        Request::SetConfig {
            generation: 0,
            offset: 0,
            data: Cow::Borrowed(&[1]),
        },
        Request::GetDeviceStatus,
        Request::SetDeviceStatus { status: 1 },
        Request::GetVqueue { index: 0 },
        set_vqueue(0, setup(0, 256)),
        Request::ResetVqueue { index: 0 },
        Request::GetShm { shmid: 0 },
    ]
}

#[test]
fn v01_all_eleven_requests_are_answered_in_kind() {
    let mut rig = DeviceRig::new();
    for request in every_request() {
        let id = request.msg_id();
        assert_eq!(rig.ask(request).response().msg_id(), id);
    }
}

#[test]
fn v05_v62_any_token_comes_back_even_the_same_one() {
    let mut rig = DeviceRig::new();
    for token in [0, 1, 0xffff, 7, 7, 7].map(Token) {
        rig.give(&emit(&Frame::Request {
            dev_num: DEV,
            token,
            request: Request::GetDeviceStatus,
        }));
        let frames = rig.frames();
        assert_eq!(frames.len(), 1);
        assert!(matches!(parse(&frames[0]), Frame::Response { token: echo, .. } if echo == token));
    }
}

#[test]
fn v07_what_cannot_be_used_is_quiet_and_counted() {
    let mut rig = DeviceRig::running();
    let before = rig.device().export();
    let mut bad: Vec<Vec<u8>> = (0..8).map(|size| vec![0, 2, 0, 0, 1, 0, size, 0]).collect();
    bad.extend(
        [0, 1]
            .into_iter()
            .chain(0x0d..0x40)
            .chain(0x43..=0xff)
            .map(|id| vec![0, id, 0, 0, 1, 0, 8, 0]),
    );
    bad.extend(every_request().into_iter().filter_map(|request| {
        let mut bytes = emit(&Frame::Request {
            dev_num: DEV,
            token: Token(1),
            request,
        });
        bytes.pop();
        bytes[6] = u8::try_from(bytes.len()).unwrap();
        (bytes.len() >= 8).then_some(bytes)
    }));
    for bytes in &bad {
        rig.give(bytes);
        rig.quiet();
    }
    assert_eq!(rig.bus.discarded(), bad.len() as u64);
    assert_eq!(rig.device().export(), before);
    assert_eq!(rig.bus.outstanding(), 0);
}

#[test]
fn v08_events_are_never_answered() {
    let mut rig = DeviceRig::running();
    for index in [0, 1, 2, 3, 0xffff, 0xffff_ffff] {
        rig.kick(index);
        rig.quiet();
    }
}

#[test]
fn v09_responses_are_ignored() {
    let mut rig = DeviceRig::running();
    let before = rig.device().export();
    for id in 2..0x0d {
        let mut bytes = vec![1, id, 0, 0, 1, 0, 56, 0];
        bytes.resize(56, 0);
        rig.give(&bytes);
    }
    rig.quiet();
    assert_eq!(rig.device().export(), before);
}

#[test]
fn v11_v12_requests_are_processed_in_order_each_answered_once() {
    let mut rig = DeviceRig::running();
    for value in 0..100u8 {
        let write = rig.send(Request::SetConfig {
            generation: 0,
            offset: 32,
            data: Cow::Owned(vec![value]),
        });
        let read = rig.send(Request::GetConfig {
            offset: 32,
            length: 1,
        });
        let answers: Vec<_> = rig.frames();
        let [first, second] = &answers[..] else {
            panic!("two answers: {answers:?}")
        };
        assert!(
            matches!(parse(first), Frame::Response { token, response: Response::SetConfig { length: 1, .. }, .. } if token == write)
        );
        let Frame::Response {
            token,
            response: Response::GetConfig { data, .. },
            ..
        } = parse(second)
        else {
            panic!("not the read")
        };
        assert_eq!((token, &data[..]), (read, &[value][..]));
    }
}

#[test]
fn v11_requests_behind_one_under_way_wait_their_turn() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    let write = rig.send(Request::SetConfig {
        generation: 0,
        offset: 0,
        data: Cow::Borrowed(&[0xee]),
    });
    let read = rig.send(Request::GetConfig {
        offset: 0,
        length: 1,
    });
    let reset = rig.send(Request::SetDeviceStatus { status: 0 });
    let status = rig.send(Request::GetDeviceStatus);
    rig.quiet();
    assert_eq!(
        rig.actions,
        [Action::WriteConfig {
            offset: 0,
            data: vec![0xee]
        }]
    );

    rig.complete(Completion::ConfigChecked { accepted: true });
    assert_eq!(
        rig.actions.last(),
        Some(&Action::Reset),
        "the reset is asked for after the write only"
    );
    let tokens: Vec<_> = rig.frames().iter().map(|frame| token(frame)).collect();
    assert_eq!(tokens, [write, read]);

    rig.complete(Completion::ResetDone);
    let frames = rig.frames();
    assert_eq!(
        frames.iter().map(|frame| token(frame)).collect::<Vec<_>>(),
        [reset, status]
    );
    assert_eq!(Answer(frames[1].clone()).status(), Status::empty());
}

fn token(frame: &[u8]) -> Token {
    match parse(frame) {
        Frame::Response { token, .. } => token,
        other => panic!("not a response: {other:?}"),
    }
}

#[test]
fn v13_v17_device_info_is_constant_and_answered_in_every_status() {
    let mut rig = DeviceRig::new();
    let info = |rig: &mut DeviceRig| rig.ask(Request::GetDeviceInfo).0[8..].to_vec();
    let first = info(&mut rig);
    assert_eq!(first[8..24], *b"0123456789abcdef");
    rig.set_status(3);
    assert_eq!(info(&mut rig), first);
    rig.negotiate(Features::REQUIRED);
    assert_eq!(info(&mut rig), first);
    rig.set_status(0x0f);
    assert_eq!(info(&mut rig), first);
    rig.set_status(0);
    assert_eq!(info(&mut rig), first);
}

#[test]
fn v14_v15_v16_the_counts_cover_what_there_is() {
    let high = DeviceInfo {
        features: block_device().features | Features::bit(64),
        ..block_device()
    };
    let mut rig = DeviceRig::with(high, limits());
    let answer = rig.ask(Request::GetDeviceInfo);
    let Response::GetDeviceInfo(info) = answer.response() else {
        panic!("no info")
    };
    assert_eq!(
        (
            info.num_feature_blocks,
            info.config_size,
            info.max_virtqueues
        ),
        (3, 60, 3)
    );
    assert_eq!((info.admin_vq_start, info.admin_vq_count), (0, 0));
}

#[test]
fn a_description_that_cannot_be_is_refused_at_birth() {
    let refused = |info: DeviceInfo| DeviceSide::new(info, limits()).err();
    assert_eq!(
        refused(DeviceInfo {
            device_id: 0,
            ..block_device()
        }),
        Some(BadDeviceInfo::NoDeviceId)
    );
    let odd = DeviceInfo {
        queue_max: vec![1, 6],
        ..block_device()
    };
    assert_eq!(
        refused(odd),
        Some(BadDeviceInfo::BadQueueSize { index: 1, size: 6 })
    );
    let many = DeviceInfo {
        queue_max: vec![1; 65537],
        ..block_device()
    };
    assert_eq!(refused(many), Some(BadDeviceInfo::TooManyQueues(65537)));
    assert_eq!(
        refused(DeviceInfo {
            queue_max: vec![1; 65536],
            ..block_device()
        }),
        None
    );
}

#[test]
fn v39_status_is_what_is_true() {
    let mut rig = DeviceRig::new();
    assert_eq!(rig.set_status(1).bits(), 1);
    assert_eq!(
        rig.set_status(2).bits(),
        3,
        "a bit is never cleared by a write"
    );
    assert_eq!(
        rig.set_status(16 | 32 | 64 | 0x0100).bits(),
        3,
        "bits that are not the driver's"
    );
    rig.choose(Features::REQUIRED);
    assert_eq!(
        rig.set_status(0x0f).bits(),
        0x0f,
        "FEATURES_OK and DRIVER_OK at once"
    );
    assert_eq!(rig.set_status(0x80).bits(), 0x8f);
    assert_eq!(rig.status().bits(), 0x8f);
    assert_eq!(
        rig.set_status(0xffff_ff00).bits(),
        0,
        "the status has 8 bits"
    );
}

#[test]
fn v39_driver_ok_is_true_only_when_the_queues_run() {
    let mut rig = DeviceRig::new();
    rig.negotiate(Features::REQUIRED);
    rig.hold = true;
    rig.send(Request::SetDeviceStatus { status: 0x0f });
    rig.quiet();
    assert_eq!(rig.actions.last(), Some(&Action::Start { queues: vec![] }));
    assert!(!rig.device().status().contains(Status::DRIVER_OK));
    rig.complete(Completion::Started { running: false });
    let frames = rig.frames();
    assert_eq!(
        Answer(frames[0].clone()).status().bits(),
        0x4b,
        "not started, needs a reset"
    );
    assert_eq!(
        rig.set_status(0x0f).bits(),
        0x4b,
        "and cannot be started before"
    );
}

#[test]
fn v39_a_driver_that_gave_up_is_not_started() {
    let mut rig = DeviceRig::new();
    rig.negotiate(Features::REQUIRED);
    assert_eq!(rig.set_status(0x8f).bits(), 0x8b);
    assert_eq!(rig.set_status(0x0f).bits(), 0x8b);
}

#[test]
fn v40_status_zero_is_answered_when_the_owner_let_go() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    rig.send(Request::SetDeviceStatus { status: 0 });
    assert_eq!(rig.actions, [Action::Reset]);
    rig.kick(0);
    assert_eq!(rig.actions, [Action::Reset], "no kick any more");
    // The device ends its I/O: what it says meanwhile is not sent after the answer.
    rig.bus.update(DEV, |device| {
        device.used(0);
        device.needs_reset();
        device.config_changed(0, &[9]).unwrap();
    });
    for stale in [
        Completion::Started { running: true },
        Completion::QueueStopped { index: 0 },
        Completion::QueueChecked {
            index: 0,
            accepted: true,
        },
        Completion::ConfigChecked { accepted: true },
    ] {
        rig.complete(stale);
    }
    rig.complete(Completion::ResetDone);
    let answers: Vec<_> = rig
        .frames()
        .into_iter()
        .filter(|frame| frame[0] == 1)
        .collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(Answer(answers[0].clone()).status(), Status::empty());
    rig.bus.update(DEV, |device| device.used(0));
    rig.quiet();
    rig.complete(Completion::ResetDone);
    rig.quiet();
}

#[test]
fn v40_marks_set_before_the_answer_are_gone_after_it() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    rig.send(Request::SetDeviceStatus { status: 0 });
    rig.bus.update(DEV, |device| {
        device.used(0);
        device.needs_reset();
    });
    // No room in the ring until now: the answer and nothing else must come.
    rig.complete(Completion::ResetDone);
    let frames = rig.frames();
    assert_eq!(frames.len(), 1);
    assert_eq!(Answer(frames[0].clone()).status(), Status::empty());
}

#[test]
fn v41_a_reset_clears_queues_features_and_latches() {
    let mut rig = DeviceRig::running();
    rig.bus.update(DEV, |device| device.needs_reset());
    rig.frames();
    assert_eq!(rig.status().bits(), 0x4f);
    assert_eq!(rig.set_status(0), Status::empty());
    assert_eq!(
        rig.vqueue(0),
        VqueueResponse {
            max_size: 256,
            ..NO_QUEUE
        }
    );
    assert_eq!(rig.device().features(), Features::default());
    rig.set_status(3);
    assert_eq!(rig.set_status(0x0b).bits(), 3, "nothing is negotiated");
    assert_eq!(rig.status().bits(), 3, "NEEDS_RESET is gone");
}

#[test]
fn v53_no_shared_memory_under_any_id() {
    let mut rig = DeviceRig::new();
    for shmid in (0..256).chain([u32::MAX]) {
        assert_eq!(
            rig.ask(Request::GetShm { shmid }).response(),
            Response::GetShm {
                shmid,
                length: 0,
                address: 0
            }
        );
    }
}

#[test]
fn v04_each_device_answers_with_its_own_number() {
    let mut rig = DeviceRig::new();
    for number in [1, 0xffff].map(DevNum) {
        rig.bus
            .add_device(number, DeviceSide::new(block_device(), limits()).unwrap())
            .unwrap();
    }
    rig.frames();
    for number in [0, 1, 0xffff].map(DevNum) {
        rig.give(&emit(&Frame::Request {
            dev_num: number,
            token: Token(3),
            request: Request::GetDeviceInfo,
        }));
        let frames = rig.frames();
        assert!(matches!(parse(&frames[0]), Frame::Response { dev_num, .. } if dev_num == number));
    }
}

#[test]
fn v10_reserved_fields_are_ignored() {
    let mut rig = DeviceRig::new();
    rig.negotiate(Features::REQUIRED);
    let mut bytes = emit(&Frame::Request {
        dev_num: DEV,
        token: Token(1),
        request: set_vqueue(0, setup(0, 256)),
    });
    assert_eq!(bytes[1], MsgId::SET_VQUEUE.0);
    bytes[20..24].fill(0xff);
    rig.give(&bytes);
    rig.frames();
    assert_eq!(rig.vqueue(0).cur_size, 256);
}

#[test]
fn v41_nothing_of_before_a_reset_comes_up_after_it() {
    let mut rig = DeviceRig::new();
    rig.set_status(3);
    let past_the_end = FeatureBlocks::of(Features(1), 0, 1);
    rig.ask(Request::SetDriverFeatures {
        block_index: 4,
        blocks: past_the_end,
    });
    rig.set_status(0);
    rig.negotiate(Features::REQUIRED);
    rig.ask(set_vqueue(0, setup(0, 256)));
    rig.set_status(0x0f);
    rig.actions.clear();

    let kick = Event::Avail(EventAvail {
        index: 0,
        next_offset: 0,
    });
    rig.bus
        .receive(&emit(&Frame::Event {
            dev_num: DEV,
            event: kick,
        }))
        .unwrap();
    rig.bus.update(DEV, |device| {
        device.used(0);
        device.config_changed(0, &[1]).unwrap();
    });
    let request = Request::SetDeviceStatus { status: 0 };
    rig.bus
        .receive(&emit(&Frame::Request {
            dev_num: DEV,
            token: Token(1),
            request,
        }))
        .unwrap();
    rig.hold = true;
    rig.run();
    assert_eq!(
        rig.actions,
        [Action::Reset],
        "the kick that was not taken is gone"
    );
    rig.complete(Completion::ResetDone);
    rig.hold = false;
    assert_eq!(rig.frames().len(), 1);

    rig.negotiate(Features::REQUIRED);
    rig.ask(set_vqueue(0, setup(0, 256)));
    assert_eq!(rig.set_status(0x0f).bits(), 0x0f);
    rig.quiet();
    rig.bus
        .update(DEV, |device| device.config_changed(9, &[1]).unwrap());
    assert_eq!(rig.frames()[0].len(), 25, "one byte changed since");
}

#[test]
fn v39_driver_ok_written_again_starts_nothing_again() {
    let mut rig = DeviceRig::running();
    assert_eq!(rig.set_status(0x0f).bits(), 0x0f);
    assert_eq!(rig.actions, []);
}

#[test]
fn v43_a_device_on_its_own_has_no_event_before_driver_ok() {
    let mut device = DeviceSide::new(block_device(), limits()).unwrap();
    device.needs_reset();
    assert!(!device.has_event());
    assert_eq!(device.poll_event(), None);
}
