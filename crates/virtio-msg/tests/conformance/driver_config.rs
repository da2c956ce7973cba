//! Drivers: reading and writing configuration space.

use crate::rig::{DEV, Pair, block_device, limits_of, wants};
use std::borrow::Cow;
use virtio_msg::wire::{Event, EventConfig, Request, Response};
use virtio_msg::{
    Action, DeviceInfo, DriverAction, DriverConfig, DriverFault, MAX_CONFIG_LEN, WriteConfigError,
};

fn event(offset: u32, length: u32, data: &[u8]) -> Event<'_> {
    Event::Config(EventConfig {
        status: 0x0f,
        generation: 1,
        offset,
        length,
        data: Cow::Borrowed(data),
    })
}

/// A device of 100 bytes on the smallest bus: four chunks.
fn chunked() -> Pair {
    let info = DeviceInfo {
        config: (0..100).collect(),
        ..block_device()
    };
    Pair::with(
        info,
        DriverConfig {
            config_len: 100,
            ..wants()
        },
        limits_of(52),
    )
}

#[test]
fn d25_a_claim_of_endless_config_is_read_to_a_bound() {
    let mut pair = Pair::with(
        block_device(),
        DriverConfig {
            config_len: u32::MAX,
            ..wants()
        },
        limits_of(65535),
    );
    pair.tamper(|response| {
        Some(match response {
            Response::GetDeviceInfo(mut info) => {
                info.config_size = u32::MAX;
                Response::GetDeviceInfo(info)
            }
            other => other,
        })
    });
    pair.forget();
    pair.start();
    assert!(pair.requests().contains(&Request::GetConfig {
        offset: 0,
        length: MAX_CONFIG_LEN
    }));
}

#[test]
fn d26_a_read_torn_by_a_change_is_repeated() {
    let mut pair = chunked();
    let mut chunks = 0;
    pair.tamper(move |response| {
        Some(match response {
            Response::GetConfig { offset, data, .. } => {
                chunks += 1;
                Response::GetConfig {
                    generation: u32::from(chunks > 2),
                    offset,
                    data,
                }
            }
            other => other,
        })
    });
    pair.forget();
    pair.start();
    assert!(pair.driver().is_running());
    let reads = pair
        .requests()
        .iter()
        .filter(|request| matches!(request, Request::GetConfig { .. }))
        .count();
    assert_eq!(reads, 8);
    assert_eq!(pair.driver().config(), (0..100).collect::<Vec<u8>>());
}

#[test]
fn d26_a_config_that_never_holds_still_is_given_up() {
    let mut pair = chunked();
    let mut generation = 0;
    pair.tamper(move |response| {
        Some(match response {
            Response::GetConfig { offset, data, .. } => {
                generation += 1;
                Response::GetConfig {
                    generation,
                    offset,
                    data,
                }
            }
            other => other,
        })
    });
    pair.forget();
    pair.start();
    assert_eq!(pair.failure(), Some(DriverFault::ConfigUnstable));
    let reads = pair
        .requests()
        .iter()
        .filter(|request| matches!(request, Request::GetConfig { .. }))
        .count();
    assert_eq!(reads, 4 * 6, "one read and five restarts");
}

#[test]
fn d27_d31_a_write_carries_generation_0_and_is_read_back() {
    let mut pair = Pair::running();
    pair.own(|device| device.config_changed(0, &[7]).unwrap());
    pair.forget();
    let now = pair.now;
    pair.drive(|driver| driver.write_config(now, 32, &[1, 2]))
        .unwrap();
    assert_eq!(
        pair.requests(),
        [
            Request::SetConfig {
                generation: 0,
                offset: 32,
                data: Cow::Borrowed(&[1, 2])
            },
            Request::GetConfig {
                offset: 0,
                length: 60
            },
        ]
    );
    assert_eq!(
        pair.told(),
        [
            DriverAction::ConfigWritten {
                offset: 32,
                accepted: true
            },
            DriverAction::ConfigChanged
        ]
    );
    assert_eq!(pair.driver().config()[31..35], [31, 1, 2, 34]);
}

#[test]
fn d30_the_verdict_on_a_write_is_all_or_nothing() {
    for (length, accepted) in [
        (0, Some(false)),
        (3, Some(true)),
        (2, None),
        (4, None),
        (u32::MAX, None),
    ] {
        let mut pair = Pair::running();
        let now = pair.now;
        pair.tamper(move |response| {
            Some(match response {
                Response::SetConfig {
                    generation, offset, ..
                } => Response::SetConfig {
                    generation,
                    offset,
                    length,
                },
                other => other,
            })
        });
        pair.drive(|driver| driver.write_config(now, 8, &[1, 2, 3]))
            .unwrap();
        let told = pair.told();
        match accepted {
            Some(accepted) => assert_eq!(
                told[0],
                DriverAction::ConfigWritten {
                    offset: 8,
                    accepted
                }
            ),
            None => assert!(
                matches!(
                    told[..],
                    [DriverAction::Failed(DriverFault::WrongAnswer { .. })]
                ),
                "{told:?}"
            ),
        }
    }
}

#[test]
fn d30_a_verdict_on_another_range_is_the_end() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.tamper(|response| {
        Some(match response {
            Response::SetConfig {
                generation,
                offset,
                length,
            } => Response::SetConfig {
                generation,
                offset: offset + 1,
                length,
            },
            other => other,
        })
    });
    pair.drive(|driver| driver.write_config(now, 8, &[1]))
        .unwrap();
    assert!(matches!(
        pair.failure(),
        Some(DriverFault::WrongAnswer { .. })
    ));
}

#[test]
fn d30_a_refused_write_changes_nothing() {
    let mut pair = Pair::running();
    let now = pair.now;
    pair.owner.reject = true;
    pair.drive(|driver| driver.write_config(now, 8, &[1]))
        .unwrap();
    assert_eq!(
        pair.told(),
        [DriverAction::ConfigWritten {
            offset: 8,
            accepted: false
        }]
    );
    assert_eq!(
        pair.asked(),
        [Action::WriteConfig {
            offset: 8,
            data: vec![1]
        }]
    );
    assert_eq!(pair.driver().config()[8], 8);
}

#[test]
fn d25_d32_writes_that_must_not_be_are_not_sent() {
    let mut pair = Pair::new();
    let now = pair.now;
    let early = pair.drive(|driver| driver.write_config(now, 0, &[1]));
    assert_eq!(early, Err(WriteConfigError::NotRunning));
    pair.start();
    pair.forget();
    for (offset, len) in [(60, 1), (59, 2), (u32::MAX, 2), (0, 0), (0, 61)] {
        let refused = pair.drive(|driver| driver.write_config(now, offset, &vec![0; len]));
        assert_eq!(
            refused,
            Err(WriteConfigError::OutOfRange {
                offset,
                len,
                size: 60
            })
        );
    }
    let mut small = chunked();
    small.start();
    let refused = small.drive(|driver| driver.write_config(now, 0, &[0; 33]));
    assert_eq!(
        refused,
        Err(WriteConfigError::TooLong { len: 33, room: 32 })
    );
    assert_eq!(pair.requests(), []);
}

#[test]
fn d46_each_shape_of_event_is_followed_by_a_read() {
    for (offset, length, data) in [(0, 0, &[][..]), (4, 2, &[9, 9][..]), (4, 2, &[][..])] {
        let mut pair = Pair::running();
        pair.inject_event(event(offset, length, data));
        assert_eq!(
            pair.requests(),
            [Request::GetConfig {
                offset: 0,
                length: 60
            }]
        );
        assert_eq!(pair.told(), [DriverAction::ConfigChanged]);
        assert_eq!(
            pair.driver().config()[4],
            4,
            "the event's bytes are not believed"
        );
    }
}

#[test]
fn d46_a_flood_of_events_is_one_read_at_a_time() {
    let mut pair = Pair::running();
    for _ in 0..1000 {
        let bytes = crate::rig::emit(&virtio_msg::wire::Frame::Event {
            dev_num: DEV,
            event: event(0, 0, &[]),
        });
        pair.driver.receive(pair.now, &bytes).unwrap();
    }
    pair.run();
    assert_eq!(
        pair.requests().len(),
        2,
        "the read under way, and one for what came during it"
    );
    assert_eq!(
        pair.told(),
        [DriverAction::ConfigChanged, DriverAction::ConfigChanged]
    );
}

#[test]
fn d46_a_change_during_bring_up_is_read_before_it_is_over() {
    let mut pair = Pair::new();
    pair.user.idle = true;
    pair.start();
    pair.own(|device| device.config_changed(0, &[0xaa]).unwrap());
    let now = pair.now;
    for index in [0, 2] {
        pair.drive(|driver| driver.decline_queue(now, index))
            .unwrap();
    }
    assert_eq!(pair.driver().config()[0], 0xaa);
    assert_eq!(pair.told().last(), Some(&DriverAction::ConfigChanged));
}

#[test]
fn d47_events_with_an_impossible_range_are_dropped() {
    let mut pair = Pair::running();
    for (offset, length) in [(u32::MAX, 1), (60, 1), (0, 61), (1, u32::MAX), (61, 0)] {
        pair.inject_event(event(offset, length, &[]));
    }
    assert_eq!(pair.requests(), []);
    assert_eq!(pair.told(), []);
}
