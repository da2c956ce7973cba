//! Frames of a frontend against the device end of a bus, whose owner completes its work now, or after later frames.

#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use virtio_msg::wire::{DevNum, MaxMessageSize};
use virtio_msg::{
    Action, Completion, DeviceBusAction, DeviceInfo, DeviceSide, DeviceSideBus, Features, Limits,
};

const SLOTS: u16 = 8;
const FRAME: usize = 264;

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        max_message_size: MaxMessageSize::RECOMMENDED,
        slots: SLOTS,
    };
    let mut bus = DeviceSideBus::new(limits);
    for dev_num in [0, 3] {
        let device = DeviceSide::new(block_device(), limits).expect("a sound device");
        bus.add_device(DevNum(dev_num), device)
            .expect("a free number");
    }
    let mut late = VecDeque::new();
    let mut rest = data;
    // A length with the owner's mood in its top bits, then as many bytes of a frame.
    while let [control, ahead @ ..] = rest {
        let len = usize::from(control & 0x3f).min(ahead.len());
        let (frame, next) = ahead.split_at(len);
        rest = next;
        if bus.receive(frame).is_err() {
            return;
        }
        while let Some(action) = bus.poll_action() {
            match action {
                DeviceBusAction::Device { dev_num, action } => {
                    late.extend(
                        completion(&action, control & 0x40 == 0).map(|done| (dev_num, done)),
                    );
                }
                DeviceBusAction::PrivateRequest(request) => {
                    bus.answer_private(request.msg_id, request.token, &[0; 4]);
                }
                _ => {}
            }
        }
        if control & 0x80 == 0 {
            while let Some((dev_num, done)) = late.pop_front() {
                bus.complete(dev_num, done);
            }
        }
        assert!(bus.outstanding() <= usize::from(SLOTS));
        let mut buf = [0; FRAME];
        while let Some(len) = bus.next_frame(&mut buf) {
            assert!(len <= FRAME);
        }
    }
});

fn completion(action: &Action, accept: bool) -> Option<Completion> {
    Some(match action {
        Action::CheckQueue { index, .. } => Completion::QueueChecked {
            index: *index,
            accepted: accept,
        },
        Action::Start { .. } => Completion::Started { running: accept },
        Action::StopQueue { index } => Completion::QueueStopped { index: *index },
        Action::Reset => Completion::ResetDone,
        Action::WriteConfig { .. } => Completion::ConfigChecked { accepted: accept },
        Action::Kick { .. } => return None,
    })
}

fn block_device() -> DeviceInfo {
    DeviceInfo {
        device_id: 2,
        vendor_id: 0x5845_4e58,
        uuid: [7; 16],
        features: Features::REQUIRED | Features::RING_RESET | Features::NOTIFICATION_DATA,
        prerequisites: &[],
        config: vec![0; 60],
        queue_max: vec![256, 0, 64],
    }
}
