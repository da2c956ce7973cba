//! Export and import of a device queue (R-21 as far as it concerns the ring).

use proptest::prelude::*;
use virtqueue::{Chain, DeviceQueue, QueueState, SetupError, StateError};

use crate::rig::{BASE, PLAIN, Rig, WITH_EVENT_IDX, WRITE};

fn import(rig: &Rig, state: &QueueState) -> Result<DeviceQueue, SetupError> {
    DeviceQueue::from_state(&rig.space, rig.layout, WITH_EVENT_IDX, state)
}

fn rig() -> Rig {
    let rig = Rig::new(4);
    for head in 0..4 {
        rig.descriptors(head, &[(BASE, 1, WRITE, 0)]);
    }
    rig
}

#[test]
fn imported_queue_returns_what_the_old_one_took() {
    let rig = rig();
    let mut old = rig.device(WITH_EVENT_IDX);
    let mut chain = Chain::new();
    rig.offer(&[3, 1, 0]);
    assert!(old.pop(&rig.space, &mut chain).unwrap());
    assert!(old.pop(&rig.space, &mut chain).unwrap());
    let state = old.state();
    assert_eq!(
        state,
        QueueState {
            size: 4,
            next_avail: 2,
            next_used: 0,
            in_flight: vec![1, 3]
        }
    );

    let mut new = import(&rig, &state).unwrap();
    assert_eq!(new.state(), state);
    new.push_used(1, 1).unwrap();
    assert!(new.pop(&rig.space, &mut chain).unwrap());
    assert_eq!(chain.head(), 0);
    assert!(!new.pop(&rig.space, &mut chain).unwrap());
    new.push_used(3, 1).unwrap();
    new.push_used(0, 1).unwrap();
    assert!(new.publish());
    assert_eq!(rig.used_idx(), 3);
}

#[test]
fn what_the_old_process_did_not_publish_the_new_one_does() {
    let rig = rig();
    let mut old = rig.device(WITH_EVENT_IDX);
    rig.offer(&[2]);
    assert!(old.pop(&rig.space, &mut Chain::new()).unwrap());
    old.push_used(2, 1).unwrap();
    let state = old.state();
    drop(old);
    assert_eq!(rig.used_idx(), 0);

    rig.set_used_event(0x4000);
    let mut new = import(&rig, &state).unwrap();
    assert!(new.publish(), "once, whatever the driver's event says");
    assert_eq!(rig.used_idx(), 1);
    assert!(!new.publish());
}

#[test]
fn head_that_is_in_flight_by_the_state_faults_when_given_again() {
    let rig = rig();
    let state = QueueState {
        size: 4,
        next_avail: 1,
        next_used: 0,
        in_flight: vec![2],
    };
    let mut queue = import(&rig, &state).unwrap();
    rig.offer(&[2, 2]);
    assert!(queue.pop(&rig.space, &mut Chain::new()).is_err());
}

#[test]
fn states_that_describe_no_queue_are_refused() {
    let rig = rig();
    let good = QueueState {
        size: 4,
        next_avail: 1,
        next_used: 0xffff,
        in_flight: vec![0, 3],
    };
    import(&rig, &good).unwrap();
    for (bad, error) in [
        (
            QueueState {
                size: 8,
                ..good.clone()
            },
            StateError::Size {
                state: 8,
                layout: 4,
            },
        ),
        (
            QueueState {
                in_flight: vec![0, 4],
                ..good.clone()
            },
            StateError::HeadOutOfRange { head: 4, size: 4 },
        ),
        (
            QueueState {
                in_flight: vec![3, 3],
                ..good.clone()
            },
            StateError::HeadTwice { head: 3 },
        ),
        (
            QueueState {
                in_flight: vec![3],
                ..good.clone()
            },
            StateError::Count {
                indexes: 2,
                heads: 1,
            },
        ),
        (
            QueueState {
                next_used: 2,
                ..good.clone()
            },
            StateError::Count {
                indexes: 0xffff,
                heads: 2,
            },
        ),
    ] {
        assert_eq!(import(&rig, &bad).unwrap_err(), SetupError::State(error));
    }
}

proptest! {
    /// Any import either fails or gives a queue that exports the same and never panics.
    #[test]
    fn imports_are_total(
        size in prop_oneof![Just(4u16), any::<u16>()],
        next_avail in any::<u16>(),
        ahead in 0u16..6,
        in_flight in proptest::collection::vec(0u16..5, 0..6),
    ) {
        let rig = rig();
        let mut state = QueueState {
            size, next_avail, next_used: next_avail.wrapping_sub(ahead), in_flight,
        };
        let queue = DeviceQueue::from_state(&rig.space, rig.layout, PLAIN, &state);
        if let Ok(mut queue) = queue {
            state.in_flight.sort_unstable();
            prop_assert_eq!(queue.state(), state);
            let _ = queue.pop(&rig.space, &mut Chain::new());
            queue.publish();
        }
    }
}
