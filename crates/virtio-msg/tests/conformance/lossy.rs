//! Both ends over a carrier that loses, repeats, delays and reorders: bounds hold, and a new session recovers (B-45).

use crate::rig::{DEV, SECOND, SLOTS, block_device, completion, limits, setup, wants};
use proptest::prelude::*;
use virtio_msg::bus::{Bus, BusInfo, FaultRates, Faulty, Loopback};
use virtio_msg::wire::MaxMessageSize;
use virtio_msg::{
    DeviceBusAction, DeviceBusState, DeviceSide, DeviceSideBus, DriverAction, DriverBusAction,
    DriverSide, DriverSideBus, Instant, PeerFault,
};

/// Turns without a frame before nothing is held back by a carrier any more.
const QUIET_TURNS: u32 = 4;

struct Session {
    driver: DriverSideBus,
    device: DeviceSideBus,
    driver_end: Faulty<Loopback>,
    device_end: Faulty<Loopback>,
    now: Instant,
    buf: [u8; 264],
}

impl Session {
    fn new(device: DeviceSideBus, rates: FaultRates, seed: u64, now: Instant) -> Self {
        let info = BusInfo {
            revision: 1,
            max_message_size: MaxMessageSize::RECOMMENDED,
            features: 0,
        };
        let (driver_end, device_end) = Loopback::pair(info, 1000);
        let mut driver = DriverSideBus::new(limits(), SECOND);
        driver.add_device(DEV, DriverSide::new(wants(), limits().max_message_size));
        driver.update(DEV, |driver| driver.start(now));
        Session {
            driver,
            device,
            driver_end: Faulty::new(driver_end, rates, seed),
            device_end: Faulty::new(device_end, rates, !seed),
            now,
            buf: [0; 264],
        }
    }

    fn is_running(&self) -> bool {
        self.driver.device(DEV).unwrap().is_running()
    }

    /// Runs until nothing moves, without the clock.
    fn settle(&mut self) -> Result<(), PeerFault> {
        let mut quiet = 0;
        while quiet < QUIET_TURNS {
            quiet = if self.turn()? { 0 } else { quiet + 1 };
            assert!(self.driver.outstanding() <= usize::from(SLOTS));
            assert!(self.device.outstanding() <= usize::from(SLOTS));
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<bool, PeerFault> {
        let mut moved = false;
        while let Some(len) = self.driver.next_frame(&mut self.buf) {
            self.driver_end.try_send(&self.buf[..len]).unwrap();
            moved = true;
        }
        self.driver_end.flush();
        while let Some(len) = self.device_end.try_recv(&mut self.buf) {
            self.device.receive(&self.buf[..len])?;
            moved = true;
        }
        self.owner_turn();
        while let Some(len) = self.device.next_frame(&mut self.buf) {
            self.device_end.try_send(&self.buf[..len]).unwrap();
            moved = true;
        }
        self.device_end.flush();
        while let Some(len) = self.driver_end.try_recv(&mut self.buf) {
            self.driver
                .receive(self.now, &self.buf[..len])
                .expect("the device end keeps its bounds");
            moved = true;
        }
        Ok(self.user_turn() | moved)
    }

    fn owner_turn(&mut self) {
        while let Some(action) = self.device.poll_action() {
            if let DeviceBusAction::Device { dev_num, action } = action
                && let Some(completion) = completion(&action, true)
            {
                self.device.complete(dev_num, completion);
            }
        }
    }

    /// Gives memory to queues, and starts again after each failure.
    fn user_turn(&mut self) -> bool {
        let (now, mut moved) = (self.now, false);
        while let Some(action) = self.driver.poll_action() {
            let DriverBusAction::Device { action, .. } = action else {
                continue;
            };
            moved = true;
            match action {
                DriverAction::NeedQueue { index, max_size } => {
                    let memory = setup(index, max_size);
                    let given = self
                        .driver
                        .update(DEV, |driver| driver.provide_queue(now, index, memory));
                    given.unwrap().unwrap();
                }
                DriverAction::Failed(_) => {
                    self.driver.update(DEV, |driver| driver.start(now)).unwrap()
                }
                _ => {}
            }
        }
        moved
    }
}

/// Lets a bring-up meet faults, for some time-outs long; then the device, as it was left, meets a good carrier.
fn survives(rates: FaultRates, seed: u64) {
    let mut device = DeviceSideBus::new(limits());
    device
        .add_device(DEV, DeviceSide::new(block_device(), limits()).unwrap())
        .unwrap();
    let mut session = Session::new(device, rates, seed, Instant(0));
    for _ in 0..6 {
        // Repeated requests may exceed the bound, which ends a session as well.
        if session.settle().is_err() || session.is_running() {
            break;
        }
        if let Some(at) = session.driver.poll_timeout() {
            session.now = at;
            session.driver.handle_timeout(at);
        }
    }

    let mut left = session.device.export();
    for (_, device) in &mut left.devices {
        device.requests.clear();
        device.replies.clear();
    }
    let left = DeviceBusState {
        devices: left.devices,
        owed: vec![],
        private_requests: vec![],
        removed: vec![],
    };
    let device = DeviceSideBus::import(limits(), left, |_| Some(block_device())).unwrap();
    let mut session = Session::new(device, FaultRates::default(), seed, session.now);
    session.settle().expect("nobody breaks a bound");
    assert!(session.is_running());
    assert_eq!(session.driver.outstanding(), 0);
    assert_eq!(session.device.device(DEV).unwrap().status().bits(), 0x0f);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn b45_a_bring_up_through_faults_ends_and_a_new_session_recovers(
        drop in 0u16..200,
        duplicate in 0u16..200,
        reorder in 0u16..200,
        delay in 0u16..200,
        seed: u64,
    ) {
        survives(FaultRates { drop, duplicate, reorder, delay }, seed);
    }
}
