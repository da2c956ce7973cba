//! Devices: configuration space, its generation, and EVENT_CONFIG.

use crate::rig::{Answer, DEV, DeviceRig, block_device, emit, limits, limits_of, parse};
use std::borrow::Cow;
use virtio_msg::wire::{Event, EventConfig, Frame, Request, Response, Token};
use virtio_msg::{Action, Completion, DeviceInfo, Features, OutsideConfig, Status};

fn read(rig: &mut DeviceRig, offset: u32, length: u32) -> (u32, Vec<u8>) {
    let answer = rig.ask(Request::GetConfig { offset, length });
    match answer.response() {
        Response::GetConfig {
            generation,
            offset: echo,
            data,
        } if echo == offset => (generation, data.into_owned()),
        other => panic!("{other:?}"),
    }
}

/// Generation and length of the verdict.
fn write(rig: &mut DeviceRig, generation: u32, offset: u32, data: &[u8]) -> (u32, u32) {
    let answer = rig.ask(Request::SetConfig {
        generation,
        offset,
        data: Cow::Borrowed(data),
    });
    assert_eq!(answer.0.len(), 20, "no data comes back");
    match answer.response() {
        Response::SetConfig {
            generation,
            offset: echo,
            length,
        } if echo == offset => (generation, length),
        other => panic!("{other:?}"),
    }
}

fn config_events(rig: &mut DeviceRig) -> Vec<(u32, u32, u32, Vec<u8>)> {
    let event = |frame: Vec<u8>| match parse(&frame) {
        Frame::Event {
            dev_num: DEV,
            event: Event::Config(event),
        } => {
            let EventConfig {
                status,
                generation,
                offset,
                length,
                data,
            } = event;
            assert_eq!(frame.len(), 24 + data.len());
            assert_eq!(
                length as usize,
                data.len(),
                "V-38: never a range without its data"
            );
            (status, generation, offset, data.into_owned())
        }
        other => panic!("{other:?}"),
    };
    rig.frames().into_iter().map(event).collect()
}

#[test]
fn v27_config_is_read_before_features_ok() {
    let mut rig = DeviceRig::new();
    rig.set_status(3);
    assert_eq!(read(&mut rig, 0, 60).1, (0..60).collect::<Vec<u8>>());
    assert_eq!(read(&mut rig, 58, 2).1, [58, 59]);
}

#[test]
fn v28_a_read_outside_or_too_long_is_length_0() {
    let mut rig = DeviceRig::new();
    for (offset, length) in [
        (60, 1),
        (59, 2),
        (0, 61),
        (0, u32::MAX),
        (u32::MAX, 1),
        (u32::MAX, u32::MAX),
    ] {
        assert_eq!(
            read(&mut rig, offset, length),
            (0, vec![]),
            "{length} at {offset}"
        );
    }
    let large = DeviceInfo {
        config: vec![7; 300],
        ..block_device()
    };
    let mut rig = DeviceRig::with(large, limits());
    assert_eq!(read(&mut rig, 0, 244).1.len(), 244);
    assert_eq!(read(&mut rig, 0, 245).1.len(), 0);
}

#[test]
fn v29_a_read_of_nothing_gives_the_generation() {
    let mut rig = DeviceRig::new();
    rig.bus
        .update(DEV, |device| device.config_changed(0, &[1]).unwrap());
    assert_eq!(read(&mut rig, 0, 0), (1, vec![]));
    assert_eq!(read(&mut rig, 60, 0), (1, vec![]));
}

#[test]
fn v30_a_write_is_all_or_nothing() {
    let mut rig = DeviceRig::running();
    let before = read(&mut rig, 0, 60);
    for (offset, len) in [(59, 2), (60, 1), (u32::MAX, 2)] {
        assert_eq!(write(&mut rig, 0, offset, &vec![0xee; len]), (0, 0));
    }
    assert_eq!(rig.actions, [], "the owner was not even asked");
    rig.accept = false;
    assert_eq!(write(&mut rig, 0, 8, &[1, 2, 3]), (0, 0));
    assert_eq!(
        rig.actions,
        [Action::WriteConfig {
            offset: 8,
            data: vec![1, 2, 3]
        }]
    );
    assert_eq!(read(&mut rig, 0, 60), before);
    rig.accept = true;
    assert_eq!(write(&mut rig, 0, 8, &[1, 2, 3]), (0, 3));
    assert_eq!(read(&mut rig, 7, 5), (0, vec![7, 1, 2, 3, 11]));
}

#[test]
fn v30_the_verdict_waits_for_the_owner() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    rig.send(Request::SetConfig {
        generation: 0,
        offset: 0,
        data: Cow::Borrowed(&[5]),
    });
    rig.quiet();
    assert_eq!(rig.device().config()[0], 0, "not applied yet");
    rig.complete(Completion::ConfigChecked { accepted: true });
    assert_eq!(rig.device().config()[0], 5);
    assert_eq!(rig.frames().len(), 1);
}

#[test]
fn v30_before_features_ok_a_write_is_refused() {
    let mut rig = DeviceRig::new();
    rig.set_status(3);
    assert_eq!(write(&mut rig, 0, 0, &[1]), (0, 0));
    assert_eq!(rig.actions, []);
}

#[test]
fn v31_the_generation_of_a_write_is_ignored() {
    let mut rig = DeviceRig::running();
    assert_eq!(write(&mut rig, 0xdead_beef, 32, &[1]), (0, 1));
}

#[test]
fn v33_a_write_of_nothing_does_nothing() {
    let mut rig = DeviceRig::running();
    assert_eq!(write(&mut rig, 0, 0, &[]), (0, 0));
    assert_eq!(rig.actions, []);
}

#[test]
fn v34_v35_a_change_has_its_own_generation_and_is_told() {
    let mut rig = DeviceRig::running();
    rig.bus.update(DEV, |device| {
        device.config_changed(8, &[0xaa, 0xbb]).unwrap()
    });
    assert_eq!(config_events(&mut rig), [(0x0f, 1, 8, vec![0xaa, 0xbb])]);
    assert_eq!(read(&mut rig, 8, 3), (1, vec![0xaa, 0xbb, 10]));
    rig.bus
        .update(DEV, |device| device.config_changed(8, &[0xcc]).unwrap());
    assert_eq!(config_events(&mut rig), [(0x0f, 2, 8, vec![0xcc])]);
}

#[test]
fn v34_a_read_in_chunks_across_a_change_shows_it() {
    let mut rig = DeviceRig::running();
    let (first, _) = read(&mut rig, 0, 30);
    rig.bus
        .update(DEV, |device| device.config_changed(59, &[1]).unwrap());
    rig.frames();
    let (second, _) = read(&mut rig, 30, 30);
    assert_ne!(first, second);
}

#[test]
fn v35_changes_that_did_not_leave_are_one_event_with_the_present_bytes() {
    let mut rig = DeviceRig::running();
    rig.bus.update(DEV, |device| {
        device.config_changed(8, &[1]).unwrap();
        device.config_changed(4, &[2]).unwrap();
        device.config_changed(8, &[3]).unwrap();
    });
    assert_eq!(config_events(&mut rig), [(0x0f, 3, 4, vec![2, 5, 6, 7, 3])]);
}

#[test]
fn v35_a_change_during_bring_up_is_told_when_the_driver_runs() {
    let mut rig = DeviceRig::new();
    rig.bus
        .update(DEV, |device| device.config_changed(0, &[7]).unwrap());
    rig.negotiate(Features::REQUIRED);
    rig.bus
        .update(DEV, |device| device.config_changed(1, &[8]).unwrap());
    rig.quiet();
    let token = rig.send(Request::SetDeviceStatus { status: 0x0f });
    let frames = rig.frames();
    assert_eq!(frames.len(), 2, "the answer first");
    assert!(matches!(parse(&frames[0]), Frame::Response { token: echo, .. } if echo == token));
    assert!(
        matches!(parse(&frames[1]), Frame::Event { event: Event::Config(event), .. } if event.data[..] == [8])
    );
}

#[test]
fn v36_what_the_driver_writes_is_no_event() {
    let mut rig = DeviceRig::new();
    rig.set_status(1);
    rig.negotiate(Features::REQUIRED);
    rig.set_status(0x0f);
    rig.set_status(0x8f);
    rig.quiet();
    let mut rig = DeviceRig::running();
    assert_eq!(write(&mut rig, 0, 0, &[1]), (0, 1));
    rig.quiet();
}

#[test]
fn v37_a_change_too_large_for_an_event_names_no_range() {
    let large = DeviceInfo {
        config: vec![0; 64],
        ..block_device()
    };
    let mut rig = DeviceRig::with(large, limits_of(52));
    rig.negotiate(Features::REQUIRED);
    rig.set_status(0x0f);
    rig.bus
        .update(DEV, |device| device.config_changed(0, &[1; 28]).unwrap());
    assert_eq!(config_events(&mut rig), [(0x0f, 1, 0, vec![1; 28])]);
    rig.bus
        .update(DEV, |device| device.config_changed(0, &[2; 64]).unwrap());
    assert_eq!(config_events(&mut rig), [(0x0f, 2, 0, vec![])]);
    rig.bus
        .update(DEV, |device| device.config_changed(1, &[3]).unwrap());
    assert_eq!(
        config_events(&mut rig),
        [(0x0f, 3, 1, vec![3])],
        "the old range is not dragged along"
    );
}

#[test]
fn v06_every_frame_fits_the_smallest_bus() {
    let large = DeviceInfo {
        config: (0..=255).collect(),
        ..block_device()
    };
    let mut rig = DeviceRig::with(large, limits_of(52));
    assert_eq!(rig.ask(Request::GetDeviceInfo).0.len(), 52);
    assert_eq!(
        rig.ask(Request::GetConfig {
            offset: 3,
            length: 32
        })
        .0
        .len(),
        52
    );
    assert_eq!(
        rig.ask(Request::GetConfig {
            offset: 3,
            length: 33
        })
        .0
        .len(),
        20
    );
    assert_eq!(
        rig.ask(Request::GetDeviceFeatures {
            block_index: 0,
            num_blocks: 9
        })
        .0
        .len(),
        52
    );
}

#[test]
fn v42_needs_reset_latches_and_is_told_once_the_driver_runs() {
    let mut rig = DeviceRig::running();
    rig.bus.update(DEV, |device| device.needs_reset());
    assert_eq!(config_events(&mut rig), [(0x4f, 0, 0, vec![])]);
    assert_eq!(
        rig.set_status(0x0f).bits(),
        0x4f,
        "the driver cannot clear it"
    );
    rig.quiet();

    let mut rig = DeviceRig::new();
    rig.bus.update(DEV, |device| device.needs_reset());
    rig.quiet();
    assert_eq!(rig.status(), Status::NEEDS_RESET);
    rig.set_status(3);
    rig.choose(Features::REQUIRED);
    assert_eq!(rig.set_status(0x0f).bits(), 0x4b, "not started");
    rig.quiet();
}

#[test]
fn v42_an_event_carries_the_status_as_it_is_when_it_leaves() {
    let mut rig = DeviceRig::running();
    rig.bus.update(DEV, |device| {
        device.config_changed(0, &[1]).unwrap();
        device.needs_reset();
    });
    assert_eq!(config_events(&mut rig), [(0x4f, 1, 0, vec![1])]);
}

#[test]
fn a_change_outside_is_the_owners_mistake_and_changes_nothing() {
    let mut rig = DeviceRig::running();
    let outside = rig
        .bus
        .update(DEV, |device| device.config_changed(59, &[1, 2]))
        .unwrap();
    assert_eq!(
        outside,
        Err(OutsideConfig {
            offset: 59,
            len: 2,
            size: 60
        })
    );
    rig.quiet();
    assert_eq!(read(&mut rig, 59, 1), (0, vec![59]));
}

#[test]
fn a_reset_keeps_the_generation() {
    let mut rig = DeviceRig::running();
    rig.bus
        .update(DEV, |device| device.config_changed(0, &[1]).unwrap());
    rig.frames();
    rig.set_status(0);
    assert_eq!(read(&mut rig, 0, 1), (1, vec![1]));
}

#[test]
fn a_completion_before_its_action_was_taken_is_ignored() {
    let mut rig = DeviceRig::running();
    let request = Request::SetConfig {
        generation: 0,
        offset: 0,
        data: Cow::Borrowed(&[9]),
    };
    rig.bus
        .receive(&emit(&Frame::Request {
            dev_num: DEV,
            token: Token(1),
            request,
        }))
        .unwrap();
    rig.bus
        .complete(DEV, Completion::ConfigChecked { accepted: true });
    rig.quiet();
    rig.run();
    assert!(matches!(
        Answer(rig.frames().remove(0)).response(),
        Response::SetConfig { length: 1, .. }
    ));
}
