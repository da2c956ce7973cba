//! A guest that keeps the backend busy beside one that works.
//!
//! Attack: Before every turn of the backend it fills its ring, with the most slots there are, with
//! kicks or with nonsense, or keeps an area of 900 pages being mapped and unmapped.
//!
//! Outcome: One turn takes 64 frames and 256 pages of an instance, then the next instance has its
//! turn (binding sections 4 and 6). The victim has at least 0.9 of the chains per turn that it has
//! alone.
//!
//! Line: none; IN of `vmsg stat` grows.
//!
//! Class: 6 (XSA-332), 5 (XSA-392)

use virtio_msg::wire::{DevNum, Event, EventAvail, Frame};
use xen_bus::areas::PAGES_PER_TURN;
use xen_bus::messages::{AreaUnshare, PrivateMessage};

use crate::rig::neighbours::{FRAMES_PER_TURN, TURNS, withstands};

#[test]
fn a_ring_that_is_always_full_of_event_avail_takes_nothing_from_the_neighbour() {
    let event = Event::Avail(EventAvail {
        index: 0,
        next_offset: 0,
    });
    let dev_num = DevNum(0);
    let mut bytes = [0; 52];
    let len = Frame::Event { dev_num, event }.emit(&mut bytes).unwrap();
    let work = withstands(|attacker| {
        attacker.flood(&bytes[..len]);
    });
    assert_eq!(work.frames, TURNS * FRAMES_PER_TURN, "the ring was full");
}

#[test]
fn a_ring_that_is_always_full_of_malformed_frames_takes_nothing_from_the_neighbour() {
    let work = withstands(|attacker| {
        attacker.flood(&[0xff; 52]);
    });
    assert_eq!(work.frames, TURNS * FRAMES_PER_TURN, "the ring was full");
}

#[test]
fn an_area_that_is_shared_and_unshared_without_end_takes_nothing_from_the_neighbour() {
    /// As many as a domain can grant beside its rings, roughly.
    const PAGES: usize = 900;
    let mut granted = None;
    let (mut requests, mut answers) = (0, 0);
    let work = withstands(|attacker| {
        answers += attacker.receive().len() as u64;
        let (_, _, share) = granted.get_or_insert_with(|| attacker.grant_area(7, PAGES));
        // One of each at a time: there is always one to do, and no bound is broken.
        if answers == requests {
            let area_id = share.area_id;
            attacker.send_private(&PrivateMessage::AreaShare(*share));
            attacker.send_private(&PrivateMessage::AreaUnshare(AreaUnshare { area_id }));
            requests += 2;
        }
    });
    assert_eq!(work.frames, requests);
    assert!(
        work.pages > TURNS * u64::from(PAGES_PER_TURN) / 4,
        "{work:?}"
    );
}
