//! Byte-exact vectors of virtio-msg section 8, the order of checks of section 2.4, and totality.

use super::*;
use crate::features::Features;
use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const MAX: MaxMessageSize = MaxMessageSize::RECOMMENDED;

fn bytes(hex: &str) -> Vec<u8> {
    hex.split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

fn set_msg_size(wire: &mut [u8]) {
    let size = u16::try_from(wire.len()).unwrap();
    wire[6..8].copy_from_slice(&size.to_le_bytes());
}

fn request(token: u16, request: Request<'_>) -> Frame<'_> {
    Frame::Request {
        dev_num: DevNum(0),
        token: Token(token),
        request,
    }
}

fn response(token: u16, response: Response<'_>) -> Frame<'_> {
    Frame::Response {
        dev_num: DevNum(0),
        token: Token(token),
        response,
    }
}

fn event(event: Event<'_>) -> Frame<'_> {
    Frame::Event {
        dev_num: DevNum(0),
        event,
    }
}

fn bus(token: u16, message: BusMessage<'_>) -> Frame<'_> {
    Frame::Bus {
        token: Token(token),
        message,
    }
}

fn features(bits: u128, first: u32, count: u32) -> FeatureBlocks<'static> {
    FeatureBlocks::of(Features(bits), first, count)
}

const UUID: [u8; 16] = [
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f,
];

fn requests() -> Vec<(&'static str, Frame<'static>)> {
    vec![
        (
            "00 02 00 00 02 01 08 00",
            request(0x0102, Request::GetDeviceInfo),
        ),
        (
            "00 03 00 00 03 00 10 00 00 00 00 00 02 00 00 00",
            request(
                3,
                Request::GetDeviceFeatures {
                    block_index: 0,
                    num_blocks: 2,
                },
            ),
        ),
        (
            "00 04 00 00 04 00 14 00 01 00 00 00 01 00 00 00 03 00 00 00",
            request(
                4,
                Request::SetDriverFeatures {
                    block_index: 1,
                    blocks: features(3 << 32, 1, 1),
                },
            ),
        ),
        (
            "00 05 00 00 05 00 10 00 00 00 00 00 08 00 00 00",
            request(
                5,
                Request::GetConfig {
                    offset: 0,
                    length: 8,
                },
            ),
        ),
        (
            "00 06 00 00 06 00 15 00 00 00 00 00 20 00 00 00 01 00 00 00 01",
            request(
                6,
                Request::SetConfig {
                    generation: 0,
                    offset: 32,
                    data: Cow::Borrowed(&[1]),
                },
            ),
        ),
        (
            "00 08 00 00 07 00 0c 00 00 00 00 00",
            request(7, Request::SetDeviceStatus { status: 0 }),
        ),
        (
            "00 09 00 00 08 00 0c 00 09 00 00 00",
            request(8, Request::GetVqueue { index: 9 }),
        ),
        (
            "00 0a 00 00 09 00 30 00 00 00 00 00 01 00 00 00 00 01 00 00 00 00 00 00 00 00 01 00 00 00 00 00 \
             00 10 01 00 00 00 00 00 00 20 01 00 00 00 00 00",
            request(
                9,
                Request::SetVqueue(SetVqueue {
                    index: 0,
                    flags: 1,
                    size: 256,
                    descriptor_addr: 0x10000,
                    driver_addr: 0x11000,
                    device_addr: 0x12000,
                }),
            ),
        ),
    ]
}

fn responses() -> Vec<(&'static str, Frame<'static>)> {
    let config_verdict = |length| Response::SetConfig {
        generation: 7,
        offset: 32,
        length,
    };
    vec![
        (
            "01 02 00 00 02 01 34 00 02 00 00 00 58 4e 45 58 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f \
             02 00 00 00 3c 00 00 00 04 00 00 00 00 00 00 00 00 00 00 00",
            response(
                0x0102,
                Response::GetDeviceInfo(DeviceInfoResponse {
                    device_id: 2,
                    vendor_id: 0x5845_4e58,
                    device_uuid: UUID,
                    num_feature_blocks: 2,
                    config_size: 60,
                    max_virtqueues: 4,
                    admin_vq_start: 0,
                    admin_vq_count: 0,
                }),
            ),
        ),
        (
            "01 03 00 00 03 00 18 00 00 00 00 00 02 00 00 00 00 00 00 30 03 00 00 00",
            response(
                3,
                Response::GetDeviceFeatures {
                    block_index: 0,
                    blocks: features(0x3_3000_0000, 0, 2),
                },
            ),
        ),
        (
            "01 04 00 00 04 00 08 00",
            response(4, Response::SetDriverFeatures),
        ),
        (
            "01 05 00 00 05 00 1c 00 07 00 00 00 00 00 00 00 08 00 00 00 00 00 01 00 00 00 00 00",
            response(
                5,
                Response::GetConfig {
                    generation: 7,
                    offset: 0,
                    data: Cow::Borrowed(&[0, 0, 1, 0, 0, 0, 0, 0]),
                },
            ),
        ),
        (
            "01 06 00 00 06 00 14 00 07 00 00 00 20 00 00 00 01 00 00 00",
            response(6, config_verdict(1)),
        ),
        (
            "01 06 00 00 06 00 14 00 07 00 00 00 20 00 00 00 00 00 00 00",
            response(6, config_verdict(0)),
        ),
        (
            "01 08 00 00 07 00 0c 00 00 00 00 00",
            response(7, Response::SetDeviceStatus { status: 0 }),
        ),
        (
            "01 09 00 00 08 00 30 00 09 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 \
             00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
            response(
                8,
                Response::GetVqueue(VqueueResponse {
                    index: 9,
                    ..VqueueResponse::default()
                }),
            ),
        ),
        ("01 0a 00 00 09 00 08 00", response(9, Response::SetVqueue)),
        (
            "01 09 00 00 0a 00 30 00 00 00 00 00 00 01 00 00 00 01 00 00 01 00 00 00 00 00 01 00 00 00 00 00 \
             00 10 01 00 00 00 00 00 00 20 01 00 00 00 00 00",
            response(
                10,
                Response::GetVqueue(VqueueResponse {
                    index: 0,
                    max_size: 256,
                    cur_size: 256,
                    flags: VqueueResponse::ENABLED,
                    descriptor_addr: 0x10000,
                    driver_addr: 0x11000,
                    device_addr: 0x12000,
                }),
            ),
        ),
        (
            "01 0c 00 00 0b 00 20 00 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
            response(
                11,
                Response::GetShm {
                    shmid: 1,
                    length: 0,
                    address: 0,
                },
            ),
        ),
    ]
}

fn events_and_bus() -> Vec<(&'static str, Frame<'static>)> {
    let presence = |state| BusMessage::EventDevice {
        dev_num: DevNum(3),
        state,
    };
    vec![
        (
            "00 40 00 00 00 00 18 00 0f 00 00 00 08 00 00 00 00 00 00 00 00 00 00 00",
            event(Event::Config(EventConfig {
                status: 0x0f,
                generation: 8,
                offset: 0,
                length: 0,
                data: Cow::Borrowed(&[]),
            })),
        ),
        (
            "00 41 00 00 00 00 10 00 01 00 00 00 00 00 00 00",
            event(Event::Avail(EventAvail {
                index: 1,
                next_offset: 0,
            })),
        ),
        (
            "00 41 00 00 00 00 10 00 01 00 00 00 05 00 00 80",
            event(Event::Avail(EventAvail {
                index: 1,
                next_offset: EventAvail::encode_next(0x8005),
            })),
        ),
        (
            "00 42 00 00 00 00 0c 00 01 00 00 00",
            event(Event::Used { index: 1 }),
        ),
        (
            "02 02 00 00 02 00 0c 00 00 00 10 00",
            bus(
                2,
                BusMessage::GetDevices {
                    offset: 0,
                    count: 16,
                },
            ),
        ),
        (
            "03 02 00 00 02 00 10 00 00 00 10 00 00 00 25 00",
            bus(2, devices_0_2_5()),
        ),
        (
            "02 03 00 00 0c 00 0c 00 ef be ad de",
            bus(12, BusMessage::Ping { data: 0xdead_beef }),
        ),
        (
            "03 03 00 00 0c 00 0c 00 ef be ad de",
            bus(12, BusMessage::Pong { data: 0xdead_beef }),
        ),
        (
            "02 40 00 00 00 00 0c 00 03 00 01 00",
            bus(0, presence(Presence::ADDED)),
        ),
        (
            "02 40 00 00 00 00 0c 00 03 00 02 00",
            bus(0, presence(Presence::REMOVED)),
        ),
    ]
}

fn devices_0_2_5() -> BusMessage<'static> {
    BusMessage::DeviceWindow(DeviceWindow {
        offset: 0,
        count: 16,
        next_offset: 0,
        bitmap: Cow::Borrowed(&[0x25, 0]),
    })
}

#[test]
fn d01_v02_every_vector_parses_and_emits() {
    for (hex, frame) in [requests(), responses(), events_and_bus()].concat() {
        let wire = bytes(hex);
        assert_eq!(Frame::parse(&wire, MAX), Ok(frame.clone()), "{hex}");
        let mut buf = [0xaa; 64];
        assert_eq!(frame.wire_len(), wire.len());
        assert_eq!(frame.emit(&mut buf), Some(wire.len()));
        assert_eq!(buf[..wire.len()], wire, "{frame:?}");
        assert!(
            buf[wire.len()..].iter().all(|byte| *byte == 0xaa),
            "wrote past the frame"
        );
    }
}

#[test]
fn b37_both_orders_of_a_device_window_are_read() {
    let second_order = bytes("03 02 00 00 02 00 10 00 00 00 00 00 10 00 25 00");
    assert_eq!(
        Frame::parse(&second_order, MAX),
        Ok(bus(2, devices_0_2_5()))
    );

    // Exact numbers in place of multiples of 8: devices 0 to 10 of 100, next present number 12.
    for fields in ["0b 00 0c 00", "0c 00 0b 00"] {
        let wire = bytes(&alloc::format!(
            "03 02 00 00 02 00 10 00 00 00 {fields} 01 04"
        ));
        let Ok(Frame::Bus {
            message: BusMessage::DeviceWindow(window),
            ..
        }) = Frame::parse(&wire, MAX)
        else {
            panic!("not a window");
        };
        assert_eq!((window.count, window.next_offset), (11, 12));
        assert_eq!(
            window.devices().collect::<Vec<_>>(),
            [DevNum(0), DevNum(10)]
        );
    }
}

#[test]
fn a_window_whose_bitmap_fits_neither_field_is_malformed() {
    let wire = bytes("03 02 00 00 02 00 10 00 00 00 40 00 80 00 25 00");
    assert_eq!(Frame::parse(&wire, MAX), Err(WireError::WindowSize));
}

#[test]
fn a_window_at_the_end_of_the_number_space_does_not_wrap() {
    let bitmap = Cow::Owned(vec![0xff; 2]);
    let window = DeviceWindow {
        offset: 65528,
        count: 16,
        next_offset: 0,
        bitmap,
    };
    assert_eq!(window.devices().last(), Some(DevNum(65535)));
    assert_eq!(window.devices().count(), 8);
}

#[test]
fn the_frame_is_checked_before_the_message() {
    let parse = |hex: &str| Frame::parse(&bytes(hex), MAX).unwrap_err();
    // Each row is also wrong in what the next rows check.
    assert_eq!(parse("03 40 01 00 00 00 08"), WireError::ShortFrame(7));
    assert_eq!(parse("03 40 01 00 00 00 07 00"), WireError::BadSize(7));
    assert_eq!(parse("03 40 01 00 00 00 09 00"), WireError::BadSize(9));
    assert_eq!(
        parse("03 40 01 00 00 00 08 00"),
        WireError::BusDevNum(DevNum(1))
    );
    assert_eq!(
        parse("03 40 00 00 00 00 08 00"),
        WireError::EventResponse(MsgId::EVENT_DEVICE)
    );
    assert_eq!(
        parse("02 41 00 00 00 00 08 00"),
        WireError::UnknownId(MsgId(0x41))
    );
    assert_eq!(parse("02 40 00 00 00 00 08 00"), WireError::ShortPayload);
}

#[test]
fn b02_a_frame_above_the_maximum_is_not_read() {
    let frame = request(
        1,
        Request::SetConfig {
            generation: 0,
            offset: 0,
            data: Cow::Owned(vec![7; 33]),
        },
    );
    let mut buf = [0; 64];
    let len = frame.emit(&mut buf).unwrap();
    assert_eq!(len, 53);
    assert_eq!(
        Frame::parse(&buf[..len], MaxMessageSize::MIN),
        Err(WireError::BadSize(53))
    );
    assert_eq!(
        Frame::parse(&buf[..len], MaxMessageSize::new(53).unwrap()),
        Ok(frame)
    );
}

#[test]
fn v03_b10_reserved_type_bits_are_ignored_and_never_sent() {
    let wire = bytes("fc 02 00 00 02 01 08 00");
    let frame = Frame::parse(&wire, MAX).unwrap();
    assert_eq!(frame, request(0x0102, Request::GetDeviceInfo));
    let mut sent = [0xaa; 8];
    frame.emit(&mut sent).unwrap();
    assert_eq!(sent[0], 0);
}

#[test]
fn v07_a_message_one_byte_short_is_malformed() {
    for (hex, frame) in [requests(), responses(), events_and_bus()].concat() {
        let mut wire = bytes(hex);
        wire.pop();
        if wire.len() < HEADER_LEN {
            continue;
        }
        set_msg_size(&mut wire);
        assert!(
            Frame::parse(&wire, MAX).is_err(),
            "{frame:?} less a byte was accepted"
        );
    }
}

#[test]
fn v07_unknown_transport_ids_are_unsupported() {
    let unknown = [0x00, 0x01]
        .into_iter()
        .chain(0x0d..0x40)
        .chain(0x43..=0xff);
    for id in unknown {
        let wire = [0, id, 0, 0, 0, 0, 8, 0];
        assert_eq!(
            Frame::parse(&wire, MAX),
            Err(WireError::UnknownId(MsgId(id)))
        );
    }
}

#[test]
fn d45_events_have_an_exact_size_and_requests_may_be_padded() {
    for (hex, frame) in [requests(), events_and_bus()].concat() {
        let mut wire = bytes(hex);
        wire.push(0);
        set_msg_size(&mut wire);
        let parsed = Frame::parse(&wire, MAX);
        match frame {
            Frame::Request { .. } => assert_eq!(parsed, Ok(frame)),
            Frame::Event { .. } => assert_eq!(parsed, Err(WireError::EventSize)),
            Frame::Response { .. } | Frame::Bus { .. } => {}
        }
    }
}

#[test]
fn d47_the_three_shapes_of_event_config_and_no_fourth() {
    let shape = |length: u8, data: &str| {
        let hex =
            alloc::format!("0f 00 00 00 01 00 00 00 00 00 00 00 {length:02x} 00 00 00 {data}");
        let payload = bytes(&hex);
        let mut wire = bytes("00 40 00 00 00 00");
        wire.extend(
            u16::try_from(HEADER_LEN + payload.len())
                .unwrap()
                .to_le_bytes(),
        );
        wire.extend(payload);
        Frame::parse(&wire, MAX).map(|_| ())
    };
    assert_eq!(shape(0, ""), Ok(()));
    assert_eq!(shape(3, "01 02 03"), Ok(()));
    assert_eq!(shape(3, ""), Ok(()));
    assert_eq!(shape(8, "01 02 03"), Err(WireError::EventSize));
    assert_eq!(shape(0, "01"), Err(WireError::EventSize));
}

#[test]
fn private_bus_messages_pass_through_whole() {
    for (kind, id) in [(2, 0x81), (3, 0x81), (2, 0xc1)] {
        let wire = [kind, id, 0, 0, 0, 0, 10, 0, 5, 6];
        let frame = Frame::parse(&wire, MAX).unwrap();
        let payload = Cow::Borrowed(&[5, 6][..]);
        assert_eq!(
            frame,
            bus(
                0,
                BusMessage::Private {
                    msg_id: MsgId(id),
                    response: kind == 3,
                    payload
                }
            )
        );
        let mut buf = [0; 10];
        assert_eq!(frame.emit(&mut buf), Some(10));
        assert_eq!(buf, wire);
    }
}

#[test]
fn a_frame_that_does_not_fit_is_not_emitted() {
    let frame = request(1, Request::GetVqueue { index: 0 });
    let mut short = [0xaa; 11];
    assert_eq!(frame.emit(&mut short), None);
    assert_eq!(short, [0xaa; 11]);

    let data = Cow::Owned(vec![0; 65536]);
    let long = request(
        1,
        Request::SetConfig {
            generation: 0,
            offset: 0,
            data,
        },
    );
    assert_eq!(long.emit(&mut vec![0; 70000]), None);
}

#[test]
fn b03_d09_the_maximum_message_size_is_52_to_65535() {
    for bad in [0, 44, 51, 65536, u32::MAX] {
        assert_eq!(MaxMessageSize::new(bad), Err(BadMessageSize(bad)));
    }
    for good in [52u16, 264, 65535] {
        assert_eq!(
            MaxMessageSize::new(good.into()).map(MaxMessageSize::bytes),
            Ok(good.into())
        );
    }
}

proptest! {
    #[test]
    fn v63_any_bytes_are_a_frame_or_an_error(wire in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Frame::parse(&wire, MaxMessageSize::new(65535).unwrap());
    }

    /// Headers that are mostly right, so that the payload parsers are reached.
    #[test]
    fn what_parses_emits_to_the_same(
        kind in 0u8..4,
        id in prop_oneof![0u8..0x10, 0x40u8..0x44, any::<u8>()],
        dev_num in prop_oneof![Just(0u16), any::<u16>()],
        token: u16,
        small in prop::collection::vec(0u8..9, 0..48),
        cut in 0usize..3,
    ) {
        let size = HEADER_LEN + small.len();
        let mut wire = vec![kind, id];
        wire.extend(dev_num.to_le_bytes());
        wire.extend(token.to_le_bytes());
        wire.extend(u16::try_from(size).unwrap().to_le_bytes());
        wire.extend(small);
        wire.truncate(wire.len() - cut.min(wire.len()));
        if let Ok(frame) = Frame::parse(&wire, MAX) {
            let mut buf = [0; 64];
            let len = frame.emit(&mut buf).unwrap();
            prop_assert_eq!(len, frame.wire_len());
            prop_assert!(len <= size, "emitted more than was read");
            prop_assert_eq!(Frame::parse(&buf[..len], MAX), Ok(frame));
        }
    }
}
