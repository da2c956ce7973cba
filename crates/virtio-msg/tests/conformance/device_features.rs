//! Devices: the offer, the driver's choice, and the verdict at FEATURES_OK.

use crate::rig::{DeviceRig, FLUSH, WRITEBACK, block_device, limits};
use virtio_msg::wire::{FeatureBlocks, Request, Response};
use virtio_msg::{BadDeviceInfo, DeviceInfo, DeviceSide, Features, Prerequisite, Status};

#[test]
fn v18_offered_features_are_the_offer_always_and_zero_beyond() {
    let offer = block_device().features;
    let mut rig = DeviceRig::new();
    let blocks = |rig: &mut DeviceRig, first, count| {
        let answer = rig.ask(Request::GetDeviceFeatures {
            block_index: first,
            num_blocks: count,
        });
        let Response::GetDeviceFeatures {
            block_index,
            blocks,
        } = answer.response()
        else {
            panic!("no blocks")
        };
        assert_eq!((block_index, blocks.count()), (first, count));
        blocks.iter().collect::<Vec<_>>()
    };
    let both = vec![offer.block(0), offer.block(1)];
    assert_eq!(blocks(&mut rig, 0, 2), both);
    rig.negotiate(Features::REQUIRED);
    assert_eq!(blocks(&mut rig, 0, 2), both);
    assert_eq!(blocks(&mut rig, 1, 4), [offer.block(1), 0, 0, 0]);
    assert_eq!(blocks(&mut rig, 5, 1), [0]);
    assert_eq!(blocks(&mut rig, u32::MAX, 2), [0, 0]);
    assert_eq!(blocks(&mut rig, 0, 0), []);
}

#[test]
fn v18_more_blocks_than_a_message_holds_are_discarded() {
    let mut rig = DeviceRig::new();
    assert_eq!(
        rig.ask(Request::GetDeviceFeatures {
            block_index: 0,
            num_blocks: 62
        })
        .0
        .len(),
        264
    );
    for num_blocks in [63, u32::MAX] {
        rig.send(Request::GetDeviceFeatures {
            block_index: 0,
            num_blocks,
        });
        rig.quiet();
    }
    assert_eq!((rig.bus.discarded(), rig.bus.outstanding()), (2, 0));
}

#[test]
fn v19_v21_v22_an_offer_that_must_not_be_is_refused_at_birth() {
    let offering = |features| {
        DeviceSide::new(
            DeviceInfo {
                features,
                ..block_device()
            },
            limits(),
        )
        .err()
    };
    for bit in [24, 34, 37, 39, 41, 43, 44, 49] {
        let bit = Features::bit(bit);
        assert_eq!(
            offering(Features::REQUIRED | bit),
            Some(BadDeviceInfo::UnsuitableFeatures(bit))
        );
    }
    for missing in [Features::VERSION_1, Features::ACCESS_PLATFORM] {
        let rest = Features::REQUIRED & !missing;
        assert_eq!(offering(rest), Some(BadDeviceInfo::MissingFeatures(rest)));
    }
    let lonely = Features::REQUIRED | WRITEBACK;
    assert_eq!(
        offering(lonely),
        Some(BadDeviceInfo::MissingPrerequisite(WRITEBACK))
    );
}

#[test]
fn v23_driver_features_accumulate_block_by_block() {
    let mut rig = DeviceRig::new();
    rig.set_status(3);
    let all = Features::REQUIRED | FLUSH | WRITEBACK;
    let set = |rig: &mut DeviceRig, block_index, features| {
        let blocks = FeatureBlocks::of(features, block_index, 1);
        assert_eq!(
            rig.ask(Request::SetDriverFeatures {
                block_index,
                blocks
            })
            .response(),
            Response::SetDriverFeatures
        );
    };
    set(&mut rig, 1, all);
    set(&mut rig, 0, all);
    assert_eq!(rig.device().features(), all);
    set(&mut rig, 1, Features::VERSION_1);
    assert_eq!(
        rig.device().features(),
        Features::VERSION_1 | FLUSH | WRITEBACK
    );
    set(&mut rig, 1, all);
    assert!(rig.set_status(0x0b).contains(Status::FEATURES_OK));
}

#[test]
fn v24_the_verdict_is_at_features_ok() {
    let refused = [
        Features::REQUIRED | Features::bit(0),
        Features::REQUIRED | Features::bit(127),
        Features::REQUIRED | WRITEBACK,
        Features::VERSION_1,
        Features::ACCESS_PLATFORM,
        Features::default(),
    ];
    for features in refused {
        let mut rig = DeviceRig::new();
        rig.set_status(3);
        rig.choose(features);
        assert_eq!(
            rig.set_status(0x0b),
            Status::ACKNOWLEDGE | Status::DRIVER,
            "{features:?}"
        );
        assert_eq!(
            rig.set_status(0x0f),
            Status::ACKNOWLEDGE | Status::DRIVER,
            "DRIVER_OK without FEATURES_OK"
        );
        // The driver may choose better.
        rig.choose(Features::REQUIRED | FLUSH | WRITEBACK);
        assert_eq!(rig.set_status(0x0b).bits(), 0x0b);
    }
}

#[test]
fn v24_a_bit_past_the_end_is_refused_and_a_zero_block_is_not() {
    for (block_index, bits, status) in [
        (4, 0, 0x0b),
        (u32::MAX, 0, 0x0b),
        (4, 1, 3),
        (u32::MAX, 1, 3),
    ] {
        let mut rig = DeviceRig::new();
        rig.set_status(3);
        rig.choose(Features::REQUIRED);
        let blocks = FeatureBlocks::of(Features(bits), 0, 1);
        rig.ask(Request::SetDriverFeatures {
            block_index,
            blocks,
        });
        assert_eq!(
            rig.set_status(0x0b).bits(),
            status,
            "block {block_index} = {bits}"
        );
    }
}

#[test]
fn v25_every_valid_subset_is_accepted_and_again_after_reset() {
    let mut rig = DeviceRig::new();
    let optional = [
        FLUSH,
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::RING_RESET,
    ];
    for pick in 0..16u32 {
        let chosen = (0..).zip(optional).filter(|(i, _)| pick >> i & 1 == 1);
        let features = chosen.fold(Features::REQUIRED, |set, (_, bit)| set | bit);
        for _ in 0..2 {
            rig.negotiate(features);
            assert_eq!(rig.device().features(), features);
            rig.set_status(0);
        }
    }
}

#[test]
fn v26_features_written_after_features_ok_have_no_effect() {
    let mut rig = DeviceRig::new();
    rig.negotiate(Features::REQUIRED);
    rig.choose(Features::REQUIRED | Features::bit(0));
    assert_eq!(rig.device().features(), Features::REQUIRED);
    assert_eq!(rig.set_status(0x0f).bits(), 0x0f);
}

#[test]
fn prerequisites_are_met_by_any_of_their_set() {
    const RULES: &[Prerequisite] = &[Prerequisite {
        feature: Features::bit(13),
        any_of: Features(1 << 11 | 1 << 12),
    }];
    let features = Features::REQUIRED | Features(1 << 11 | 1 << 12 | 1 << 13);
    for (chosen, status) in [
        (1 << 13, 3),
        (1 << 13 | 1 << 12, 0x0b),
        (1 << 13 | 1 << 11, 0x0b),
        (1 << 12, 0x0b),
    ] {
        let info = DeviceInfo {
            features,
            prerequisites: RULES,
            ..block_device()
        };
        let mut rig = DeviceRig::with(info, limits());
        rig.set_status(3);
        rig.choose(Features::REQUIRED | Features(chosen));
        assert_eq!(rig.set_status(0x0b).bits(), status, "{chosen:#x}");
    }
}
