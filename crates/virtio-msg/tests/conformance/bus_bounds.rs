//! Buses: nobody can be blocked by the peer's laziness (binding section 4): bounds, back-pressure, fairness.

use crate::rig::{
    DEV, DeviceRig, Pair, SECOND, SLOTS, block_device, dev, emit, limits, parse, setup, wants,
};
use std::borrow::Cow;
use virtio_msg::wire::{BusMessage, DevNum, Event, Frame, MsgId, Request, Token};
use virtio_msg::{Completion, DeviceSide, DriverSide, Instant, PeerFault};

fn ask(rig: &mut DeviceRig, dev_num: DevNum, request: Request<'_>) -> Result<(), PeerFault> {
    rig.bus.receive(&emit(&Frame::Request {
        dev_num,
        token: Token(1),
        request,
    }))
}

const TOO_MANY: PeerFault = PeerFault::TooManyRequests { slots: SLOTS };

#[test]
fn requests_beyond_the_slots_end_the_instance() {
    let mut rig = DeviceRig::new();
    rig.bus
        .add_device(dev(1), DeviceSide::new(block_device(), limits()).unwrap())
        .unwrap();
    rig.frames();
    // Answers that have not left count as much as requests under way, of whatever device or of the bus.
    for number in 0..SLOTS - 2 {
        ask(&mut rig, dev(number % 2), Request::GetDeviceStatus).unwrap();
    }
    let bus = |message| {
        emit(&Frame::Bus {
            token: Token(1),
            message,
        })
    };
    rig.bus
        .receive(&bus(BusMessage::GetDevices {
            offset: 0,
            count: 8,
        }))
        .unwrap();
    let private = BusMessage::Private {
        msg_id: MsgId(0x81),
        response: false,
        payload: Cow::Borrowed(&[]),
    };
    rig.bus.receive(&bus(private.clone())).unwrap();
    assert_eq!(rig.bus.outstanding(), usize::from(SLOTS));

    assert_eq!(ask(&mut rig, DEV, Request::GetDeviceStatus), Err(TOO_MANY));
    assert_eq!(
        rig.bus.receive(&bus(BusMessage::GetDevices {
            offset: 0,
            count: 8
        })),
        Err(TOO_MANY)
    );
    assert_eq!(
        rig.bus.receive(&bus(BusMessage::Ping { data: 1 })),
        Err(TOO_MANY)
    );
    assert_eq!(rig.bus.receive(&bus(private)), Err(TOO_MANY));
}

#[test]
fn each_answer_that_leaves_makes_room_for_a_request() {
    let mut rig = DeviceRig::new();
    let mut buf = [0; 264];
    for _ in 0..SLOTS {
        ask(&mut rig, DEV, Request::GetDeviceStatus).unwrap();
    }
    for _ in 0..1000 {
        assert!(rig.bus.next_frame(&mut buf).is_some());
        ask(&mut rig, DEV, Request::GetDeviceStatus).unwrap();
    }
    assert_eq!(ask(&mut rig, DEV, Request::GetDeviceStatus), Err(TOO_MANY));
}

#[test]
fn requests_that_wait_for_an_action_count() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    ask(&mut rig, DEV, Request::SetDeviceStatus { status: 0 }).unwrap();
    for _ in 1..SLOTS {
        ask(&mut rig, DEV, Request::GetDeviceStatus).unwrap();
    }
    assert_eq!(ask(&mut rig, DEV, Request::GetDeviceStatus), Err(TOO_MANY));
    rig.run();
    rig.complete(Completion::ResetDone);
    assert_eq!(rig.frames().len(), usize::from(SLOTS));
}

#[test]
fn a_second_ping_before_the_first_answer_left_ends_the_instance() {
    let ping = |data| {
        emit(&Frame::Bus {
            token: Token(1),
            message: BusMessage::Ping { data },
        })
    };
    let mut rig = DeviceRig::new();
    rig.bus.receive(&ping(1)).unwrap();
    assert_eq!(rig.bus.receive(&ping(2)), Err(PeerFault::SecondPing));
    rig.frames();
    rig.bus.receive(&ping(2)).unwrap();

    let mut pair = Pair::empty(limits());
    let now = pair.now;
    pair.driver.receive(now, &ping(1)).unwrap();
    assert_eq!(
        pair.driver.receive(now, &ping(2)),
        Err(PeerFault::SecondPing)
    );
}

#[test]
fn a_driver_end_never_has_more_requests_out_than_slots() {
    let mut pair = Pair::empty(limits());
    pair.mute = true;
    for number in 0..3 * SLOTS {
        pair.driver.add_device(
            dev(number),
            DriverSide::new(wants(), limits().max_message_size),
        );
        let now = pair.now;
        pair.driver.update(dev(number), |driver| driver.start(now));
    }
    let now = pair.now;
    pair.driver.enumerate(now);
    pair.driver.send_private(now, MsgId(0x81), &[]).unwrap();
    pair.driver.ping(1);
    pair.run();
    assert_eq!(pair.driver.outstanding(), usize::from(SLOTS));
    assert_eq!(pair.sent().len(), usize::from(SLOTS));
    // The timers do not change that: what was sent is out until it is answered.
    pair.pass(Instant(0) + 3 * SECOND);
    for number in 0..3 * SLOTS {
        let now = pair.now;
        pair.driver.update(dev(number), |driver| driver.start(now));
    }
    pair.run();
    assert_eq!(pair.driver.outstanding(), usize::from(SLOTS));
    assert!(!pair.driver.has_output());
}

#[test]
fn b48_many_devices_through_few_slots_lose_nothing() {
    let mut pair = Pair::empty(limits());
    for number in 0..3 * SLOTS {
        pair.add(dev(number), block_device(), wants());
        let now = pair.now;
        pair.driver.update(dev(number), |driver| driver.start(now));
    }
    pair.run();
    for number in 0..3 * SLOTS {
        assert!(pair.driver.device(dev(number)).unwrap().is_running());
    }
}

#[test]
fn marks_wait_for_room_and_coalesce() {
    let mut rig = DeviceRig::running();
    for _ in 0..10_000 {
        rig.bus.update(DEV, |device| {
            device.used(0);
            device.config_changed(0, &[1]).unwrap();
        });
    }
    assert_eq!(rig.frames().len(), 2);
}

#[test]
fn answers_leave_before_marks() {
    let mut rig = DeviceRig::running();
    rig.bus.update(DEV, |device| device.used(0));
    rig.send(Request::GetDeviceStatus);
    rig.send(Request::GetDeviceInfo);
    let ids: Vec<u8> = rig.frames().iter().map(|frame| frame[1]).collect();
    assert_eq!(
        ids,
        [
            MsgId::GET_DEVICE_STATUS,
            MsgId::GET_DEVICE_INFO,
            MsgId::EVENT_USED
        ]
        .map(|id| id.0)
    );
}

#[test]
fn a_busy_device_does_not_starve_another() {
    let mut pair = Pair::empty(limits());
    for number in 0..3 {
        pair.add(dev(number), block_device(), wants());
        let now = pair.now;
        pair.driver.update(dev(number), |driver| driver.start(now));
    }
    pair.run();
    let mut buf = [0; 264];
    let mut told = Vec::new();
    for number in 0..3 {
        pair.device.update(dev(number), |device| device.used(0));
    }
    for _ in 0..6 {
        pair.device.update(dev(0), |device| {
            device.used(0);
            device.used(2);
        });
        let len = pair.device.next_frame(&mut buf).unwrap();
        match parse(&buf[..len]) {
            Frame::Event {
                dev_num,
                event: Event::Used { .. },
            } => told.push(dev_num.0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told[..3], [0, 1, 2]);
    assert_eq!(told[3..], [0, 0, 0]);
}

#[test]
fn a_busy_queue_does_not_starve_another() {
    let mut pair = Pair::running();
    let mut buf = [0; 264];
    let mut kicked = Vec::new();
    for _ in 0..4 {
        pair.driver.update(DEV, |driver| {
            driver.kick(0, 0);
            driver.kick(2, 0);
        });
        let len = pair.driver.next_frame(&mut buf).unwrap();
        match parse(&buf[..len]) {
            Frame::Event {
                event: Event::Avail(event),
                ..
            } => kicked.push(event.index),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kicked, [0, 2, 0, 2]);
}

#[test]
fn a_buffer_too_small_for_the_bus_loses_nothing() {
    let mut pair = Pair::running();
    pair.driver.update(DEV, |driver| driver.kick(0, 0));
    pair.device.update(DEV, |device| device.used(0));
    let mut short = [0; 263];
    assert_eq!(pair.driver.next_frame(&mut short), None);
    assert_eq!(pair.device.next_frame(&mut short), None);
    assert!(pair.driver.has_output() && pair.device.has_output());
}

#[test]
fn a_queue_reset_between_kick_and_room_takes_the_kick_with_it() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.driver.update(DEV, |driver| driver.kick(0, 0));
    pair.driver
        .update(DEV, |driver| driver.reset_queue(now, 0))
        .unwrap()
        .unwrap();
    pair.run();
    assert!(
        pair.sent()
            .iter()
            .all(|frame| frame[1] != MsgId::EVENT_AVAIL.0)
    );
    let now = pair.now;
    pair.drive(|driver| driver.provide_queue(now, 0, setup(0, 8)))
        .unwrap();
    assert!(
        pair.sent()
            .iter()
            .all(|frame| frame[1] != MsgId::EVENT_AVAIL.0)
    );
}
