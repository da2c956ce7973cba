//! Buses: which devices there are (GET_DEVICES), and how they come and go (EVENT_DEVICE).

use crate::rig::{
    DEV, DeviceRig, Pair, SECOND, block_device, dev, drain, emit, limits, limits_of, parse, wants,
};
use std::borrow::Cow;
use virtio_msg::wire::{
    BusMessage, DevNum, DeviceWindow, Event, EventAvail, Frame, Presence, Request, Response, Token,
};
use virtio_msg::{
    Completion, DeviceInfo, DeviceSide, DeviceSideBus, DriverBusAction, DriverSideBus, Instant,
    NumberInUse, PeerFault,
};

/// A device end with a small device under each number.
fn with_devices(max_message_size: u32, numbers: &[u16]) -> DeviceSideBus {
    let limits = limits_of(max_message_size);
    let mut bus = DeviceSideBus::new(limits);
    for number in numbers {
        let info = DeviceInfo {
            queue_max: vec![],
            config: vec![],
            ..block_device()
        };
        bus.add_device(dev(*number), DeviceSide::new(info, limits).unwrap())
            .unwrap();
    }
    drain(&mut bus);
    bus
}

/// Offset, count, next offset, bitmap.
fn ask(bus: &mut DeviceSideBus, offset: u16, count: u16) -> Option<(u16, u16, u16, Vec<u8>)> {
    let message = BusMessage::GetDevices { offset, count };
    bus.receive(&emit(&Frame::Bus {
        token: Token(5),
        message,
    }))
    .unwrap();
    drain(bus).first().map(|frame| match parse(frame) {
        Frame::Bus {
            token: Token(5),
            message: BusMessage::DeviceWindow(window),
        } => {
            let DeviceWindow {
                offset,
                count,
                next_offset,
                bitmap,
            } = window;
            (offset, count, next_offset, bitmap.into_owned())
        }
        other => panic!("{other:?}"),
    })
}

#[test]
fn b31_lowest_number_in_the_lowest_bit() {
    let mut bus = with_devices(264, &[0, 2, 5]);
    assert_eq!(ask(&mut bus, 0, 16), Some((0, 16, 0, vec![0x25, 0])));
    assert_eq!(ask(&mut bus, 0, 8), Some((0, 8, 0, vec![0x25])));
    let mut bus = with_devices(264, &[7, 8]);
    assert_eq!(ask(&mut bus, 0, 8), Some((0, 8, 8, vec![0x80])));
    assert_eq!(ask(&mut bus, 8, 8), Some((8, 8, 0, vec![0x01])));
}

#[test]
fn b32_windows_are_of_multiples_of_8() {
    let mut bus = with_devices(264, &[0]);
    for (offset, count) in [(4, 8), (0, 12), (1, 1), (0, 0xff)] {
        assert_eq!(ask(&mut bus, offset, count), None);
    }
    assert_eq!((bus.discarded(), bus.outstanding()), (4, 0));
}

#[test]
fn b33_a_window_shrinks_to_what_a_message_holds() {
    let mut bus = with_devices(52, &[0, 303, 304]);
    let (offset, count, next, bitmap) = ask(&mut bus, 0, 65528).unwrap();
    assert_eq!((offset, count, next, bitmap.len()), (0, 304, 304, 38));
    assert_eq!((bitmap[0], bitmap[37]), (1, 0x80));
}

#[test]
fn b34_the_next_offset_skips_what_is_empty() {
    let mut bus = with_devices(264, &[0, 9003, 65535]);
    assert_eq!(ask(&mut bus, 0, 64).unwrap().2, 9000);
    assert_eq!(ask(&mut bus, 9000, 8), Some((9000, 8, 65528, vec![8])));
    assert_eq!(ask(&mut bus, 65528, 8), Some((65528, 8, 0, vec![0x80])));
    assert_eq!(
        ask(&mut bus, 64, 8),
        Some((64, 8, 9000, vec![0])),
        "an empty window is an answer"
    );
}

#[test]
fn a_window_of_nothing_says_where_the_next_device_is() {
    let mut bus = with_devices(264, &[20]);
    assert_eq!(ask(&mut bus, 8, 0), Some((8, 0, 16, vec![])));
    assert_eq!(ask(&mut bus, 24, 0), Some((24, 0, 0, vec![])));
}

#[test]
fn b36_a_window_past_the_last_number_is_clipped() {
    let mut bus = with_devices(264, &[65535]);
    assert_eq!(ask(&mut bus, 65528, 16), Some((65528, 8, 0, vec![0x80])));
}

#[test]
fn b15_no_devices_at_all() {
    let mut pair = Pair::empty(limits());
    let now = pair.now;
    pair.driver.enumerate(now);
    pair.run();
    assert_eq!(pair.user.bus_actions, [DriverBusAction::Enumerated]);
    assert_eq!(
        ask(&mut with_devices(264, &[]), 0, 16),
        Some((0, 16, 0, vec![0, 0]))
    );
}

#[test]
fn b17_b35_enumeration_finds_every_device_and_ends() {
    for max in [52, 264, 65535] {
        let numbers: Vec<u16> = vec![0, 2, 5, 303, 304, 9000, 40000, 65527, 65528, 65535];
        let mut pair = Pair::empty(limits_of(max));
        pair.device = with_devices(max, &numbers);
        let now = pair.now;
        pair.driver.enumerate(now);
        pair.driver.enumerate(now);
        pair.run();
        let found: Vec<_> = numbers
            .iter()
            .map(|number| DriverBusAction::Added(dev(*number)))
            .collect();
        let (last, added) = pair.user.bus_actions.split_last().unwrap();
        assert_eq!(added, found);
        assert_eq!(*last, DriverBusAction::Enumerated);
        assert_eq!(pair.driver.outstanding(), 0);
    }
}

fn window(offset: u16, count: u16, next_offset: u16, bitmap: &[u8]) -> BusMessage<'_> {
    BusMessage::DeviceWindow(DeviceWindow {
        offset,
        count,
        next_offset,
        bitmap: Cow::Borrowed(bitmap),
    })
}

/// Enumerates a device end that answers by rote; says how it ended and how often it was asked.
fn enumerate(
    mut answer: impl FnMut(u16) -> BusMessage<'static>,
) -> (Result<(), PeerFault>, u32, Vec<DriverBusAction>) {
    let mut bus = DriverSideBus::new(limits(), SECOND);
    let (mut buf, mut asked) = ([0; 264], 0);
    bus.enumerate(Instant(0));
    let mut end = Ok(());
    while let Some(len) = bus.next_frame(&mut buf) {
        let Frame::Bus {
            token,
            message: BusMessage::GetDevices { offset, .. },
        } = parse(&buf[..len])
        else {
            panic!("not GET_DEVICES")
        };
        asked += 1;
        end = end.and_then(|()| {
            bus.receive(
                Instant(0),
                &emit(&Frame::Bus {
                    token,
                    message: answer(offset),
                }),
            )
        });
    }
    (
        end,
        asked,
        std::iter::from_fn(|| bus.poll_action()).collect(),
    )
}

#[test]
fn b35_an_answer_that_leads_nowhere_ends_the_instance() {
    for (offset, next) in [(0, 1), (0, 7)] {
        let (end, asked, _) = enumerate(|_| window(offset, 16, next, &[0, 0]));
        assert_eq!(
            (end, asked),
            (
                Err(PeerFault::NoProgress {
                    offset: dev(offset)
                }),
                1
            )
        );
    }
    let mut first = true;
    let (end, asked, _) = enumerate(|offset| {
        let next = if std::mem::replace(&mut first, false) {
            64
        } else {
            8
        };
        window(offset, 16, next, &[0, 0])
    });
    assert_eq!(
        (end, asked),
        (Err(PeerFault::NoProgress { offset: dev(64) }), 2)
    );
}

#[test]
fn b35_the_slowest_answers_end_after_8192_windows() {
    let (end, asked, actions) = enumerate(|offset| window(offset, 8, offset.wrapping_add(8), &[0]));
    assert_eq!((end, asked), (Ok(()), 8192));
    assert_eq!(actions, [DriverBusAction::Enumerated]);
}

#[test]
fn b37_exact_numbers_in_place_of_multiples_of_8_still_find_all() {
    let (end, asked, actions) = enumerate(|offset| match offset {
        0 => window(0, 3, 12, &[0b101]),
        8 => window(8, 5, 0, &[0b1_0000]),
        other => panic!("asked at {other}"),
    });
    assert_eq!((end, asked), (Ok(()), 2));
    let added = [0, 2, 12].map(|number| DriverBusAction::Added(dev(number)));
    assert_eq!(
        actions,
        [&added[..], &[DriverBusAction::Enumerated]].concat()
    );
}

#[test]
fn an_answer_of_another_window_is_dropped() {
    let (end, asked, actions) = enumerate(|_| window(8, 8, 0, &[0xff]));
    assert_eq!((end, asked, actions), (Ok(()), 1, vec![]));
}

#[test]
fn b39_b40_devices_come_and_go() {
    let mut pair = Pair::empty(limits());
    for number in 1..=100 {
        pair.add(dev(number), block_device(), wants());
        let now = pair.now;
        pair.driver.update(dev(number), |driver| driver.start(now));
        pair.run();
        assert!(pair.driver.device(dev(number)).unwrap().is_running());
        assert!(pair.device.remove_device(dev(number)).is_some());
        pair.run();
        assert_eq!(
            pair.user.bus_actions.pop(),
            Some(DriverBusAction::Removed(dev(number)))
        );
    }
    assert_eq!(
        pair.driver.devices().count() + pair.device.devices().count(),
        0
    );
    assert_eq!(
        (pair.driver.outstanding(), pair.device.outstanding()),
        (0, 0)
    );
    assert!(!pair.driver.has_output() && !pair.device.has_output());
    assert_eq!(pair.driver.poll_timeout(), None);
}

#[test]
fn b14_b16_a_number_is_used_once_at_a_time_and_not_before_removed_left() {
    let mut rig = DeviceRig::new();
    let device = || DeviceSide::new(block_device(), limits()).unwrap();
    assert_eq!(rig.bus.add_device(DEV, device()), Err(NumberInUse(DEV)));
    rig.bus.remove_device(DEV);
    assert_eq!(rig.bus.add_device(DEV, device()), Err(NumberInUse(DEV)));
    assert_eq!(rig.frames().len(), 1);
    assert_eq!(rig.bus.add_device(DEV, device()), Ok(()));
}

#[test]
fn removed_comes_after_the_answers_owed_and_nothing_after_it() {
    let mut rig = DeviceRig::running();
    let answered = rig.send(Request::GetDeviceStatus);
    rig.hold = true;
    rig.send(Request::SetDeviceStatus { status: 0 });
    rig.send(Request::GetDeviceStatus);
    rig.bus.update(DEV, |device| device.used(0));
    assert_eq!(rig.bus.outstanding(), 3);
    assert!(rig.bus.remove_device(DEV).is_some());
    assert_eq!(
        rig.bus.outstanding(),
        1,
        "requests still open ended with it"
    );

    let frames = rig.frames();
    assert_eq!(frames.len(), 2);
    assert!(matches!(
        parse(&frames[0]),
        Frame::Response { token, response: Response::GetDeviceStatus { .. }, .. } if token == answered
    ));
    let message = BusMessage::EventDevice {
        dev_num: DEV,
        state: Presence::REMOVED,
    };
    assert_eq!(
        parse(&frames[1]),
        Frame::Bus {
            token: Token::EVENT,
            message
        }
    );

    rig.complete(Completion::ResetDone);
    rig.bus.update(DEV, |device| device.used(0));
    rig.send(Request::GetDeviceStatus);
    rig.kick(0);
    rig.quiet();
    assert_eq!(rig.bus.outstanding(), 0);
    assert!(rig.bus.remove_device(DEV).is_none());
}

#[test]
fn a_device_that_left_before_its_added_did_is_told_as_gone() {
    let mut bus = with_devices(264, &[]);
    bus.add_device(dev(4), DeviceSide::new(block_device(), limits()).unwrap())
        .unwrap();
    bus.remove_device(dev(4));
    let frames = drain(&mut bus);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][8..], [4, 0, 2, 0]);
}

#[test]
fn a_device_already_known_is_not_told_again() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.driver.enumerate(now);
    pair.run();
    assert_eq!(pair.user.bus_actions, [DriverBusAction::Enumerated]);
}

#[test]
fn kicks_to_a_device_that_went_away_locally_are_not_sent() {
    let mut pair = Pair::running();
    pair.driver.update(DEV, |driver| driver.kick(0, 0));
    assert!(pair.driver.remove_device(DEV).is_some());
    pair.run();
    let kick = Event::Avail(EventAvail {
        index: 0,
        next_offset: 0,
    });
    assert!(!pair.sent().contains(&emit(&Frame::Event {
        dev_num: DEV,
        event: kick
    })));
    pair.device.update(DEV, |device| device.used(0));
    pair.run();
    assert_eq!(pair.driver.discarded(), 1);
    assert_eq!(DevNum(0), DEV);
}
