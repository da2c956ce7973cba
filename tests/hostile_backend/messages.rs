//! Messages that are none, that nobody asked for, or that answer with nonsense (virtio-msg sections
//! 2 and 5). What cannot be used is discarded; an answer that breaks a rule ends the device, and the
//! user sees `bus 0 device 0: …` with the rule; one that never comes is
//! `bus 0: no answer of the backend in domain 0 within …`.

use frontend_shim::Disk;
use tests::{Lies, RAW_SECTORS, Random};
use virtio_msg::wire::{
    BusMessage, DevNum, DeviceWindow, Event, EventConfig, Frame, MsgId, Presence, Response, Token,
};

use crate::stage::{Stage, assert_says, refused};

/// Changes answers of the device.
struct Answers<F>(F);

impl<F: FnMut(&mut Response<'_>)> Lies for Answers<F> {
    fn frame(&mut self, parsed: &Frame<'_>, bytes: &[u8]) -> Vec<Vec<u8>> {
        let Frame::Response {
            dev_num,
            token,
            response,
        } = parsed
        else {
            return vec![bytes.to_vec()];
        };
        let mut response = response.clone();
        (self.0)(&mut response);
        vec![emit(&Frame::Response {
            dev_num: *dev_num,
            token: *token,
            response,
        })]
    }
}

/// Sends more than was asked for.
struct Beside<F>(F);

impl<F: FnMut() -> Vec<Vec<u8>>> Lies for Beside<F> {
    fn frame(&mut self, _: &Frame<'_>, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = (self.0)();
        frames.push(bytes.to_vec());
        frames
    }
}

/// Says nothing.
struct Silent;

impl Lies for Silent {
    fn frame(&mut self, _: &Frame<'_>, _: &[u8]) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

#[test]
fn device_info_with_absurd_numbers_ends_the_device() {
    type Lie = fn(&mut virtio_msg::wire::DeviceInfoResponse);
    let rows: [(Lie, &str); 5] = [
        (|info| info.device_id = 0, "device"),
        (|info| info.max_virtqueues = u32::MAX, "queue"),
        (|info| info.admin_vq_count = u32::MAX, "queue"),
        (|info| info.num_feature_blocks = 0, "VERSION_1"),
        (|info| info.max_virtqueues = 0, "queue"),
    ];
    for (lie, word) in rows {
        let lies = Answers(move |response: &mut Response<'_>| {
            if let Response::GetDeviceInfo(info) = response {
                lie(info);
            }
        });
        let error = Stage::new().against(lies, refused);
        assert_says(&error, &["bus 0 device 0: ", word]);
    }
}

#[test]
fn numbers_that_are_only_large_are_cut_to_what_a_driver_knows() {
    let lies = Answers(|response: &mut Response<'_>| match response {
        Response::GetDeviceInfo(info) => {
            info.vendor_id = u32::MAX;
            info.max_virtqueues = 1 << 16;
        }
        Response::GetVqueue(queue) => queue.max_size = u32::MAX,
        _ => {}
    });
    Stage::new().against(lies, |mut frontend| {
        let disk = Disk::open(&mut frontend, 0).unwrap();
        disk.close(&mut frontend).unwrap();
    });
}

#[test]
fn configuration_space_of_another_length_ends_the_device() {
    for len in [0, 1, 59, 61, 200] {
        let lies = Answers(move |response: &mut Response<'_>| {
            if let Response::GetConfig { data, .. } = response {
                *data = vec![0xff; len].into();
            }
        });
        let error = Stage::new().against(lies, refused);
        assert_says(&error, &["bus 0 device 0: "]);
    }
    let lies = Answers(|response: &mut Response<'_>| {
        if let Response::GetDeviceInfo(info) = response {
            info.config_size = 3;
        }
    });
    let error = Stage::new().against(lies, refused);
    assert_says(&error, &["bus 0 device 0: "]);
}

#[test]
fn configuration_space_that_never_stands_still_ends_the_device() {
    let mut turn = 0;
    let lies = Answers(move |response: &mut Response<'_>| {
        if let Response::GetConfig {
            generation, offset, ..
        } = response
        {
            turn += 1;
            (*generation, *offset) = (turn, *offset ^ 4);
        }
    });
    let error = Stage::new().against(lies, refused);
    assert_says(&error, &["bus 0 device 0: "]);
}

#[test]
fn a_queue_of_an_absurd_size_ends_the_device() {
    for size in [0, 3] {
        let lies = Answers(move |response: &mut Response<'_>| {
            if let Response::GetVqueue(queue) = response {
                queue.max_size = size;
            }
        });
        let error = Stage::new().against(lies, refused);
        assert_says(&error, &["bus 0 device 0: "]);
    }
}

#[test]
fn a_status_that_does_not_stand_ends_the_device() {
    for status in [0x40, 0x80, 3] {
        let lies = Answers(move |response: &mut Response<'_>| {
            if let Response::SetDeviceStatus { status: got } = response
                && *got & 8 != 0
            {
                *got = status;
            }
        });
        let error = Stage::new().against(lies, refused);
        assert_says(&error, &["bus 0 device 0: "]);
    }
}

#[test]
fn frames_that_nobody_asked_for_are_discarded() {
    let mut random = Random::seeded(5);
    let lies = Beside(move || {
        let byte = |random: &mut Random| u8::try_from(random.below(256)).unwrap();
        let len = 1 + usize::try_from(random.below(264)).unwrap();
        let noise: Vec<u8> = (0..len).map(|_| byte(&mut random)).collect();
        let dev_num = DevNum(u16::try_from(random.below(1 << 16)).unwrap());
        let token = Token(u16::try_from(random.below(1 << 16)).unwrap() | 0x8000);
        vec![
            // A size that lies, an id that is none, and bytes.
            [&[0xff; 6][..], &[0xff, 0xff], &noise[..len.min(200)]].concat(),
            noise,
            emit(&Frame::Response {
                dev_num,
                token,
                response: Response::GetDeviceStatus { status: 15 },
            }),
            emit(&Frame::Event {
                dev_num,
                event: Event::Used { index: u32::MAX },
            }),
            emit(&Frame::Event {
                dev_num: DevNum(0),
                event: Event::Config(EventConfig {
                    status: 0,
                    generation: 9,
                    offset: u32::MAX,
                    length: u32::MAX,
                    data: (&[]).into(),
                }),
            }),
            emit(&Frame::Bus {
                token: Token(0),
                message: BusMessage::Private {
                    msg_id: MsgId(0xc1),
                    response: false,
                    payload: (&[9, 9, 9]).into(),
                },
            }),
        ]
    });
    let discarded = Stage::new().against(lies, |mut frontend| {
        let disk = Disk::open(&mut frontend, 0).unwrap();
        assert_eq!(disk.bytes(), RAW_SECTORS * 512);
        disk.close(&mut frontend).unwrap();
        frontend.link().unwrap().bus().discarded()
    });
    assert_ne!(discarded, 0);
}

#[test]
fn a_thousand_devices_that_come_and_go_cost_one_mark_each() {
    let mut next = 0;
    let lies = Beside(move || {
        (0..4)
            .map(|_| {
                next = (next + 1) % 1000;
                let state = [Presence::ADDED, Presence::REMOVED][next / 2 % 2];
                emit(&Frame::Bus {
                    token: Token(0),
                    message: BusMessage::EventDevice {
                        dev_num: DevNum(u16::try_from(next).unwrap() + 1),
                        state,
                    },
                })
            })
            .collect()
    });
    let found = Stage::new().against(lies, |mut frontend| {
        for _ in 0..200 {
            frontend.devices().unwrap();
        }
        frontend.devices().unwrap()
    });
    assert!(found.contains(&0), "{found:?}");
    assert!(found.len() <= 1001, "{} devices", found.len());
}

#[test]
fn an_enumeration_that_goes_round_ends_the_connection() {
    struct Round;
    impl Lies for Round {
        fn frame(&mut self, parsed: &Frame<'_>, bytes: &[u8]) -> Vec<Vec<u8>> {
            let Frame::Bus {
                token,
                message: BusMessage::DeviceWindow(window),
            } = parsed
            else {
                return vec![bytes.to_vec()];
            };
            let window = DeviceWindow {
                next_offset: if window.offset == 0 { 64 } else { 8 },
                ..window.clone()
            };
            vec![emit(&Frame::Bus {
                token: *token,
                message: BusMessage::DeviceWindow(window),
            })]
        }
    }
    let error = Stage::new().against(Round, |mut frontend| {
        frontend.devices().unwrap_err().to_string()
    });
    assert_says(&error, &["bus 0", "the connection ended"]);
}

#[test]
fn a_backend_that_never_answers_is_given_up() {
    let error = Stage::new().against(Silent, |mut frontend| {
        frontend.devices().unwrap_err().to_string()
    });
    assert_says(&error, &["bus 0", "domain 0", "no answer", "GET_DEVICES"]);
    let error = Stage::new().against(Silent, |mut frontend| {
        frontend.share_pool().unwrap_err().to_string()
    });
    assert_says(&error, &["bus 0", "domain 0", "no answer", "AREA_SHARE"]);
}

#[test]
fn a_device_that_never_answers_is_given_up() {
    struct NoResponses;
    impl Lies for NoResponses {
        fn frame(&mut self, parsed: &Frame<'_>, bytes: &[u8]) -> Vec<Vec<u8>> {
            match parsed {
                Frame::Response { .. } => Vec::new(),
                _ => vec![bytes.to_vec()],
            }
        }
    }
    let error = Stage::new().against(NoResponses, refused);
    assert_says(&error, &["device 0"]);
}

fn emit(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = [0; 264];
    let len = frame.emit(&mut bytes).expect("room in a message");
    bytes[..len].to_vec()
}
