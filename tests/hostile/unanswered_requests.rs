//! Private requests to which there is no answer.
//!
//! Attack: It sends requests with ids that are reserved, or with payloads that are none, and waits
//! for nothing.
//!
//! Outcome: They are discarded, and each counts among its outstanding requests to the end of the
//! session (binding section 4). It takes the places from itself alone: the one that is too many ends
//! its instance.
//!
//! Class: 5 (XSA-392)

use virtio_msg::wire::{BusMessage, Frame, MsgId};

use crate::rig::stage::{SLOTS, Stage};

const LINE: &str =
    "WARN the instance ends id=domain … bus 0 fault=peer has more than 16 requests outstanding";

fn send(stage: &mut Stage, id: u8, payload: &[u8]) {
    let token = stage.guest.token();
    let message = BusMessage::Private {
        msg_id: MsgId(id),
        response: false,
        payload: payload.into(),
    };
    stage.guest.send(&Frame::Bus { token, message });
    stage.rig.settle();
    // It is not a lazy reader.
    stage.guest.receive();
}

#[test]
fn they_end_the_instance_at_its_bound_and_starve_nobody() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    let odd: [(u8, &[u8]); 4] = [
        (0x80, &[]),
        (0x83, &[1, 2, 3]),
        (0x81, &[0xff; 200]),
        (0xbf, &[0]),
    ];
    for (id, payload) in odd.iter().cycle().take(SLOTS - 1) {
        send(&mut stage, *id, payload);
        stage.assert_state("4");
    }
    // One place is left, and serves.
    stage.assert_hostile_served(&mut disk);
    stage.guest.status(&mut stage.rig, 0);
    for (id, payload) in &odd[..2] {
        send(&mut stage, *id, payload);
    }
    stage.assert_ended(LINE);
    stage.finish();
}
