//! Frames that are none.
//!
//! Attack: It fills the slots of its ring with random bytes, with lengths that lie, and with
//! messages to devices that are not there.
//!
//! Outcome: A slot is copied out before it is parsed; what is no message, or has no receiver, is
//! discarded and counted (virtio-msg section 2.5). The connection goes on.
//!
//! Line: none; IN of `vmsg stat` grows.
//!
//! Class: 2 (XSA-270)

use tests::Random;
use virtio_msg::wire::{BusMessage, DevNum, Frame, Request};

use crate::rig::stage::Stage;

#[test]
fn frames_that_are_none_are_discarded() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let mut random = Random::seeded(3);
    for round in 0..200 {
        let len = 1 + random.below(264);
        let bytes: Vec<u8> = (0..len)
            .map(|_| u8::try_from(random.below(256)).unwrap())
            .collect();
        stage.guest.send_bytes(&bytes);
        if round % 8 == 0 {
            stage.rig.settle();
            stage.guest.receive();
        }
        // Random bytes may be a request to device 0; anything but a broken bound is legal.
        if stage.backend_says("state").as_deref() != Some("4") {
            panic!("{:?}", stage.backend_says("error"));
        }
    }
    stage.rig.settle();
    stage.guest.receive();
    let status = stage.guest.status(&mut stage.rig, 0);
    if status.contains(virtio_msg::Status::DRIVER_OK) {
        stage.assert_hostile_served(&mut disk);
    }
    stage.finish();
}

#[test]
fn pings_and_strange_devices_do_no_harm() {
    let mut stage = Stage::new();
    stage.guest.connect(&mut stage.rig);
    for _ in 0..50 {
        let token = stage.guest.token();
        let message = BusMessage::Ping { data: 7 };
        stage
            .guest
            .ask(&mut stage.rig, &Frame::Bus { token, message }, token);
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(9),
            token,
            request: Request::GetDeviceInfo,
        });
    }
    stage.rig.settle();
    stage.assert_state("4");
    stage.log.assert_quiet();
    stage.finish();
}
