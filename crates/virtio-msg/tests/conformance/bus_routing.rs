//! Buses: routing, tokens, private messages, PING; what is not forwarded.

use crate::rig::{
    DEV, DeviceRig, Pair, SECOND, block_device, dev, drain, emit, limits, parse, wants,
};
use std::borrow::Cow;
use virtio_msg::wire::{
    BusMessage, DevNum, Event, EventAvail, Frame, MsgId, Request, Response, Token,
};
use virtio_msg::{
    Action, Completion, DeviceBusAction, DeviceSide, DriverBusAction, DriverSide, Instant,
    PeerFault, PrivateRequest,
};

fn request(dev_num: DevNum, token: u16, request: Request<'_>) -> Vec<u8> {
    emit(&Frame::Request {
        dev_num,
        token: Token(token),
        request,
    })
}

fn private(msg_id: u8, response: bool, payload: &[u8]) -> BusMessage<'_> {
    BusMessage::Private {
        msg_id: MsgId(msg_id),
        response,
        payload: Cow::Borrowed(payload),
    }
}

fn bus(token: u16, message: BusMessage<'_>) -> Vec<u8> {
    emit(&Frame::Bus {
        token: Token(token),
        message,
    })
}

#[test]
fn b06_three_devices_come_up_at_once_over_one_bus() {
    let mut pair = Pair::empty(limits());
    for number in [0, 1, 0xffff].map(DevNum) {
        pair.add(number, block_device(), wants());
        let now = pair.now;
        pair.driver.update(number, |driver| driver.start(now));
    }
    pair.run();
    for number in [0, 1, 0xffff].map(DevNum) {
        assert!(pair.driver.device(number).unwrap().is_running(), "{number}");
        assert_eq!(pair.device.device(number).unwrap().status().bits(), 0x0f);
    }
    pair.driver.update(dev(1), |driver| driver.kick(0, 0));
    pair.owner.actions.clear();
    pair.run();
    assert_eq!(pair.owner.actions, [(dev(1), Action::Kick { index: 0 })]);
    pair.device.update(DevNum(0xffff), |device| device.used(2));
    pair.user.actions.clear();
    pair.run();
    assert_eq!(
        pair.user.actions,
        [(DevNum(0xffff), virtio_msg::DriverAction::Used(2))]
    );
}

#[test]
fn b13_b21_a_number_without_a_device_is_answered_by_nobody() {
    let mut rig = DeviceRig::new();
    rig.give(&request(dev(7), 1, Request::GetDeviceInfo));
    rig.give(&emit(&Frame::Event {
        dev_num: dev(7),
        event: Event::Avail(EventAvail {
            index: 0,
            next_offset: 0,
        }),
    }));
    rig.quiet();
    assert_eq!((rig.bus.discarded(), rig.bus.outstanding()), (2, 0));

    let mut pair = Pair::empty(limits());
    pair.driver
        .add_device(dev(7), DriverSide::new(wants(), limits().max_message_size));
    let now = pair.now;
    pair.driver.update(dev(7), |driver| driver.start(now));
    pair.run();
    pair.pass(Instant(0) + 3 * SECOND);
    let fault = virtio_msg::DriverFault::Timeout(MsgId::GET_DEVICE_INFO);
    assert_eq!(
        pair.user.actions,
        [(dev(7), virtio_msg::DriverAction::Failed(fault))]
    );
}

#[test]
fn b19_order_is_kept_per_device_and_devices_do_not_wait_for_each_other() {
    let mut rig = DeviceRig::running();
    rig.bus
        .add_device(dev(1), DeviceSide::new(block_device(), limits()).unwrap())
        .unwrap();
    rig.frames();
    rig.hold = true;
    let write = |byte| Request::SetConfig {
        generation: 0,
        offset: 0,
        data: Cow::Owned(vec![byte]),
    };
    rig.give(&request(DEV, 1, write(1)));
    rig.give(&request(dev(1), 2, Request::GetDeviceStatus));
    rig.give(&request(DEV, 3, write(2)));
    rig.give(&bus(4, BusMessage::Ping { data: 9 }));
    let tokens = |frames: &[Vec<u8>]| -> Vec<u16> {
        frames
            .iter()
            .map(|frame| u16::from_le_bytes([frame[4], frame[5]]))
            .collect()
    };
    assert_eq!(tokens(&rig.frames()), [2, 4]);
    rig.complete(Completion::ConfigChecked { accepted: true });
    assert_eq!(tokens(&rig.frames()), [1]);
    rig.complete(Completion::ConfigChecked { accepted: true });
    assert_eq!(tokens(&rig.frames()), [3]);
    assert_eq!(rig.device().config()[0], 2);
}

#[test]
fn b09_b22_b23_what_is_no_message_of_the_bus_is_dropped() {
    let mut rig = DeviceRig::new();
    let mut pair = Pair::running();
    let mut ping_to_1 = bus(1, BusMessage::Ping { data: 1 });
    ping_to_1[2] = 1;
    let mut bad = vec![ping_to_1, vec![], vec![2; 7]];
    bad.extend(
        [0, 1]
            .into_iter()
            .chain(4..0x40)
            .chain(0x41..0x80)
            .map(|id| vec![2, id, 0, 0, 1, 0, 8, 0]),
    );
    bad.extend([0x40, 0xc1].map(|id| vec![3, id, 0, 0, 1, 0, 8, 0]));
    for bytes in &bad {
        rig.give(bytes);
        rig.quiet();
        pair.inject_bytes(bytes);
    }
    assert_eq!(rig.bus.discarded(), bad.len() as u64);
    assert_eq!(pair.driver.discarded(), bad.len() as u64);
    assert_eq!(pair.sent(), Vec::<Vec<u8>>::new());
}

#[test]
fn b38_ping_echoes_from_either_side() {
    for data in [0, 0xffff_ffff, 0xdead_beef] {
        let mut pair = Pair::empty(limits());
        assert!(pair.driver.ping(data));
        assert!(!pair.driver.ping(1), "one at a time");
        assert!(pair.device.ping(!data));
        assert!(!pair.device.ping(1), "one at a time");
        pair.run();
        assert_eq!(pair.user.bus_actions, [DriverBusAction::Pong { data }]);
        assert_eq!(pair.device_pongs, [!data]);
        assert!(pair.driver.ping(1));
        assert!(pair.device.ping(1));
    }
}

#[test]
fn a_pong_that_nobody_asked_for_is_dropped() {
    let mut rig = DeviceRig::new();
    rig.give(&bus(1, BusMessage::Pong { data: 1 }));
    assert!(rig.bus.ping(5));
    rig.give(&bus(1, BusMessage::Pong { data: 5 }));
    assert_eq!(
        rig.bus.discarded(),
        2,
        "before it was sent it cannot be answered"
    );
    let frames = rig.frames();
    assert_eq!(frames.len(), 1);
    rig.give(&bus(0x77, BusMessage::Pong { data: 5 }));
    assert_eq!(rig.bus.discarded(), 3, "another token");
}

#[test]
fn private_requests_go_to_the_owner_and_come_back() {
    let mut pair = Pair::empty(limits());
    let now = pair.now;
    let id = pair
        .driver
        .send_private(now, MsgId(0x81), &[1, 2, 3])
        .unwrap();
    let other = pair.driver.send_private(now, MsgId(0x82), &[4]).unwrap();
    pair.run();
    let asked = std::mem::take(&mut pair.private);
    assert_eq!(
        asked
            .iter()
            .map(|request| &request.payload[..])
            .collect::<Vec<_>>(),
        [&[1, 2, 3][..], &[4]]
    );
    assert_eq!(pair.device.outstanding(), 2);
    // Answered in the other order.
    for PrivateRequest { msg_id, token, .. } in asked.iter().rev() {
        assert!(pair.device.answer_private(*msg_id, *token, &[msg_id.0]));
        assert!(!pair.device.answer_private(*msg_id, *token, &[9]), "once");
    }
    pair.run();
    assert_eq!(
        pair.user.bus_actions,
        [
            DriverBusAction::PrivateAnswer {
                id: other,
                payload: vec![0x82]
            },
            DriverBusAction::PrivateAnswer {
                id,
                payload: vec![0x81]
            },
        ]
    );
    assert_eq!(
        (pair.driver.outstanding(), pair.device.outstanding()),
        (0, 0)
    );
}

#[test]
fn a_private_request_times_out_once_and_its_token_stays_taken() {
    let mut pair = Pair::empty(limits());
    let now = pair.now;
    let id = pair.driver.send_private(now, MsgId(0x81), &[]).unwrap();
    pair.run();
    pair.pass(Instant(0) + 2 * SECOND);
    assert_eq!(
        pair.user.bus_actions,
        [DriverBusAction::PrivateTimedOut(id)]
    );
    assert_eq!(pair.driver.outstanding(), 1);
    let PrivateRequest { msg_id, token, .. } = pair.private.remove(0);
    assert!(pair.device.answer_private(msg_id, token, &[]));
    pair.run();
    assert_eq!(
        pair.user.bus_actions.len(),
        1,
        "the late answer finds nobody"
    );
    assert_eq!(pair.driver.outstanding(), 0);
}

#[test]
fn an_answer_of_another_private_message_does_not_count() {
    let mut pair = Pair::empty(limits());
    let now = pair.now;
    pair.driver.send_private(now, MsgId(0x81), &[]).unwrap();
    pair.run();
    let token = pair.private[0].token;
    pair.inject(&Frame::Bus {
        token,
        message: private(0x82, true, &[]),
    });
    pair.inject(&Frame::Bus {
        token,
        message: BusMessage::Pong { data: 0 },
    });
    pair.inject(&Frame::Response {
        dev_num: DEV,
        token,
        response: Response::SetVqueue,
    });
    assert_eq!(pair.user.bus_actions, []);
    assert_eq!((pair.driver.discarded(), pair.driver.outstanding()), (3, 1));
}

#[test]
fn private_messages_that_do_not_fit_are_refused_at_home() {
    let mut pair = Pair::empty(limits());
    let now = pair.now;
    assert!(
        pair.driver
            .send_private(now, MsgId(0x81), &[0; 257])
            .is_none()
    );
    assert!(!pair.device.send_private_event(MsgId(0xc1), &[0; 257]));
    assert!(
        pair.driver
            .send_private(now, MsgId(0x81), &[0; 256])
            .is_some()
    );
    pair.run();
    let token = pair.private[0].token;
    assert!(!pair.device.answer_private(MsgId(0x81), token, &[0; 257]));
    assert!(pair.device.answer_private(MsgId(0x81), token, &[0; 256]));
}

#[test]
fn a_private_request_not_handed_out_yet_cannot_be_answered() {
    let mut rig = DeviceRig::new();
    rig.bus.receive(&bus(1, private(0x81, false, &[]))).unwrap();
    assert!(!rig.bus.answer_private(MsgId(0x81), Token(1), &[]));
    assert!(matches!(
        rig.bus.poll_action(),
        Some(DeviceBusAction::PrivateRequest(_))
    ));
    assert!(rig.bus.answer_private(MsgId(0x81), Token(1), &[]));
}

#[test]
fn equal_private_events_are_one_until_they_left_and_can_be_taken_back() {
    let mut pair = Pair::empty(limits());
    let told = |pair: &mut Pair| {
        pair.run();
        let actions = std::mem::take(&mut pair.user.bus_actions);
        actions.len()
    };
    for payload in [[1, 0], [1, 0], [2, 0], [1, 0]] {
        assert!(pair.device.send_private_event(MsgId(0xc1), &payload));
    }
    assert_eq!(told(&mut pair), 2);
    assert!(pair.device.send_private_event(MsgId(0xc1), &[1, 0]));
    assert!(pair.device.retract_private_event(MsgId(0xc1), &[1, 0]));
    assert!(!pair.device.retract_private_event(MsgId(0xc1), &[1, 0]));
    assert_eq!(told(&mut pair), 0);
}

#[test]
fn private_events_to_the_device_end_are_dropped() {
    let mut rig = DeviceRig::new();
    rig.give(&bus(0, private(0xc1, false, &[1, 0])));
    rig.quiet();
    assert_eq!(rig.bus.discarded(), 1);
}

#[test]
fn a_flood_of_different_private_events_ends_the_instance() {
    let mut pair = Pair::empty(limits());
    let now = pair.now;
    let mut event = |number: u32| {
        pair.driver
            .receive(now, &bus(0, private(0xc1, false, &number.to_le_bytes())))
    };
    for number in 0..65536 {
        event(number).unwrap();
    }
    event(7).expect("an equal one is the same one");
    assert_eq!(
        event(65536),
        Err(PeerFault::TooManyPrivateEvents { bound: 65536 })
    );
}

#[test]
fn b18_an_instance_that_ends_leaves_every_request_to_its_timer() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.mute = true;
    pair.driver
        .update(DEV, |driver| driver.write_config(now, 0, &[1]))
        .unwrap()
        .unwrap();
    pair.driver.enumerate(now);
    let id = pair.driver.send_private(now, MsgId(0x81), &[]).unwrap();
    pair.run();
    pair.pass(Instant(0) + 60 * SECOND);
    assert_eq!(
        pair.user.bus_actions,
        [
            DriverBusAction::EnumerationTimedOut,
            DriverBusAction::PrivateTimedOut(id)
        ]
    );
    let fault = virtio_msg::DriverFault::Timeout(MsgId::SET_CONFIG);
    assert_eq!(pair.told(), [virtio_msg::DriverAction::Failed(fault)]);
    assert_eq!(pair.driver.poll_timeout(), None);
}

#[test]
fn b07_a_private_payload_is_not_touched() {
    let payload: Vec<u8> = (0..=255).collect();
    let mut rig = DeviceRig::new();
    rig.bus
        .receive(&bus(1, private(0xbf, false, &payload)))
        .unwrap();
    assert_eq!(
        rig.bus.poll_action(),
        Some(DeviceBusAction::PrivateRequest(PrivateRequest {
            msg_id: MsgId(0xbf),
            token: Token(1),
            payload: payload.clone()
        }))
    );
    assert!(rig.bus.answer_private(MsgId(0xbf), Token(1), &payload));
    let frames = drain(&mut rig.bus);
    assert_eq!(
        parse(&frames[0]),
        Frame::Bus {
            token: Token(1),
            message: private(0xbf, true, &payload)
        }
    );
}
