//! The order of a stock driver against the same device end: as many messages as were counted for Linux, and
//! every one answered well.

use crate::rig::{DeviceRig, FLUSH, block_device, limits, setup};
use virtio_msg::wire::{Request, Response};
use virtio_msg::{Action, DeviceInfo, Features, QueueSetup, Status, stock};

/// Descriptors of each queue.
const SIZE: u16 = 256;

fn queues(count: u16) -> Vec<QueueSetup> {
    (0..count).map(|index| setup(index, SIZE)).collect()
}

fn device(queues: u16) -> DeviceRig {
    let info = DeviceInfo {
        queue_max: vec![SIZE; queues.into()],
        ..block_device()
    };
    DeviceRig::with(info, limits())
}

#[test]
fn a_stock_driver_needs_29_33_and_51_messages_and_comes_up() {
    for (count, messages) in [(1, 29), (2, 33), (8, 51)] {
        let mut rig = device(count);
        let requests = stock::block_bring_up(Features::REQUIRED | FLUSH, &queues(count));
        assert_eq!(requests.len(), messages, "{count} queues");
        let mut status = Status::empty();
        for request in requests {
            let answer = rig.ask(request.clone());
            match (&request, answer.response()) {
                (Request::SetDeviceStatus { status: wrote }, Response::SetDeviceStatus { .. }) => {
                    status = Status::from_bits(*wrote).unwrap();
                    assert_eq!(answer.status(), status);
                }
                (Request::GetDeviceStatus, Response::GetDeviceStatus { .. }) => {
                    assert_eq!(answer.status(), status);
                }
                (Request::GetConfig { length, .. }, Response::GetConfig { data, .. }) => {
                    assert_eq!(u32::try_from(data.len()), Ok(*length), "{request:?}");
                }
                (_, response) => assert_eq!(response.msg_id(), request.msg_id()),
            }
        }
        assert_eq!(status.bits(), 0x0f);
        let indexes = (0..count).collect();
        assert!(rig.actions.contains(&Action::Start { queues: indexes }));
    }
}
