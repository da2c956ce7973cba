//! Frames of a backend against the driver end of a bus that enumerates and brings a device up.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use virtio_msg::wire::{DevNum, MaxMessageSize};
use virtio_msg::{
    DriverAction, DriverBusAction, DriverConfig, DriverSide, DriverSideBus, Features, Instant,
    Limits, QueueSetup,
};

const SLOTS: u16 = 8;
const FRAME: usize = 264;
const SECOND: Duration = Duration::from_secs(1);
/// More time-outs than this in a row, and nothing waits any more.
const TIMEOUTS: usize = 64;

fuzz_target!(|data: &[u8]| {
    let limits = Limits {
        max_message_size: MaxMessageSize::RECOMMENDED,
        slots: SLOTS,
    };
    let mut bus = DriverSideBus::new(limits, SECOND);
    let mut now = Instant(0);
    bus.enumerate(now);
    add(&mut bus, now, DevNum(0), limits);
    let mut rest = data;
    while let [len, ahead @ ..] = rest {
        let (frame, next) = ahead.split_at(usize::from(len & 0x7f).min(ahead.len()));
        rest = next;
        drain(&mut bus);
        if len & 0x80 != 0
            && let Some(at) = bus.poll_timeout()
        {
            now = at;
            bus.handle_timeout(now);
        }
        if bus.receive(now, frame).is_err() {
            return;
        }
        while let Some(action) = bus.poll_action() {
            act(&mut bus, now, action, limits);
        }
        assert!(bus.outstanding() <= usize::from(SLOTS));
    }
    for _ in 0..TIMEOUTS {
        drain(&mut bus);
        let Some(at) = bus.poll_timeout() else { return };
        bus.handle_timeout(at);
        while bus.poll_action().is_some() {}
    }
    panic!("a silent backend keeps the driver waiting");
});

fn add(bus: &mut DriverSideBus, now: Instant, dev_num: DevNum, limits: Limits) {
    let wants = DriverConfig {
        features: Features::RING_RESET | Features::EVENT_IDX,
        queues: 2,
        config_len: 60,
        request_timeout: SECOND,
        reset_timeout: SECOND,
    };
    bus.add_device(dev_num, DriverSide::new(wants, limits.max_message_size));
    bus.update(dev_num, |driver| driver.start(now));
}

fn act(bus: &mut DriverSideBus, now: Instant, action: DriverBusAction, limits: Limits) {
    match action {
        DriverBusAction::Added(dev_num) => add(bus, now, dev_num, limits),
        DriverBusAction::Device {
            dev_num,
            action: DriverAction::NeedQueue { index, max_size },
        } => {
            let base = (1 << 48) + u64::from(index) * 0x10000;
            let queue = QueueSetup {
                size: max_size.min(64),
                desc: base,
                driver: base + 0x4000,
                device: base + 0x8000,
            };
            bus.update(dev_num, |driver| {
                driver.provide_queue(now, index, queue).ok()
            });
        }
        _ => {}
    }
}

fn drain(bus: &mut DriverSideBus) {
    let mut buf = [0; FRAME];
    while let Some(len) = bus.next_frame(&mut buf) {
        assert!(len <= FRAME);
    }
}
