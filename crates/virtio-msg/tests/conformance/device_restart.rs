//! Devices: out as plain data and back (binding section 9).

use crate::rig::{
    Answer, DEV, DeviceRig, SLOTS, block_device, dev, drain, limits, parse, set_vqueue, setup,
};
use std::borrow::Cow;
use virtio_msg::wire::{BusMessage, Frame, MsgId, Presence, Request, Response, Token};
use virtio_msg::{
    Action, Completion, DeviceBusAction, DeviceInfo, DeviceSide, DeviceSideBus, DeviceState,
    Features, ImportError, PrivateRequest, Refused,
};

/// The same instance in a new process, whose owner has started the queues again and taken every kick.
fn restart(rig: DeviceRig) -> DeviceRig {
    let state = rig.bus.export();
    let mut after = DeviceRig::new();
    after.bus = DeviceSideBus::import(limits(), state, |_| Some(block_device())).unwrap();
    after
}

#[test]
fn a_restart_at_rest_changes_nothing() {
    for rig in [DeviceRig::new(), DeviceRig::running()] {
        let before = rig.bus.export();
        assert_eq!(restart(rig).bus.export(), before);
    }
}

#[test]
fn every_event_and_kick_is_raised_again() {
    let mut rig = restart(DeviceRig::running());
    rig.run();
    assert_eq!(rig.actions, [Action::Kick { index: 0 }]);
    let frames = rig.frames();
    let ids: Vec<u8> = frames.iter().map(|frame| frame[1]).collect();
    assert_eq!(
        ids,
        [0x40, 0x40, 0x42],
        "ADDED, EVENT_CONFIG, EVENT_USED: {frames:?}"
    );
}

#[test]
fn a_request_under_way_runs_again_and_is_answered_once() {
    let under_way: [(Request<'static>, Action); 4] = [
        (Request::SetDeviceStatus { status: 0 }, Action::Reset),
        (
            Request::ResetVqueue { index: 0 },
            Action::StopQueue { index: 0 },
        ),
        (
            set_vqueue(2, setup(2, 64)),
            Action::CheckQueue {
                index: 2,
                setup: setup(2, 64),
            },
        ),
        (
            Request::SetConfig {
                generation: 0,
                offset: 1,
                data: Cow::Borrowed(&[7]),
            },
            Action::WriteConfig {
                offset: 1,
                data: vec![7],
            },
        ),
    ];
    for (request, action) in under_way {
        let mut rig = DeviceRig::running();
        rig.hold = true;
        let first = rig.send(request);
        let second = rig.send(Request::GetDeviceStatus);
        rig.quiet();

        let mut rig = restart(rig);
        rig.run();
        assert!(rig.actions.contains(&action), "{:?}", rig.actions);
        let answers: Vec<_> = rig
            .frames()
            .into_iter()
            .filter(|frame| frame[0] == 1)
            .collect();
        let tokens: Vec<_> = answers
            .iter()
            .map(|frame| match parse(frame) {
                Frame::Response { token, .. } => token,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(tokens, [first, second]);
        assert_eq!(rig.bus.outstanding(), 0);
    }
}

#[test]
fn a_late_queue_restarted_between_its_two_steps_is_enabled() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    rig.send(set_vqueue(2, setup(2, 64)));
    rig.complete(Completion::QueueChecked {
        index: 2,
        accepted: true,
    });
    rig.quiet();
    let mut rig = restart(rig);
    assert_eq!(
        rig.device().queue(2),
        Some(setup(2, 64)),
        "the owner starts it with the others"
    );
    rig.run();
    let answers: Vec<_> = rig
        .frames()
        .into_iter()
        .filter(|frame| frame[0] == 1)
        .collect();
    assert_eq!(Answer(answers[0].clone()).response(), Response::SetVqueue);
}

#[test]
fn answers_owed_go_out_first_and_in_order() {
    let mut rig = DeviceRig::running();
    let tokens = [
        rig.send(Request::GetDeviceInfo),
        rig.send(Request::GetDeviceStatus),
    ];
    let mut rig = restart(rig);
    let frames = rig.frames();
    for (frame, token) in frames.iter().zip(tokens) {
        assert!(matches!(parse(frame), Frame::Response { token: echo, .. } if echo == token));
    }
}

#[test]
fn private_requests_come_out_again_and_removed_is_not_lost() {
    let mut rig = DeviceRig::running();
    rig.bus
        .add_device(dev(3), DeviceSide::new(block_device(), limits()).unwrap())
        .unwrap();
    rig.frames();
    let message = BusMessage::Private {
        msg_id: MsgId(0x81),
        response: false,
        payload: Cow::Borrowed(&[1, 2]),
    };
    rig.hold = true;
    rig.give(&crate::rig::emit(&Frame::Bus {
        token: Token(9),
        message,
    }));
    rig.bus.remove_device(dev(3));
    let mut bus =
        DeviceSideBus::import(limits(), rig.bus.export(), |_| Some(block_device())).unwrap();
    assert_eq!(
        bus.poll_action(),
        Some(DeviceBusAction::PrivateRequest(PrivateRequest {
            msg_id: MsgId(0x81),
            token: Token(9),
            payload: vec![1, 2]
        }))
    );
    let removed = |frame: &Vec<u8>| {
        matches!(parse(frame), Frame::Bus { message: BusMessage::EventDevice { dev_num, state }, .. }
            if dev_num == dev(3) && state == Presence::REMOVED)
    };
    assert_eq!(
        drain(&mut bus)
            .iter()
            .filter(|frame| removed(frame))
            .count(),
        1
    );
    assert!(bus.answer_private(MsgId(0x81), Token(9), &[]));
    assert_eq!(bus.outstanding(), 1);
}

#[test]
fn a_device_that_is_not_described_any_more_is_removed() {
    let state = DeviceRig::running().bus.export();
    let mut bus = DeviceSideBus::import(limits(), state, |_| None).unwrap();
    assert!(bus.device(DEV).is_none());
    let frames = drain(&mut bus);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][8..], [0, 0, 2, 0]);
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let good = DeviceRig::running().device().export();
    let import = |state: DeviceState| DeviceSide::import(block_device(), limits(), state).err();
    assert_eq!(import(good.clone()), None);

    let shape = DeviceState {
        config: vec![0; 59],
        ..good.clone()
    };
    assert_eq!(
        import(shape),
        Some(ImportError::Shape {
            config: 59,
            queues: 3
        })
    );
    let shape = DeviceState {
        queues: vec![None; 2],
        ..good.clone()
    };
    assert_eq!(
        import(shape),
        Some(ImportError::Shape {
            config: 60,
            queues: 2
        })
    );
    for status in [0x07, 0x10, 0x20, 0x100] {
        assert_eq!(
            import(DeviceState {
                status,
                ..good.clone()
            }),
            Some(ImportError::Status(status))
        );
    }
    let features = Features::REQUIRED | Features::bit(0);
    assert_eq!(
        import(DeviceState {
            features,
            ..good.clone()
        }),
        Some(ImportError::Status(0x0f))
    );
    assert_eq!(
        import(DeviceState {
            chose_unknown: true,
            ..good.clone()
        }),
        Some(ImportError::Status(0x0f))
    );
    let queues = vec![Some(setup(0, 256)), Some(setup(1, 64)), None];
    assert_eq!(
        import(DeviceState {
            queues,
            ..good.clone()
        }),
        Some(ImportError::Queue(1))
    );
    assert_eq!(
        import(DeviceState {
            status: 3,
            ..good.clone()
        }),
        Some(ImportError::Queue(0))
    );
    let requests = vec![(Token(1), Request::GetDeviceInfo); usize::from(SLOTS) + 1];
    let too_many = Refused::TooManyRequests { bound: SLOTS };
    assert_eq!(
        import(DeviceState {
            requests,
            ..good.clone()
        }),
        Some(ImportError::Request(too_many))
    );

    let info = DeviceInfo {
        device_id: 0,
        ..block_device()
    };
    assert!(matches!(
        DeviceSide::import(info, limits(), good),
        Err(ImportError::Info(_))
    ));
}
