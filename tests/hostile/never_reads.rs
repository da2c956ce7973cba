//! A producer that never reads.
//!
//! Attack: It sends requests without end, and never takes an answer out of its ring.
//!
//! Outcome: The answers fill the ring, then as many more wait in private memory as the ring has
//! slots; the next request is one more than a frontend may have outstanding, and ends the instance
//! (binding section 4).
//!
//! Class: 5 (XSA-392)

use virtio_msg::wire::{DevNum, Frame, Request};
use xen_bus::messages::{AreaShare, PrivateMessage, ShareFlags};
use xen_types::GrantRef;

use crate::rig::stage::{SLOTS, Stage};

const LINE: &str =
    "WARN the instance ends id=domain … bus 0 fault=peer has more than 16 requests outstanding";

/// Sends until the instance ends; how many frames it took.
fn flood(stage: &mut Stage, mut send: impl FnMut(&mut Stage)) -> usize {
    stage.guest.connect(&mut stage.rig);
    // The ring is empty: what came while connecting has been read.
    stage.guest.receive();
    let sent = (0..1000).take_while(|_| {
        send(stage);
        stage.rig.settle();
        stage.backend_says("state").as_deref() == Some("4")
    });
    sent.count()
}

#[test]
fn requests_to_a_device() {
    let mut stage = Stage::new();
    let sent = flood(&mut stage, |stage| {
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(0),
            token,
            request: Request::GetDeviceInfo,
        });
    });
    assert_eq!(sent, 2 * SLOTS);
    stage.assert_ended(LINE);
    stage.finish();
}

#[test]
fn private_requests() {
    let mut stage = Stage::new();
    let sent = flood(&mut stage, |stage| {
        stage
            .guest
            .send_private(&PrivateMessage::AreaShare(AreaShare {
                area_id: 0,
                flags: ShareFlags::empty(),
                page_count: 1,
                first: GrantRef(8),
            }));
    });
    assert_eq!(sent, 2 * SLOTS);
    stage.assert_ended(LINE);
    stage.finish();
}
