//! Drivers: answers that are wrong, late, doubled or missing.

use crate::rig::{Pair, SECOND};
use virtio_msg::wire::{FeatureBlocks, MsgId, Request, Response};
use virtio_msg::{DriverFault, Features, Instant, Status};

#[test]
fn d52_each_wrong_answer_ends_it_without_a_crash() {
    type Wrong = fn(Response<'_>) -> Response<'_>;
    let wrong: [(MsgId, Wrong); 7] = [
        (MsgId::GET_DEVICE_INFO, |_| Response::SetVqueue),
        (MsgId::GET_DEVICE_FEATURES, |response| match response {
            Response::GetDeviceFeatures { blocks, .. } => Response::GetDeviceFeatures {
                block_index: 1,
                blocks,
            },
            other => other,
        }),
        (MsgId::GET_DEVICE_FEATURES, |response| match response {
            Response::GetDeviceFeatures { block_index, .. } => {
                let blocks = FeatureBlocks::of(Features(u128::MAX), 0, 3);
                Response::GetDeviceFeatures {
                    block_index,
                    blocks,
                }
            }
            other => other,
        }),
        (MsgId::SET_DRIVER_FEATURES, |_| Response::ResetVqueue),
        (MsgId::GET_CONFIG, |response| match response {
            Response::GetConfig {
                generation,
                offset,
                data,
            } => Response::GetConfig {
                generation,
                offset: offset + 1,
                data,
            },
            other => other,
        }),
        (MsgId::GET_CONFIG, |response| match response {
            Response::GetConfig {
                generation, offset, ..
            } => Response::GetConfig {
                generation,
                offset,
                data: [][..].into(),
            },
            other => other,
        }),
        (MsgId::GET_VQUEUE, |response| match response {
            Response::GetVqueue(mut queue) => {
                queue.index ^= 1;
                Response::GetVqueue(queue)
            }
            other => other,
        }),
    ];
    for (asked, wrong) in wrong {
        let mut pair = Pair::new();
        pair.tamper(move |response| {
            Some(if response.msg_id() == asked {
                wrong(response)
            } else {
                response
            })
        });
        pair.start();
        let fault = pair.failure();
        assert!(
            matches!(fault, Some(DriverFault::WrongAnswer { asked: echo, .. }) if echo == asked),
            "{asked}: {fault:?}"
        );
    }
}

#[test]
fn d52_an_answer_of_another_device_is_nobodys() {
    let mut pair = Pair::new();
    pair.tamper_frames(|mut frame| {
        frame[2] = 1;
        vec![frame]
    });
    pair.start();
    assert_eq!(pair.driver.outstanding(), 1, "the request is still open");
    assert!(pair.driver.discarded() > 0);
    pair.pass(Instant(0) + 2 * SECOND);
    assert_eq!(
        pair.failure(),
        Some(DriverFault::Timeout(MsgId::GET_DEVICE_INFO))
    );
}

#[test]
fn d53_a_mute_device_ends_every_phase_in_bounded_time() {
    let phases = [
        MsgId::GET_DEVICE_INFO,
        MsgId::GET_DEVICE_FEATURES,
        MsgId::GET_CONFIG,
        MsgId::SET_DRIVER_FEATURES,
        MsgId::GET_VQUEUE,
        MsgId::SET_VQUEUE,
        MsgId::SET_DEVICE_STATUS,
    ];
    for lost in phases {
        let mut pair = Pair::new();
        pair.tamper(move |response| (response.msg_id() != lost).then_some(response));
        pair.start();
        assert_eq!(pair.failure(), None);
        pair.pass(Instant(0) + 10 * SECOND);
        let expected = match lost {
            MsgId::SET_DEVICE_STATUS => DriverFault::ResetTimeout,
            _ => DriverFault::Timeout(lost),
        };
        assert_eq!(pair.failure(), Some(expected));
        assert_eq!(
            pair.driver.poll_timeout(),
            None,
            "nothing is waited for any more"
        );
    }
}

#[test]
fn d54_late_and_repeated_answers_find_nobody() {
    let mut pair = Pair::new();
    pair.mute = true;
    pair.start();
    pair.pass(Instant(0) + 2 * SECOND);
    assert_eq!(
        pair.failure(),
        Some(DriverFault::Timeout(MsgId::GET_DEVICE_INFO))
    );
    assert_eq!(
        pair.driver.outstanding(),
        1,
        "the token stays taken until the answer comes"
    );
    pair.tamper_frames(|frame| vec![frame.clone(), frame]);
    pair.mute = false;
    pair.run();
    assert_eq!(pair.told(), []);
    assert_eq!(pair.driver.outstanding(), 0);
    assert_eq!(pair.driver.discarded(), 1, "the copy");
    pair.start();
    assert!(
        pair.driver().is_running(),
        "each answer twice does not disturb it"
    );
}

#[test]
fn d55_a_fault_after_driver_is_told_and_start_recovers() {
    let mut pair = Pair::new();
    pair.tamper(|response| {
        Some(match response {
            Response::GetVqueue(mut queue) => {
                queue.flags = 2;
                Response::GetVqueue(queue)
            }
            other => other,
        })
    });
    pair.forget();
    pair.start();
    assert_eq!(pair.failure(), Some(DriverFault::QueueInconsistent(0)));
    assert_eq!(
        pair.requests().last(),
        Some(&Request::SetDeviceStatus { status: 0x83 })
    );
    assert_eq!(
        pair.device().status(),
        Status::ACKNOWLEDGE | Status::DRIVER | Status::FAILED
    );
    pair.honest();
    pair.start();
    assert!(pair.driver().is_running());
}
