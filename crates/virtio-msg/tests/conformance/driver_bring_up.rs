//! Drivers: from nothing to DRIVER_OK, against honest and dishonest devices.

use crate::rig::{DEV, FLUSH, Pair, SECOND, block_device, limits, limits_of, parse, setup, wants};
use std::time::Duration;
use virtio_msg::wire::{
    DeviceInfoResponse, FeatureBlocks, Frame, MsgId, Request, Response, SetVqueue,
};
use virtio_msg::{DeviceInfo, DriverAction, DriverConfig, DriverFault, Features, Instant};

fn set_status(status: u32) -> Request<'static> {
    Request::SetDeviceStatus { status }
}

fn set_vqueue(index: u16, size: u16) -> Request<'static> {
    let at = setup(index, size);
    Request::SetVqueue(SetVqueue {
        index: index.into(),
        flags: SetVqueue::ENABLE,
        size: size.into(),
        descriptor_addr: at.desc,
        driver_addr: at.driver,
        device_addr: at.device,
    })
}

/// A pair whose device says this of itself instead of the truth.
fn claiming(claim: impl Fn(&mut DeviceInfoResponse) + 'static) -> Pair {
    let mut pair = Pair::new();
    pair.tamper(move |response| {
        Some(match response {
            Response::GetDeviceInfo(mut info) => {
                claim(&mut info);
                Response::GetDeviceInfo(info)
            }
            other => other,
        })
    });
    pair.start();
    pair
}

#[test]
fn any_number_of_queues_that_fits_the_slots_comes_up_in_6_round_trips() {
    // Requests and responses of each round trip. The third asks for each queue's limits, the fifth
    // sets each up and asks for it.
    for (queues, messages) in [
        (1, [2, 2, 10, 4, 4, 2]),
        (2, [2, 2, 12, 4, 8, 2]),
        (8, [2, 2, 24, 4, 32, 2]),
    ] {
        let info = DeviceInfo {
            queue_max: vec![256; queues.into()],
            ..block_device()
        };
        let wants = DriverConfig { queues, ..wants() };
        let mut pair = Pair::with(info, wants, limits());
        pair.forget();
        let now = pair.now;
        pair.driver.update(DEV, |driver| driver.start(now));
        let mut rounds = Vec::new();
        while !pair.driver().is_running() {
            assert!(pair.step(), "stuck after {rounds:?}");
            rounds.push(pair.driver_end.take().len());
        }
        assert_eq!(rounds, messages, "{queues} queues");
    }
}

#[test]
fn d12_d18_d24_the_whole_sequence() {
    let mut pair = Pair::new();
    pair.forget();
    pair.start();
    let features = wants().features | Features::REQUIRED;
    assert_eq!(
        pair.requests(),
        [
            Request::GetDeviceInfo,
            set_status(0),
            set_status(1),
            set_status(3),
            Request::GetDeviceFeatures {
                block_index: 0,
                num_blocks: 2
            },
            Request::GetConfig {
                offset: 0,
                length: 60
            },
            Request::GetVqueue { index: 0 },
            Request::GetVqueue { index: 1 },
            Request::GetVqueue { index: 2 },
            Request::SetDriverFeatures {
                block_index: 0,
                blocks: FeatureBlocks::of(features, 0, 2)
            },
            set_status(0x0b),
            set_vqueue(0, 128),
            Request::GetVqueue { index: 0 },
            set_vqueue(2, 64),
            Request::GetVqueue { index: 2 },
            set_status(0x0f),
        ]
    );
    assert_eq!(
        pair.told(),
        [
            DriverAction::NeedQueue {
                index: 0,
                max_size: 256
            },
            DriverAction::NeedQueue {
                index: 2,
                max_size: 64
            },
            DriverAction::Ready {
                features,
                config: (0..60).collect()
            },
        ]
    );
    assert_eq!(pair.driver.outstanding(), 0);
}

#[test]
fn d03_d04_d05_at_every_message_size_with_room_to_spare() {
    for max in [52, 64, 104, 264, 65535] {
        let info = DeviceInfo {
            config: (0..200).collect(),
            ..block_device()
        };
        let mut pair = Pair::with(
            info,
            DriverConfig {
                config_len: 200,
                ..wants()
            },
            limits_of(max),
        );
        pair.forget();
        pair.start();
        assert!(pair.driver().is_running(), "at {max}: {:?}", pair.told());
        assert_eq!(pair.driver().config(), (0..200).collect::<Vec<u8>>());
        for frame in pair.sent() {
            assert!(frame.len() <= max as usize);
            assert_eq!(
                usize::from(u16::from_le_bytes([frame[6], frame[7]])),
                frame.len()
            );
        }
    }
}

#[test]
fn d02_reserved_type_bits_of_answers_are_ignored() {
    let mut pair = Pair::new();
    pair.tamper_frames(|mut frame| {
        frame[0] |= 0xfc;
        vec![frame]
    });
    pair.start();
    assert!(pair.driver().is_running());
}

#[test]
fn d13_a_small_device_is_not_read_past_its_end() {
    let info = DeviceInfo {
        config: vec![1; 10],
        queue_max: vec![8],
        ..block_device()
    };
    let mut pair = Pair::with(info, wants(), limits());
    pair.forget();
    pair.start();
    let requests = pair.requests();
    assert!(requests.contains(&Request::GetConfig {
        offset: 0,
        length: 10
    }));
    let indexes = requests.iter().filter_map(|request| match request {
        Request::GetVqueue { index } => Some(*index),
        _ => None,
    });
    assert_eq!(indexes.max(), Some(0));
    assert_eq!(pair.driver().config(), [1; 10]);
}

#[test]
fn d14_d15_impossible_queue_counts_end_it_before_the_first_status() {
    let cases = [
        (3, 0xffff_ffff, 2),
        (3, 2, 2),
        (3, 0, 4),
        (65537, 0, 0),
        (u32::MAX, 0, 0),
    ];
    for (max, start, count) in cases {
        let mut pair = claiming(move |info| {
            (
                info.max_virtqueues,
                info.admin_vq_start,
                info.admin_vq_count,
            ) = (max, start, count);
        });
        assert_eq!(
            pair.failure(),
            Some(DriverFault::BadQueueCount {
                max_virtqueues: max,
                admin_start: start,
                admin_count: count
            })
        );
        assert_eq!(pair.requests(), [Request::GetDeviceInfo]);
    }
}

#[test]
fn admin_queues_are_left_alone() {
    let mut pair = claiming(|info| (info.admin_vq_start, info.admin_vq_count) = (0, 1));
    let needed = pair
        .told()
        .into_iter()
        .filter(|action| matches!(action, DriverAction::NeedQueue { .. }));
    assert_eq!(
        needed.collect::<Vec<_>>(),
        [DriverAction::NeedQueue {
            index: 2,
            max_size: 64
        }]
    );
}

#[test]
fn d16_no_device_and_no_status_write() {
    let mut pair = claiming(|info| info.device_id = 0);
    assert_eq!(pair.failure(), Some(DriverFault::NoDevice));
    assert_eq!(pair.requests(), [Request::GetDeviceInfo]);
}

#[test]
fn d17_any_number_of_feature_blocks() {
    for (claimed, asked) in [
        (1, Some(1)),
        (4, Some(4)),
        (5, Some(4)),
        (u32::MAX, Some(4)),
        (0, None),
    ] {
        let mut pair = claiming(move |info| info.num_feature_blocks = claimed);
        let of_features = |request: &Request<'_>| match request {
            Request::GetDeviceFeatures { num_blocks, .. } => Some(*num_blocks),
            _ => None,
        };
        assert_eq!(pair.requests().iter().find_map(of_features), asked);
        assert_eq!(
            pair.driver().is_running(),
            claimed >= 2,
            "VERSION_1 is in block 1"
        );
    }
}

#[test]
fn d19_reset_is_done_when_the_status_reads_0() {
    let mut pair = Pair::new();
    let mut busy = 3;
    pair.tamper(move |response| {
        Some(match response {
            Response::SetDeviceStatus { status: 0 } | Response::GetDeviceStatus { status: 0 }
                if busy > 0 =>
            {
                busy -= 1;
                match response {
                    Response::GetDeviceStatus { .. } => Response::GetDeviceStatus { status: 1 },
                    _ => Response::SetDeviceStatus { status: 1 },
                }
            }
            other => other,
        })
    });
    pair.forget();
    pair.start();
    assert_eq!(pair.requests(), [Request::GetDeviceInfo, set_status(0)]);
    pair.pass(Instant(0) + Duration::from_millis(25));
    assert_eq!(
        pair.requests(),
        [Request::GetDeviceStatus, Request::GetDeviceStatus]
    );
    assert!(!pair.driver().is_running());
    pair.pass(Instant(0) + Duration::from_millis(30));
    assert!(pair.driver().is_running());
}

#[test]
fn d19_a_status_that_never_reads_0_ends_it_in_bounded_time() {
    let mut pair = Pair::new();
    pair.tamper(|response| {
        Some(match response {
            Response::SetDeviceStatus { .. } => Response::SetDeviceStatus { status: 1 },
            Response::GetDeviceStatus { .. } => Response::GetDeviceStatus { status: 1 },
            other => other,
        })
    });
    pair.start();
    pair.pass(Instant(0) + 9 * SECOND);
    assert_eq!(pair.failure(), None);
    pair.pass(Instant(0) + 11 * SECOND);
    assert_eq!(pair.failure(), Some(DriverFault::ResetTimeout));
    assert_eq!(pair.driver.poll_timeout(), None);
    let polls = pair
        .requests()
        .iter()
        .filter(|request| **request == Request::GetDeviceStatus)
        .count();
    assert_eq!(polls, 999, "one look every 10 ms");
}

#[test]
fn d20_d21_d22_only_known_bits_of_an_offer_of_everything() {
    let mut pair = Pair::new();
    pair.tamper(|response| {
        Some(match response {
            Response::GetDeviceFeatures {
                block_index,
                blocks,
            } => {
                let blocks = FeatureBlocks::of(Features(u128::MAX), block_index, blocks.count());
                Response::GetDeviceFeatures {
                    block_index,
                    blocks,
                }
            }
            other => other,
        })
    });
    pair.start();
    assert!(pair.driver().is_running());
    assert_eq!(
        pair.driver().features(),
        wants().features | Features::REQUIRED
    );
}

#[test]
fn d21_bits_that_do_not_belong_here_are_not_accepted_even_if_wanted() {
    let mut pair = Pair::with(
        block_device(),
        DriverConfig {
            features: Features(u128::MAX),
            ..wants()
        },
        limits(),
    );
    pair.tamper(|response| {
        Some(match response {
            Response::GetDeviceFeatures {
                block_index,
                blocks,
            } => {
                let blocks = FeatureBlocks::of(Features(u128::MAX), block_index, blocks.count());
                Response::GetDeviceFeatures {
                    block_index,
                    blocks,
                }
            }
            other => other,
        })
    });
    pair.forget();
    pair.start();
    let chosen = pair
        .requests()
        .into_iter()
        .find_map(|request| match request {
            Request::SetDriverFeatures { blocks, .. } => Some(blocks.iter().collect::<Vec<_>>()),
            _ => None,
        });
    let bits = |bits: &[u32]| bits.iter().fold(0, |set, bit| set | 1u32 << bit);
    // 28, 29; 32, 33, 35, 36, 38, 40; the device type's 0 to 23 and 50 to 63.
    assert_eq!(
        chosen,
        Some(vec![
            0x00ff_ffff | bits(&[28, 29]),
            bits(&[0, 1, 3, 4, 6, 8]) | 0xfffc_0000
        ])
    );
}

#[test]
fn d22_without_version_1_or_access_platform_there_is_no_driver() {
    for missing in [Features::VERSION_1, Features::ACCESS_PLATFORM] {
        let offer = block_device().features & !missing;
        let mut pair = Pair::new();
        pair.tamper(move |response| {
            Some(match response {
                Response::GetDeviceFeatures {
                    block_index,
                    blocks,
                } => Response::GetDeviceFeatures {
                    block_index,
                    blocks: FeatureBlocks::of(offer, block_index, blocks.count()),
                },
                other => other,
            })
        });
        pair.forget();
        pair.start();
        assert_eq!(pair.failure(), Some(DriverFault::MissingFeatures(offer)));
        assert_eq!(pair.requests().last(), Some(&set_status(0x83)));
    }
}

#[test]
fn d23_features_ok_refused_is_the_end() {
    let mut pair = Pair::new();
    pair.tamper(|response| {
        Some(match response {
            Response::SetDeviceStatus { status } => Response::SetDeviceStatus {
                status: status & !8,
            },
            other => other,
        })
    });
    pair.forget();
    pair.start();
    let features = wants().features | Features::REQUIRED;
    assert_eq!(pair.failure(), Some(DriverFault::FeaturesRefused(features)));
    let requests = pair.requests();
    assert_eq!(requests.last(), Some(&set_status(0x8b)));
    assert!(
        !requests
            .iter()
            .any(|request| request.msg_id() == MsgId::SET_VQUEUE)
    );
}

#[test]
fn a_status_that_does_not_stand_is_the_end() {
    for lost in [1, 2, 4] {
        let mut pair = Pair::new();
        pair.tamper(move |response| {
            Some(match response {
                Response::SetDeviceStatus { status } => Response::SetDeviceStatus {
                    status: status & !lost,
                },
                other => other,
            })
        });
        pair.start();
        let fault = pair.failure();
        let Some(DriverFault::StatusNotTaken { wrote, got }) = fault else {
            panic!("{fault:?}")
        };
        assert_eq!((wrote - got).bits(), lost);
    }
}

#[test]
fn needs_reset_before_the_start_is_the_end() {
    let mut pair = Pair::new();
    pair.tamper(|response| {
        Some(match response {
            Response::SetDeviceStatus {
                status: status @ 0x0f,
            } => Response::SetDeviceStatus {
                status: status | 64,
            },
            other => other,
        })
    });
    pair.start();
    assert_eq!(pair.failure(), Some(DriverFault::NeedsReset));
}

#[test]
fn a_device_that_cannot_start_is_not_ready() {
    let mut pair = Pair::new();
    pair.owner.reject = true;
    pair.user.idle = true;
    pair.start();
    let now = pair.now;
    for index in [0, 2] {
        pair.drive(|driver| driver.decline_queue(now, index))
            .unwrap();
    }
    assert_eq!(pair.failure(), Some(DriverFault::NeedsReset));
}

#[test]
fn d39_driver_ok_waits_for_every_queue_that_was_asked_for() {
    let mut pair = Pair::new();
    pair.user.idle = true;
    pair.forget();
    pair.start();
    let now = pair.now;
    assert_eq!(pair.requests().last(), Some(&set_status(0x0b)));
    assert_eq!(
        pair.driver().features(),
        wants().features | Features::REQUIRED,
        "known when memory is chosen"
    );
    assert_eq!(pair.driver().config().len(), 60);
    pair.drive(|driver| driver.provide_queue(now, 0, setup(0, 8)))
        .unwrap();
    assert_eq!(
        pair.requests(),
        [set_vqueue(0, 8), Request::GetVqueue { index: 0 }]
    );
    pair.drive(|driver| driver.decline_queue(now, 2)).unwrap();
    assert_eq!(pair.requests(), [set_status(0x0f)]);
    assert!(pair.driver().is_running());
}

#[test]
fn d60_another_device_behind_the_number_is_brought_up_from_the_start() {
    let mut pair = Pair::running();
    let other = DeviceInfo {
        uuid: *b"another device..",
        features: Features::REQUIRED,
        queue_max: vec![16],
        config: vec![9; 4],
        ..block_device()
    };
    pair.device.remove_device(DEV);
    pair.run();
    pair.add(DEV, other, wants());
    pair.forget();
    pair.start();
    assert_eq!(pair.driver().info().device_uuid, *b"another device..");
    let ready = DriverAction::Ready {
        features: Features::REQUIRED,
        config: vec![9; 4],
    };
    assert_eq!(pair.told().last(), Some(&ready));
}

#[test]
fn d06_tokens_rewritten_on_the_way_and_back_make_no_difference() {
    // The driver end's tokens are 1, 2, 3, …; what the device end answers carries what it was given.
    let mut pair = Pair::new();
    pair.forget();
    pair.start();
    let tokens: Vec<u16> = pair
        .sent()
        .iter()
        .map(|frame| u16::from_le_bytes([frame[4], frame[5]]))
        .collect();
    let mut distinct = tokens.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), tokens.len());
    assert!(!tokens.contains(&0), "0 is the events'");
}

#[test]
fn a_flush_bit_not_offered_is_not_chosen() {
    let info = DeviceInfo {
        features: Features::REQUIRED,
        ..block_device()
    };
    let mut pair = Pair::with(info, wants(), limits());
    pair.start();
    assert!(!pair.driver().features().contains(FLUSH));
    assert!(pair.driver().is_running());
    let frames = pair.sent();
    assert!(
        frames
            .iter()
            .all(|frame| matches!(parse(frame), Frame::Request { dev_num: DEV, .. }))
    );
}
