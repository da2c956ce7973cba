//! A ring that is left full.
//!
//! Attack: It lets the ring fill with answers, has as many more owed to it as it may, goes on using
//! its disk, and takes nothing out.
//!
//! Outcome: The backend keeps what it owes in bounded private memory, a mark per queue, and sleeps;
//! the disk is served all the same (binding section 4: nobody can be blocked by the peer's
//! laziness). When the guest reads, everything comes, in order and once.
//!
//! Line: none.
//!
//! Class: 5 (XSA-392), 6 (XSA-391)

use std::time::Duration;

use tests::pattern;
use virtio_msg::wire::{DevNum, Frame, Request};

use crate::rig::stage::{SLOTS, Stage};

#[test]
fn the_backend_sleeps_serves_and_delivers_everything_in_the_end() {
    let mut stage = Stage::new();
    let mut disk = stage.hostile_disk();
    stage.guest.receive();
    let mut tokens = Vec::new();
    for _ in 0..2 * SLOTS {
        let token = stage.guest.token();
        stage.guest.send(&Frame::Request {
            dev_num: DevNum(0),
            token,
            request: Request::GetDeviceStatus,
        });
        stage.rig.settle();
        tokens.push(token);
    }
    stage.assert_state("4");
    // It sleeps, whatever the guest sends.
    for _ in 0..10 {
        let more = stage.rig.service().turn(Some(Duration::ZERO)).unwrap();
        assert!(!more, "it spins");
        stage.guest.notify();
        stage.rig.settle();
    }
    let (_, data) = disk.take(512);
    for chain in 1..=100 {
        let status = disk.read_request(0, 5, data, 512);
        disk.offer(&mut stage.guest, 0);
        stage
            .rig
            .until("a used buffer", |_| (disk.used() == chain).then_some(()));
        assert_eq!(disk.read(status, 1), [0]);
        assert_eq!(disk.read(data, 512), pattern(5, 512));
        disk.write(data, &[0; 512]);
        stage.assert_honest_served();
    }
    let mut answers = Vec::new();
    let mut events = 0;
    stage.rig.until("every answer", |_| {
        for frame in stage.guest.receive() {
            match Frame::parse(&frame, virtio_msg::wire::MaxMessageSize::MIN).unwrap() {
                Frame::Response { token, .. } => answers.push(token),
                Frame::Event { .. } => events += 1,
                other => panic!("{other:?}"),
            }
        }
        (answers.len() == tokens.len() && events > 0).then_some(())
    });
    assert_eq!(answers, tokens);
    assert_eq!(events, 1, "one mark for a hundred used buffers");
    stage.assert_hostile_served(&mut disk);
    stage.log.assert_quiet();
    stage.finish();
}
