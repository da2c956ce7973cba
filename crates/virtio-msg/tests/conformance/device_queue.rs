//! Devices: GET_VQUEUE, SET_VQUEUE, RESET_VQUEUE and the events of queues.

use crate::rig::{Answer, DEV, DeviceRig, limits, parse, set_vqueue, setup};
use virtio_msg::wire::{Event, Frame, Request, Response, SetVqueue, VqueueResponse};
use virtio_msg::{Action, Completion, Features, QueueSetup, Status};

fn negotiated() -> DeviceRig {
    let mut rig = DeviceRig::new();
    rig.negotiate(Features::REQUIRED | Features::RING_RESET);
    rig.actions.clear();
    rig
}

fn unconfigured(index: u32, max_size: u32) -> VqueueResponse {
    VqueueResponse {
        index,
        max_size,
        ..VqueueResponse::default()
    }
}

fn enabled(index: u32, max_size: u32, setup: QueueSetup) -> VqueueResponse {
    VqueueResponse {
        index,
        max_size,
        cur_size: setup.size.into(),
        flags: 1,
        descriptor_addr: setup.desc,
        driver_addr: setup.driver,
        device_addr: setup.device,
    }
}

/// The indexes of the EVENT_USED frames.
fn used(frames: &[Vec<u8>]) -> Vec<u32> {
    let index = |frame: &Vec<u8>| match parse(frame) {
        Frame::Event {
            dev_num: DEV,
            event: Event::Used { index },
        } => Some(index),
        _ => None,
    };
    frames.iter().filter_map(index).collect()
}

#[test]
fn v44_a_fresh_device_has_its_maxima_and_nothing_configured() {
    let mut rig = DeviceRig::new();
    assert_eq!(rig.vqueue(0), unconfigured(0, 256));
    assert_eq!(rig.vqueue(2), unconfigured(2, 64));
}

#[test]
fn v45_no_such_queue_is_the_zero_sentinel() {
    let mut rig = negotiated();
    for index in [1, 3, 0xffff, 0x1_0000, 0xffff_ffff] {
        assert_eq!(rig.vqueue(index), unconfigured(index, 0));
        assert_eq!(
            rig.ask(set_vqueue(index, setup(0, 64))).response(),
            Response::SetVqueue
        );
        assert_eq!(rig.vqueue(index), unconfigured(index, 0));
    }
    assert_eq!(rig.actions, []);
}

#[test]
fn v46_a_queue_reads_back_as_it_was_set() {
    let mut rig = negotiated();
    let stands = setup(2, 32);
    assert_eq!(
        rig.ask(set_vqueue(2, stands)).response(),
        Response::SetVqueue
    );
    assert_eq!(
        rig.actions,
        [Action::CheckQueue {
            index: 2,
            setup: stands
        }]
    );
    assert_eq!(rig.vqueue(2), enabled(2, 64, stands));
    assert_eq!(rig.vqueue(0), unconfigured(0, 256));
}

#[test]
fn v46_the_answer_waits_for_the_leases() {
    let mut rig = negotiated();
    rig.hold = true;
    rig.send(set_vqueue(0, setup(0, 256)));
    rig.send(Request::GetVqueue { index: 0 });
    rig.quiet();
    rig.complete(Completion::QueueChecked {
        index: 2,
        accepted: true,
    });
    rig.quiet();
    rig.complete(Completion::QueueChecked {
        index: 0,
        accepted: true,
    });
    let frames = rig.frames();
    assert_eq!(frames.len(), 2);
    assert_eq!(
        Answer(frames[1].clone()).vqueue(),
        enabled(0, 256, setup(0, 256))
    );
}

#[test]
fn v47_set_vqueue_reject_is_empty_and_no_change() {
    let good = setup(0, 256);
    let wrapping = |align: u64| 0u64.wrapping_sub(align);
    let bad = [
        ("size 0", QueueSetup { size: 0, ..good }),
        ("size above the maximum", QueueSetup { size: 512, ..good }),
        ("size not a power of two", QueueSetup { size: 96, ..good }),
        (
            "descriptors misaligned",
            QueueSetup {
                desc: good.desc + 8,
                ..good
            },
        ),
        (
            "driver area misaligned",
            QueueSetup {
                driver: good.driver + 1,
                ..good
            },
        ),
        (
            "device area misaligned",
            QueueSetup {
                device: good.device + 2,
                ..good
            },
        ),
        ("descriptors at 0", QueueSetup { desc: 0, ..good }),
        ("driver area at 0", QueueSetup { driver: 0, ..good }),
        ("device area at 0", QueueSetup { device: 0, ..good }),
        (
            "descriptors wrap",
            QueueSetup {
                desc: wrapping(16),
                ..good
            },
        ),
        (
            "driver area wraps",
            QueueSetup {
                driver: wrapping(2),
                ..good
            },
        ),
        (
            "device area wraps",
            QueueSetup {
                device: wrapping(4),
                ..good
            },
        ),
    ];
    let mut rig = negotiated();
    for (why, setup) in bad {
        assert_eq!(
            rig.ask(set_vqueue(0, setup)).response(),
            Response::SetVqueue,
            "{why}"
        );
        assert_eq!(rig.vqueue(0), unconfigured(0, 256), "{why}");
    }
    assert_eq!(rig.actions, [], "the owner was not even asked");
    rig.accept = false;
    assert_eq!(rig.ask(set_vqueue(0, good)).response(), Response::SetVqueue);
    assert_eq!(
        rig.vqueue(0),
        unconfigured(0, 256),
        "memory that the owner cannot use"
    );
    rig.accept = true;
    rig.ask(set_vqueue(0, good));
    assert_eq!(rig.vqueue(0), enabled(0, 256, good));
}

#[test]
fn v47_before_features_ok_nothing_is_set() {
    let mut rig = DeviceRig::new();
    rig.set_status(3);
    rig.ask(set_vqueue(0, setup(0, 256)));
    assert_eq!(rig.vqueue(0), unconfigured(0, 256));
}

#[test]
fn v48_an_enabled_queue_is_not_changed() {
    let mut rig = DeviceRig::running();
    let other = setup(7, 128);
    assert_eq!(
        rig.ask(set_vqueue(0, other)).response(),
        Response::SetVqueue
    );
    assert_eq!(rig.vqueue(0), enabled(0, 256, setup(0, 256)));
    assert_eq!(rig.actions, []);
    rig.kick(0);
    assert_eq!(rig.actions, [Action::Kick { index: 0 }]);
}

#[test]
fn v49_flags_0_and_1_enable_and_others_do_nothing() {
    for (flags, taken) in [
        (0, true),
        (1, true),
        (2, false),
        (3, false),
        (0x8000_0000, false),
    ] {
        let mut rig = negotiated();
        let Request::SetVqueue(queue) = set_vqueue(0, setup(0, 256)) else {
            unreachable!()
        };
        rig.ask(Request::SetVqueue(SetVqueue { flags, ..queue }));
        assert_eq!(rig.vqueue(0).flags, u32::from(taken), "flags {flags:#x}");
    }
}

#[test]
fn v50_a_queue_enabled_after_driver_ok_starts_at_once() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    rig.send(set_vqueue(2, setup(2, 64)));
    rig.complete(Completion::QueueChecked {
        index: 2,
        accepted: true,
    });
    rig.quiet();
    assert_eq!(
        rig.actions,
        [
            Action::CheckQueue {
                index: 2,
                setup: setup(2, 64)
            },
            Action::Start { queues: vec![2] }
        ]
    );
    rig.kick(2);
    assert_eq!(rig.actions.len(), 2, "no kick before it runs");
    rig.complete(Completion::Started { running: true });
    assert_eq!(
        Answer(rig.frames().remove(0)).response(),
        Response::SetVqueue
    );
    rig.kick(2);
    assert_eq!(rig.actions.last(), Some(&Action::Kick { index: 2 }));
}

#[test]
fn v50_a_late_queue_that_does_not_start_needs_a_reset() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    rig.send(set_vqueue(2, setup(2, 64)));
    rig.complete(Completion::QueueChecked {
        index: 2,
        accepted: true,
    });
    rig.complete(Completion::Started { running: false });
    let frames = rig.frames();
    assert_eq!(frames.len(), 2, "the answer, and EVENT_CONFIG");
    assert!(rig.device().status().contains(Status::NEEDS_RESET));
}

#[test]
fn all_queues_enabled_before_start_together() {
    let mut rig = negotiated();
    rig.ask(set_vqueue(2, setup(2, 64)));
    rig.ask(set_vqueue(0, setup(0, 256)));
    rig.actions.clear();
    rig.set_status(0x0f);
    assert_eq!(rig.actions, [Action::Start { queues: vec![0, 2] }]);
}

#[test]
fn v51_reset_vqueue_is_answered_when_the_queue_stopped() {
    let mut rig = DeviceRig::running();
    rig.hold = true;
    rig.send(Request::ResetVqueue { index: 0 });
    assert_eq!(rig.actions, [Action::StopQueue { index: 0 }]);
    rig.kick(0);
    assert_eq!(
        rig.actions,
        [Action::StopQueue { index: 0 }],
        "no kick for a queue that is being stopped"
    );
    rig.bus.update(DEV, |device| device.used(0));
    rig.complete(Completion::QueueStopped { index: 2 });
    rig.complete(Completion::ResetDone);
    let before: Vec<_> = rig.frames();
    assert_eq!(used(&before), [0], "I/O that ends meanwhile is told");
    assert_eq!(before.len(), 1, "but not the reset");
    rig.bus.update(DEV, |device| device.used(0));
    rig.complete(Completion::QueueStopped { index: 0 });
    let frames = rig.frames();
    assert_eq!(frames.len(), 1, "the mark was cleared before the answer");
    assert_eq!(Answer(frames[0].clone()).response(), Response::ResetVqueue);
    rig.bus.update(DEV, |device| device.used(0));
    rig.quiet();

    rig.hold = false;
    assert_eq!(rig.vqueue(0), unconfigured(0, 256));
    rig.ask(set_vqueue(0, setup(5, 16)));
    assert_eq!(
        rig.vqueue(0),
        enabled(0, 256, setup(5, 16)),
        "usable again, in another shape"
    );
    rig.kick(0);
    assert_eq!(rig.actions.last(), Some(&Action::Kick { index: 0 }));
}

#[test]
fn v51_a_queue_that_was_not_started_gives_its_memory_back_too() {
    let mut rig = negotiated();
    rig.ask(set_vqueue(0, setup(0, 256)));
    rig.actions.clear();
    rig.ask(Request::ResetVqueue { index: 0 });
    assert_eq!(rig.actions, [Action::StopQueue { index: 0 }]);
    assert_eq!(rig.vqueue(0), unconfigured(0, 256));
}

#[test]
fn v52_reset_vqueue_reject_is_empty_and_no_change() {
    let mut rig = DeviceRig::running();
    for index in [1, 2, 3, 0xffff, 0x1_0000, u32::MAX] {
        assert_eq!(
            rig.ask(Request::ResetVqueue { index }).response(),
            Response::ResetVqueue
        );
    }
    assert_eq!(rig.actions, []);
    assert_eq!(rig.vqueue(0), enabled(0, 256, setup(0, 256)));

    let mut rig = DeviceRig::new();
    rig.negotiate(Features::REQUIRED);
    rig.ask(set_vqueue(0, setup(0, 256)));
    rig.actions.clear();
    assert_eq!(
        rig.ask(Request::ResetVqueue { index: 0 }).response(),
        Response::ResetVqueue
    );
    assert_eq!(rig.vqueue(0).cur_size, 256, "RING_RESET was not negotiated");
    assert_eq!(rig.actions, []);
}

#[test]
fn v54_kicks_that_must_be_ignored_are() {
    let mut rig = negotiated();
    rig.ask(set_vqueue(0, setup(0, 256)));
    rig.actions.clear();
    rig.kick(0);
    assert_eq!(rig.actions, [], "before DRIVER_OK");
    rig.set_status(0x0f);
    rig.actions.clear();
    for index in [1, 2, 3, 0xffff, 0x1_0000, u32::MAX] {
        rig.kick(index);
    }
    assert_eq!(rig.actions, [], "not enabled, or no such queue");
    rig.kick(0);
    assert_eq!(rig.actions, [Action::Kick { index: 0 }]);
}

#[test]
fn v55_the_hint_of_a_kick_is_not_believed() {
    let mut rig = DeviceRig::running();
    for next_offset in [0, 1, 0xffff, 0x8000_7fff, u32::MAX] {
        let event = Event::Avail(virtio_msg::wire::EventAvail {
            index: 0,
            next_offset,
        });
        rig.actions.clear();
        rig.give(&crate::rig::emit(&Frame::Event {
            dev_num: DEV,
            event,
        }));
        assert_eq!(rig.actions, [Action::Kick { index: 0 }]);
    }
}

#[test]
fn v43_no_event_used_before_driver_ok() {
    let mut rig = negotiated();
    rig.ask(set_vqueue(0, setup(0, 256)));
    rig.bus.update(DEV, |device| device.used(0));
    rig.quiet();
    rig.send(Request::SetDeviceStatus { status: 0x0f });
    let frames = rig.frames();
    assert_eq!(Answer(frames[0].clone()).status().bits(), 0x0f);
    assert_eq!(
        used(&frames[1..]),
        [0],
        "what the queues did while starting is not lost"
    );
}

#[test]
fn v56_one_event_used_however_often_before_it_left() {
    let mut rig = DeviceRig::running();
    rig.ask(set_vqueue(2, setup(2, 64)));
    rig.bus.update(DEV, |device| {
        for index in [0, 2, 0, 0, 1, 3, 0xffff] {
            device.used(index);
        }
    });
    let frames = rig.frames();
    assert_eq!(used(&frames), [0, 2]);
    assert_eq!(frames.len(), 2);
    rig.bus.update(DEV, |device| device.used(0));
    assert_eq!(used(&rig.frames()), [0], "and anew after it left");
}

#[test]
fn kicks_coalesce_until_they_are_taken() {
    let mut rig = DeviceRig::running();
    let kick = crate::rig::emit(&Frame::Event {
        dev_num: DEV,
        event: Event::Avail(virtio_msg::wire::EventAvail {
            index: 0,
            next_offset: 0,
        }),
    });
    for _ in 0..1000 {
        rig.bus.receive(&kick).unwrap();
    }
    rig.run();
    assert_eq!(rig.actions, [Action::Kick { index: 0 }]);
    assert_eq!(
        rig.bus.outstanding(),
        0,
        "events are not requests: {:?}",
        limits()
    );
}
