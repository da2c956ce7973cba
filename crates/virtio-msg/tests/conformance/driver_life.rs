//! Drivers: reset, NEEDS_RESET, removal; events at the wrong time.

use crate::rig::{DEV, Pair, SECOND, emit, setup};
use std::borrow::Cow;
use virtio_msg::wire::{
    BusMessage, DevNum, Event, EventAvail, EventConfig, Frame, MsgId, Presence, Request, Response,
    Token,
};
use virtio_msg::{Action, DriverAction, DriverBusAction, DriverFault, Instant, Status};

fn needs_reset() -> Event<'static> {
    Event::Config(EventConfig {
        status: 0x4f,
        generation: 0,
        offset: 0,
        length: 0,
        data: Cow::Borrowed(&[]),
    })
}

fn presence(state: u16) -> Frame<'static> {
    let message = BusMessage::EventDevice {
        dev_num: DEV,
        state: Presence(state),
    };
    Frame::Bus {
        token: Token::EVENT,
        message,
    }
}

#[test]
fn d48_needs_reset_is_told_once_and_a_reset_recovers() {
    let mut pair = Pair::running();
    pair.own(|device| device.needs_reset());
    assert_eq!(
        pair.told(),
        [DriverAction::NeedsReset, DriverAction::ConfigChanged]
    );
    pair.inject_event(needs_reset());
    assert!(!pair.told().contains(&DriverAction::NeedsReset));
    let now = pair.now;
    pair.drive(|driver| driver.start_reset(now));
    assert_eq!(pair.told(), [DriverAction::ResetDone]);
    assert_eq!(pair.device().status(), Status::empty());
    pair.start();
    assert!(pair.driver().is_running());
}

#[test]
fn needs_reset_during_bring_up_is_the_end_of_it() {
    let mut pair = Pair::new();
    pair.user.idle = true;
    pair.start();
    pair.inject_event(needs_reset());
    assert_eq!(pair.failure(), Some(DriverFault::NeedsReset));
}

#[test]
fn a_reset_is_done_only_when_the_device_let_go() {
    let mut pair = Pair::running();
    pair.owner.hold = true;
    let now = pair.now;
    pair.drive(|driver| driver.start_reset(now));
    assert_eq!(pair.asked(), [Action::Reset]);
    pair.pass(Instant(0) + 3 * SECOND);
    assert_eq!(
        pair.told(),
        [],
        "a held answer is no failure before the time is over"
    );
    pair.device.complete(DEV, virtio_msg::Completion::ResetDone);
    pair.run();
    assert_eq!(pair.told(), [DriverAction::ResetDone]);
}

#[test]
fn d58_events_around_a_reset_are_dropped() {
    let mut pair = Pair::running();
    pair.owner.hold = true;
    let now = pair.now;
    // A mark of before the reset, not taken by the user yet.
    pair.driver
        .receive(
            now,
            &emit(&Frame::Event {
                dev_num: DEV,
                event: Event::Used { index: 0 },
            }),
        )
        .unwrap();
    pair.drive(|driver| driver.start_reset(now));
    let late = |pair: &mut Pair| {
        pair.inject_event(Event::Used { index: 0 });
        pair.inject_event(needs_reset());
        assert_eq!(pair.told(), []);
    };
    late(&mut pair);
    pair.device.complete(DEV, virtio_msg::Completion::ResetDone);
    pair.run();
    assert_eq!(pair.told(), [DriverAction::ResetDone]);
    late(&mut pair);
}

#[test]
fn nothing_of_before_a_reset_comes_up_after_it() {
    let mut pair = Pair::running();
    let now = pair.now;
    // Neither the carrier nor the user had its turn yet.
    pair.driver.update(DEV, |driver| {
        driver.kick(0, 0);
        driver.handle_event(now, &Event::Used { index: 0 });
        driver.handle_event(now, &needs_reset());
        driver.start_reset(now);
        driver.kick(2, 0);
    });
    pair.run();
    let ids: Vec<u8> = pair.sent().iter().map(|frame| frame[1]).collect();
    assert_eq!(ids, [MsgId::SET_DEVICE_STATUS.0]);
    assert_eq!(pair.told(), [DriverAction::ResetDone]);
    pair.start();
    assert!(
        pair.sent()
            .iter()
            .all(|frame| frame[1] != MsgId::EVENT_AVAIL.0)
    );
    assert!(matches!(
        pair.told().last(),
        Some(DriverAction::Ready { .. })
    ));
}

#[test]
fn a_restart_while_answers_are_under_way_is_not_disturbed_by_them() {
    let mut pair = Pair::new();
    pair.mute = true;
    pair.start();
    pair.start();
    pair.mute = false;
    pair.run();
    assert!(pair.driver().is_running());
    assert_eq!(pair.driver.outstanding(), 0);
}

#[test]
fn d56_removal_ends_everything_of_the_device() {
    let mut pair = Pair::running();
    pair.owner.hold = true;
    let now = pair.now;
    pair.drive(|driver| driver.reset_queue(now, 0)).unwrap();
    assert_eq!(pair.driver.outstanding(), 2);
    pair.driver.update(DEV, |driver| driver.kick(2, 0));
    pair.forget();
    pair.inject(&presence(2));
    assert_eq!(pair.user.bus_actions, [DriverBusAction::Removed(DEV)]);
    assert!(pair.driver.device(DEV).is_none());
    assert_eq!(pair.driver.outstanding(), 0, "the tokens are free");
    assert_eq!(pair.sent(), Vec::<Vec<u8>>::new());
    assert_eq!(pair.driver.poll_timeout(), None);
    let before = pair.driver.discarded();
    pair.device
        .complete(DEV, virtio_msg::Completion::QueueStopped { index: 0 });
    pair.run();
    assert_eq!(
        pair.driver.discarded(),
        before + 2,
        "answers to a removed device"
    );
}

#[test]
fn d57_b41_duplicates_disorder_and_unknown_states() {
    let mut pair = Pair::running();
    for state in [1, 1, 0, 3, 0x7fff, 0x8000] {
        pair.inject(&presence(state));
    }
    assert_eq!(pair.user.bus_actions, []);
    assert!(pair.driver().is_running());
    pair.inject(&presence(2));
    pair.inject(&presence(2));
    assert_eq!(
        pair.user.bus_actions,
        [DriverBusAction::Removed(DEV), DriverBusAction::Removed(DEV)]
    );
    // Both before the user looked: neither hides the other.
    for state in [2, 1] {
        pair.driver
            .receive(pair.now, &emit(&presence(state)))
            .unwrap();
    }
    pair.forget();
    pair.run();
    assert_eq!(
        pair.user.bus_actions,
        [DriverBusAction::Removed(DEV), DriverBusAction::Added(DEV)]
    );
}

#[test]
fn d57_an_answer_to_an_earlier_driver_of_the_number_finds_nobody() {
    let mut pair = Pair::new();
    pair.mute = true;
    pair.start();
    let wants = crate::rig::wants();
    let max = pair.limits().max_message_size;
    pair.driver
        .add_device(DEV, virtio_msg::DriverSide::new(wants, max));
    let now = pair.now;
    pair.driver.update(DEV, |driver| driver.start(now));
    // Both drivers have one request out, of the same name among their own; the first answer is the old one's, and says
    // that there is no device.
    let mut first = true;
    pair.tamper(move |response| {
        Some(match response {
            Response::GetDeviceInfo(mut info) if std::mem::replace(&mut first, false) => {
                info.device_id = 0;
                Response::GetDeviceInfo(info)
            }
            other => other,
        })
    });
    pair.mute = false;
    pair.run();
    assert!(pair.driver().is_running(), "{:?}", pair.told());
}

#[test]
fn d59_an_added_device_is_asked_what_it_is_first() {
    let mut pair = Pair::running();
    let number = DevNum(9);
    pair.device
        .add_device(
            number,
            virtio_msg::DeviceSide::new(crate::rig::block_device(), pair.limits()).unwrap(),
        )
        .unwrap();
    pair.run();
    assert_eq!(pair.user.bus_actions, [DriverBusAction::Added(number)]);
    assert_eq!(pair.requests(), [], "nothing before the user wants it");
    pair.driver.add_device(
        number,
        virtio_msg::DriverSide::new(crate::rig::wants(), pair.limits().max_message_size),
    );
    let now = pair.now;
    pair.driver.update(number, |driver| driver.start(now));
    pair.run();
    assert_eq!(pair.requests()[0], Request::GetDeviceInfo);
}

#[test]
fn d11_events_that_do_not_exist_are_dropped() {
    let mut pair = Pair::running();
    for id in 0x43..=0x7f {
        pair.inject_bytes(&[0, id, 0, 0, 0, 0, 8, 0]);
    }
    pair.inject_event(Event::Avail(EventAvail {
        index: 0,
        next_offset: 0,
    }));
    assert_eq!(pair.told(), []);
    assert_eq!(pair.driver.discarded(), 0x7f - 0x43 + 1);
    assert!(pair.driver().is_running());
}

#[test]
fn requests_to_the_driver_end_are_dropped() {
    let mut pair = Pair::running();
    pair.inject(&Frame::Request {
        dev_num: DEV,
        token: Token(1),
        request: Request::GetDeviceInfo,
    });
    let message = BusMessage::GetDevices {
        offset: 0,
        count: 8,
    };
    pair.inject(&Frame::Bus {
        token: Token(1),
        message,
    });
    pair.inject(&Frame::Response {
        dev_num: DEV,
        token: Token(77),
        response: Response::SetVqueue,
    });
    assert_eq!(pair.driver.discarded(), 3);
    assert_eq!(pair.sent(), Vec::<Vec<u8>>::new());
}

#[test]
fn a_failed_driver_does_nothing_until_it_is_told_to() {
    let mut pair = Pair::running();
    pair.owner.hold = true;
    let now = pair.now;
    pair.drive(|driver| driver.write_config(now, 0, &[1]))
        .unwrap();
    pair.pass(Instant(0) + 2 * SECOND);
    assert!(matches!(pair.failure(), Some(DriverFault::Timeout(_))));
    pair.forget();
    let now = pair.now;
    pair.drive(|driver| {
        driver.kick(0, 0);
        driver.reset_queue(now, 0).unwrap_err();
        driver.provide_queue(now, 0, setup(0, 8)).unwrap_err();
        driver.write_config(now, 0, &[1]).unwrap_err();
    });
    pair.inject_event(Event::Used { index: 0 });
    pair.inject_event(needs_reset());
    assert_eq!(pair.sent(), Vec::<Vec<u8>>::new());
    assert_eq!(pair.told(), []);
}
