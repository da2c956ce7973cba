//! Drivers: setting up, kicking and resetting queues.

use crate::rig::{DEV, Pair, SECOND, block_device, limits, parse, setup, wants};
use virtio_msg::wire::{Event, EventAvail, Frame, MsgId, Request, Response, VqueueResponse};
use virtio_msg::{
    Action, Completion, DeviceInfo, DriverAction, DriverConfig, DriverFault, Features, Instant,
    QueueError, QueueSetup,
};

fn tampering(mut alter: impl FnMut(&mut VqueueResponse) + 'static) -> Pair {
    let mut pair = Pair::new();
    pair.tamper(move |response| {
        Some(match response {
            Response::GetVqueue(mut queue) => {
                alter(&mut queue);
                Response::GetVqueue(queue)
            }
            other => other,
        })
    });
    pair
}

fn kicks(pair: &mut Pair) -> Vec<(u32, u32)> {
    let kick = |frame: Vec<u8>| match parse(&frame) {
        Frame::Event {
            dev_num: DEV,
            event: Event::Avail(EventAvail { index, next_offset }),
        } => {
            assert_eq!(frame[..2], [0, 0x41]);
            assert_eq!(frame[4..6], [0, 0], "D-07: the token of an event");
            Some((index, next_offset))
        }
        _ => None,
    };
    pair.sent().into_iter().filter_map(kick).collect()
}

#[test]
fn d33_a_queue_that_is_enabled_after_the_reset_is_busy() {
    let mut pair = tampering(|queue| {
        queue.cur_size = 8;
        queue.flags = 1;
        (queue.descriptor_addr, queue.driver_addr, queue.device_addr) = (16, 32, 64);
        queue.max_size = 8;
    });
    pair.forget();
    pair.start();
    assert_eq!(pair.failure(), Some(DriverFault::QueueBusy(0)));
    assert!(
        !pair
            .requests()
            .iter()
            .any(|request| request.msg_id() == MsgId::SET_VQUEUE)
    );
}

#[test]
fn d34_a_maximum_that_is_no_power_of_two() {
    let mut pair = tampering(|queue| {
        if queue.index == 0 {
            queue.max_size = 6;
        }
    });
    pair.user.idle = true;
    pair.start();
    assert!(pair.told().contains(&DriverAction::NeedQueue {
        index: 0,
        max_size: 6
    }));
    let now = pair.now;
    for size in [0, 6, 8] {
        let refused = pair.drive(|driver| driver.provide_queue(now, 0, setup(0, size)));
        assert_eq!(
            refused,
            Err(QueueError::Unsound {
                index: 0,
                max_size: 6
            })
        );
    }
    pair.drive(|driver| driver.provide_queue(now, 0, setup(0, 4)))
        .unwrap();
    pair.drive(|driver| driver.decline_queue(now, 2)).unwrap();
    assert!(pair.driver().is_running());
}

#[test]
fn d34_a_maximum_beyond_any_split_queue() {
    let mut pair = tampering(|queue| queue.max_size = u32::MAX);
    pair.user.idle = true;
    pair.start();
    assert!(pair.told().contains(&DriverAction::NeedQueue {
        index: 0,
        max_size: 32768
    }));
}

#[test]
fn d35_b49_addresses_that_cannot_be_are_not_sent() {
    let mut pair = Pair::new();
    pair.user.idle = true;
    pair.start();
    pair.forget();
    let now = pair.now;
    let good = setup(0, 16);
    for bad in [
        QueueSetup { desc: 0, ..good },
        QueueSetup { driver: 0, ..good },
        QueueSetup { device: 0, ..good },
        QueueSetup {
            desc: good.desc + 8,
            ..good
        },
        QueueSetup {
            driver: good.driver + 1,
            ..good
        },
        QueueSetup {
            device: good.device + 2,
            ..good
        },
        QueueSetup {
            desc: u64::MAX - 15,
            ..good
        },
    ] {
        let refused = pair.drive(|driver| driver.provide_queue(now, 0, bad));
        assert_eq!(
            refused,
            Err(QueueError::Unsound {
                index: 0,
                max_size: 256
            })
        );
    }
    for (index, state) in [(1, "absent"), (3, "beyond")] {
        let refused = pair.drive(|driver| driver.provide_queue(now, index, good));
        assert_eq!(refused, Err(QueueError::WrongState(index)), "{state}");
    }
    assert_eq!(pair.requests(), []);
}

#[test]
fn d36_a_set_up_that_the_device_does_not_take_is_the_end() {
    let mut pair = Pair::new();
    pair.owner.reject = true;
    pair.forget();
    pair.start();
    assert_eq!(pair.failure(), Some(DriverFault::QueueRefused(0)));
    assert_eq!(
        pair.requests().last(),
        Some(&Request::SetDeviceStatus { status: 0x8b })
    );
}

#[test]
fn d36_a_set_up_that_reads_back_differently_is_the_end() {
    let alterations: [fn(&mut VqueueResponse); 6] = [
        |queue| queue.cur_size /= 2,
        |queue| queue.max_size *= 2,
        |queue| queue.flags = 0,
        |queue| queue.descriptor_addr += 16,
        |queue| queue.driver_addr += 2,
        |queue| queue.device_addr += 4,
    ];
    for alter in alterations {
        let mut pair = tampering(move |queue| {
            if queue.cur_size != 0 {
                alter(queue);
            }
        });
        pair.start();
        assert_eq!(pair.failure(), Some(DriverFault::QueueRefused(0)));
    }
}

#[test]
fn d37_a_device_without_some_queues_or_any() {
    let info = DeviceInfo {
        queue_max: vec![0, 0, 8],
        ..block_device()
    };
    let mut pair = Pair::with(info, wants(), limits());
    pair.start();
    assert_eq!(
        pair.told()[..1],
        [DriverAction::NeedQueue {
            index: 2,
            max_size: 8
        }]
    );
    assert!(pair.driver().is_running());

    let info = DeviceInfo {
        queue_max: vec![],
        ..block_device()
    };
    let mut pair = Pair::with(info, wants(), limits());
    pair.start();
    assert!(pair.driver().is_running());
}

#[test]
fn d38_answers_that_contradict_themselves() {
    let contradictions: [fn(&mut VqueueResponse); 8] = [
        |queue| queue.flags = 2,
        |queue| queue.flags = 1,
        |queue| queue.descriptor_addr = 16,
        |queue| queue.driver_addr = 2,
        |queue| queue.device_addr = 4,
        |queue| queue.cur_size = 8,
        |queue| {
            (queue.max_size, queue.cur_size) = (4, 8);
            (queue.descriptor_addr, queue.driver_addr, queue.device_addr) = (16, 2, 4);
        },
        |queue| (queue.max_size, queue.descriptor_addr) = (0, 16),
    ];
    for contradict in contradictions {
        let mut pair = tampering(contradict);
        pair.start();
        assert_eq!(pair.failure(), Some(DriverFault::QueueInconsistent(0)));
    }
}

#[test]
fn d40_no_kick_before_ready_nor_for_a_queue_that_does_not_run() {
    let mut pair = Pair::new();
    pair.user.idle = true;
    pair.start();
    let now = pair.now;
    pair.drive(|driver| driver.provide_queue(now, 0, setup(0, 8)))
        .unwrap();
    pair.drive(|driver| driver.kick(0, 1));
    pair.drive(|driver| driver.decline_queue(now, 2)).unwrap();
    assert!(pair.driver().is_running());
    pair.drive(|driver| {
        for index in [1, 2, 3, 0xffff] {
            driver.kick(index, 1);
        }
    });
    assert_eq!(kicks(&mut pair), []);
    pair.drive(|driver| driver.kick(0, 1));
    assert_eq!(kicks(&mut pair), [(0, 0)]);
}

#[test]
fn d41_without_notification_data_a_kick_says_nothing_more() {
    let mut pair = Pair::running();
    pair.drive(|driver| driver.kick(2, 0xabcd));
    assert_eq!(kicks(&mut pair), [(2, 0)]);
    assert!(pair.asked().contains(&Action::Kick { index: 2 }));
}

#[test]
fn d42_with_notification_data_the_newest_position_stands() {
    let features = wants().features | Features::NOTIFICATION_DATA;
    let mut pair = Pair::with(
        block_device(),
        DriverConfig {
            features,
            ..wants()
        },
        limits(),
    );
    pair.start();
    pair.forget();
    for (next, sent) in [
        (5, 5),
        (0x7fff, 0x7fff),
        (0x8000, 0x8000_0000),
        (0x8005, 0x8000_0005),
    ] {
        pair.drive(|driver| driver.kick(0, next));
        assert_eq!(kicks(&mut pair), [(0, sent)]);
    }
    pair.drive(|driver| {
        driver.kick(0, 6);
        driver.kick(2, 1);
        driver.kick(0, 7);
    });
    let mut sent = kicks(&mut pair);
    sent.sort_unstable();
    assert_eq!(sent, [(0, 7), (2, 1)]);
}

#[test]
fn d44_used_is_told_once_however_often_before_it_is_taken() {
    let mut pair = Pair::running();
    for index in [0, 2, 0, 0] {
        let event = Frame::Event {
            dev_num: DEV,
            event: Event::Used { index },
        };
        pair.driver
            .receive(pair.now, &crate::rig::emit(&event))
            .unwrap();
    }
    pair.run();
    assert_eq!(pair.told(), [DriverAction::Used(0), DriverAction::Used(2)]);
    pair.own(|device| device.used(2));
    assert_eq!(pair.told(), [DriverAction::Used(2)]);
}

#[test]
fn d45_used_of_a_queue_that_does_not_run_is_dropped() {
    let mut pair = Pair::running();
    for index in [1, 3, 0xffff, 0x1_0000, u32::MAX] {
        pair.inject_event(Event::Used { index });
    }
    for size in [11, 13] {
        let mut bytes = vec![0, 0x42, 0, 0, 0, 0, size, 0, 0, 0, 0, 0, 0];
        bytes.truncate(size.into());
        pair.inject_bytes(&bytes);
    }
    assert_eq!(pair.told(), []);
    assert_eq!(pair.driver.discarded(), 2);
}

#[test]
fn used_before_the_answer_to_driver_ok_is_kept_until_ready() {
    let mut pair = Pair::new();
    pair.user.idle = true;
    pair.start();
    let now = pair.now;
    pair.drive(|driver| driver.provide_queue(now, 0, setup(0, 8)))
        .unwrap();
    pair.owner.hold = true;
    pair.drive(|driver| driver.decline_queue(now, 2)).unwrap();
    pair.forget();
    pair.inject_event(Event::Used { index: 0 });
    assert_eq!(pair.told(), []);
    pair.device
        .complete(DEV, Completion::Started { running: true });
    pair.run();
    let told = pair.told();
    assert!(
        matches!(
            told[..],
            [DriverAction::Ready { .. }, DriverAction::Used(0)]
        ),
        "{told:?}"
    );
}

#[test]
fn d49_a_queue_is_reset_checked_and_set_up_again() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.drive(|driver| driver.kick(2, 0));
    pair.forget();
    pair.driver.update(DEV, |driver| {
        driver.kick(0, 0);
        driver.handle_event(now, &Event::Used { index: 0 });
        driver.reset_queue(now, 0)
    });
    pair.run();
    assert_eq!(
        pair.requests(),
        [
            Request::ResetVqueue { index: 0 },
            Request::GetVqueue { index: 0 }
        ],
        "and no kick of it"
    );
    assert_eq!(pair.asked(), [Action::StopQueue { index: 0 }]);
    assert_eq!(pair.told(), [DriverAction::QueueReset(0)]);
    pair.inject_event(Event::Used { index: 0 });
    assert_eq!(pair.told(), []);

    pair.drive(|driver| driver.provide_queue(now, 0, setup(5, 16)))
        .unwrap();
    assert_eq!(pair.told(), [DriverAction::QueueReady(0)]);
    assert_eq!(pair.device().queue(0), Some(setup(5, 16)));
    pair.drive(|driver| driver.kick(0, 0));
    assert!(pair.asked().contains(&Action::Kick { index: 0 }));
}

#[test]
fn d49_a_queue_that_stays_enabled_leaves_only_a_device_reset() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.tamper(move |response| {
        Some(match response {
            Response::GetVqueue(mut queue) => {
                (queue.cur_size, queue.flags) = (16, 1);
                (queue.descriptor_addr, queue.driver_addr, queue.device_addr) = (16, 2, 4);
                Response::GetVqueue(queue)
            }
            other => other,
        })
    });
    pair.drive(|driver| driver.reset_queue(now, 0)).unwrap();
    assert_eq!(pair.failure(), Some(DriverFault::QueueStillEnabled(0)));
    pair.drive(|driver| driver.start_reset(now));
    assert_eq!(pair.told(), [DriverAction::ResetDone]);
}

#[test]
fn d49_resets_that_cannot_be_begun() {
    let mut pair = Pair::running();
    let now = pair.now;
    for index in [1, 3, 0xffff] {
        let refused = pair.drive(|driver| driver.reset_queue(now, index));
        assert_eq!(refused, Err(QueueError::WrongState(index)));
    }
    let plain = DriverConfig {
        features: Features::default(),
        ..wants()
    };
    let mut pair = Pair::with(block_device(), plain, limits());
    pair.start();
    assert_eq!(
        pair.drive(|driver| driver.reset_queue(now, 0)),
        Err(QueueError::NoRingReset)
    );
}

#[test]
fn d53_the_reset_of_a_queue_may_take_as_long_as_its_io() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.owner.hold = true;
    pair.drive(|driver| driver.reset_queue(now, 0)).unwrap();
    pair.pass(Instant(0) + 9 * SECOND);
    assert_eq!(pair.told(), []);
    pair.pass(Instant(0) + 10 * SECOND);
    assert_eq!(
        pair.failure(),
        Some(DriverFault::Timeout(MsgId::RESET_VQUEUE))
    );
}

#[test]
fn d50_a_queue_is_added_while_the_device_runs() {
    let mut pair = Pair::new();
    pair.user.idle = true;
    pair.start();
    let now = pair.now;
    pair.drive(|driver| driver.provide_queue(now, 0, setup(0, 8)))
        .unwrap();
    pair.drive(|driver| driver.decline_queue(now, 2)).unwrap();
    pair.forget();
    pair.drive(|driver| driver.provide_queue(now, 2, setup(2, 64)))
        .unwrap();
    assert_eq!(pair.told(), [DriverAction::QueueReady(2)]);
    assert_eq!(
        pair.asked().last(),
        Some(&Action::Start { queues: vec![2] })
    );
    pair.drive(|driver| driver.kick(2, 0));
    assert_eq!(kicks(&mut pair), [(2, 0)]);
}
