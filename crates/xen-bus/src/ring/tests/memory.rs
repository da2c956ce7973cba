//! What lies where in the memory, and how much of a slot is copied.

use super::*;

#[test]
fn header_words_and_slots_lie_where_the_binding_says() {
    let mut pair = Pair::new();
    pair.frontend.try_send(&frame(1, 12)).unwrap();
    pair.backend.try_send(&frame(2, 8)).unwrap();
    assert!(pair.frontend.flush() && pair.backend.flush());
    assert!(recv(&mut pair.backend).is_some() && recv(&mut pair.frontend).is_some());
    let _ = (pair.backend.consume(), pair.frontend.consume());
    pair.poke(Word::WakeAt(Direction::ToDevice), 0x11);
    pair.poke(Word::SpaceAt(Direction::ToDevice), 0x22);
    pair.poke(Word::WakeAt(Direction::ToDriver), 0x33);
    pair.poke(Word::SpaceAt(Direction::ToDriver), 0x44);

    let mut expected = vec![0; PAGE_SIZE];
    expected[..20].copy_from_slice(b"XVMB\x01\0\0\0\x40\x01\0\0\x04\0\0\0\x78\x56\x34\x12");
    for (offset, words) in [
        (64, [1, 0, 0, 0, 0x22]),
        (128, [1, 0, 0, 0, 0x11]),
        (192, [1, 0, 0, 0, 0x44]),
        (256, [1, 0, 0, 0, 0x33]),
    ] {
        expected[offset..offset + 5].copy_from_slice(&words);
    }
    expected[320..332].copy_from_slice(b"\0\0\0\0\x01\0\x0c\0\xa5\xa5\xa5\xa5");
    expected[320 + 4 * 320..][..8].copy_from_slice(b"\0\0\0\0\x02\0\x08\0");
    let mut found = vec![0; PAGE_SIZE];
    pair.memory().read(0, &mut found).unwrap();
    for (line, (found, expected)) in found.chunks(64).zip(expected.chunks(64)).enumerate() {
        assert_eq!(found, expected, "line {line}");
    }
}

#[test]
fn memory_that_was_used_before_is_cleared() {
    let area = Area::anonymous(PAGE_SIZE).unwrap();
    let memory = area.range(0, 4096, Access::Write).unwrap();
    memory.write(0, &[0xff; PAGE_SIZE]).unwrap();
    let _ring = MessageRing::create(window(&area, Access::Write), layout(), SESSION).unwrap();
    let mut found = vec![0; PAGE_SIZE];
    memory.read(0, &mut found).unwrap();
    assert!(found[20..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_header_that_contradicts_the_keys_is_refused() {
    let pair = Pair::new();
    for (offset, field, expected) in [
        (0, "magic", RING_MAGIC),
        (4, "layout", 1),
        (8, "stride", 320),
        (12, "slots", 4),
        (16, "session", SESSION.0),
    ] {
        let order = std::sync::atomic::Ordering::Relaxed;
        pair.memory().store_u32(offset, 77, order).unwrap();
        let ring = MessageRing::attach(window(&pair.area, Access::Write), layout(), SESSION);
        assert_eq!(
            ring.unwrap_err(),
            OpenError::Header {
                field,
                expected,
                got: 77
            }
        );
        pair.memory().store_u32(offset, expected, order).unwrap();
    }
}

#[test]
fn a_window_that_is_not_the_ring_is_refused() {
    let area = Area::anonymous(2 * PAGE_SIZE).unwrap();
    for (offset, len, access) in [
        (0, 4096, Access::Read),
        (0, 4095, Access::Write),
        (0, 8192, Access::Write),
        (2, 4096, Access::Write),
    ] {
        let window = area.lease().window(offset, len, access).unwrap();
        let error = MessageRing::create(window, layout(), SESSION).unwrap_err();
        assert!(
            matches!(error, OpenError::Window { .. }),
            "{offset} {len} {access:?}"
        );
    }
}

#[test]
fn the_frames_own_size_says_how_much_is_copied() {
    for (msg_size, len) in [(0, 8), (7, 8), (8, 8), (12, 12), (264, 264), (265, 264)]
        .into_iter()
        .chain([(u16::MAX, 264)])
    {
        let mut pair = Pair::new();
        let mut lying = frame(1, 264);
        lying[6..8].copy_from_slice(&msg_size.to_le_bytes());
        pair.frontend.try_send(&lying).unwrap();
        let _ = pair.frontend.flush();
        assert_eq!(recv(&mut pair.backend).unwrap(), lying[..len], "{msg_size}");
    }
}

#[test]
fn a_frame_is_cut_to_the_callers_buffer() {
    let mut pair = Pair::new();
    for len in [0, 7, 8, 20] {
        pair.frontend.try_send(&frame(1, 64)).unwrap();
        let _ = pair.frontend.flush();
        let mut buf = vec![0; len];
        let cut = if len < 8 { 0 } else { len };
        assert_eq!(pair.backend.try_recv(&mut buf), Ok(Some(cut)));
        assert_eq!(buf[..cut], frame(1, 64)[..cut]);
        let _ = pair.backend.consume();
    }
}

#[test]
fn a_frame_longer_than_the_message_size_is_not_sent() {
    let mut pair = Pair::new();
    assert_eq!(
        pair.frontend.try_send(&[0; 265]),
        Err(SendError::TooLong { len: 265, max: 264 })
    );
}
