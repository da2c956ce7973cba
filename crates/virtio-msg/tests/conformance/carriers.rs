//! The carriers of the `bus` module, and what parameters of a carrier are accepted (D-09, D-10).

use virtio_msg::bus::{
    Bus, BusInfo, FaultRates, Faulty, Full, Loopback, Traced, UnsupportedBus, Way,
};
use virtio_msg::wire::MaxMessageSize;

const INFO: BusInfo = BusInfo {
    revision: 1,
    max_message_size: MaxMessageSize::RECOMMENDED,
    features: 0,
};

#[test]
fn d09_d10_only_revision_1_without_features_is_known() {
    assert_eq!(INFO.check(), Ok(()));
    for revision in [0, 2, u32::MAX] {
        assert_eq!(
            BusInfo { revision, ..INFO }.check(),
            Err(UnsupportedBus::Revision(revision))
        );
    }
    for bit in 0..64 {
        let features = 1 << bit;
        assert_eq!(
            BusInfo { features, ..INFO }.check(),
            Err(UnsupportedBus::Features(features))
        );
    }
}

#[test]
fn a_loopback_is_bounded_and_in_order() {
    let (mut here, mut there) = Loopback::pair(INFO, 2);
    assert_eq!(here.try_send(&[1]), Ok(()));
    assert_eq!(here.try_send(&[2, 2]), Ok(()));
    assert_eq!(here.try_send(&[3]), Err(Full));
    let mut buf = [0; 264];
    assert_eq!(there.try_recv(&mut buf), Some(1));
    assert_eq!(there.try_recv(&mut buf), Some(2));
    assert_eq!(buf[..2], [2, 2]);
    assert_eq!(there.try_recv(&mut buf), None);
    assert_eq!(
        here.try_recv(&mut buf),
        None,
        "the other way is another lane"
    );
}

#[test]
fn a_trace_has_what_passed_and_not_what_did_not() {
    let (here, mut there) = Loopback::pair(INFO, 1);
    let mut here = Traced::new(here);
    here.try_send(&[1]).unwrap();
    here.try_send(&[2]).unwrap_err();
    there.try_send(&[3]).unwrap();
    here.try_recv(&mut [0; 8]).unwrap();
    assert_eq!(here.take(), [(Way::Out, vec![1]), (Way::In, vec![3])]);
    assert_eq!(here.take(), []);
}

/// What arrives of the frames 0 to 9, sent with a flush after each.
fn through(rates: FaultRates) -> Vec<u8> {
    let (here, mut there) = Loopback::pair(INFO, 100);
    let mut here = Faulty::new(here, rates, 42);
    for number in 0..10 {
        here.try_send(&[number]).unwrap();
        here.flush();
    }
    here.flush();
    let mut buf = [0; 8];
    std::iter::from_fn(|| there.try_recv(&mut buf).map(|_| buf[0])).collect()
}

#[test]
fn each_fault_does_what_it_says() {
    let none = FaultRates::default();
    assert_eq!(through(none), (0..10).collect::<Vec<_>>());
    assert_eq!(through(FaultRates { drop: 1000, ..none }), []);
    let twice = through(FaultRates {
        duplicate: 1000,
        ..none
    });
    assert_eq!(
        twice,
        (0..10)
            .flat_map(|number| [number, number])
            .collect::<Vec<_>>()
    );
    let late = through(FaultRates { delay: 500, ..none });
    let mut sorted = late.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    assert_ne!(late, sorted, "some were overtaken");
}

#[test]
fn reordered_frames_are_overtaken_within_a_batch() {
    let (here, mut there) = Loopback::pair(INFO, 100);
    let mut here = Faulty::new(
        here,
        FaultRates {
            reorder: 500,
            ..FaultRates::default()
        },
        7,
    );
    for number in 0..10 {
        here.try_send(&[number]).unwrap();
    }
    here.flush();
    let mut buf = [0; 8];
    let mut came: Vec<u8> =
        std::iter::from_fn(|| there.try_recv(&mut buf).map(|_| buf[0])).collect();
    assert_ne!(came, (0..10).collect::<Vec<_>>());
    came.sort_unstable();
    assert_eq!(came, (0..10).collect::<Vec<_>>());
}
