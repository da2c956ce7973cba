//! The C header: its constants against the code, its structures and macros in the hands of a
//! compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use xen_bus::directory::REFS_PER_DIRECTORY;
use xen_bus::handshake::XenbusState;
use xen_bus::keys::{
    BUS_VERSION, BackendOffer, DEFAULT_MAX_AREA_PAGES, DEFAULT_MAX_AREAS, FrontendKeys, REVISION,
    ring_ref_key,
};
use xen_bus::layout::{
    DEFAULT_MESSAGE_SIZE, Direction, MAX_MESSAGE_SIZE, MAX_RING_PAGE_ORDER, MAX_RING_PAGES,
    MIN_MESSAGE_SIZE, MIN_SLOTS, RingLayout,
};
use xen_bus::messages::{
    AREA_SHARE, AREA_UNSHARE, AreaResult, MessageError, PrivateMessage, REMOVE_REQUEST, ShareFlags,
};
use xen_bus::ring::{RING_MAGIC, RING_VERSION, Word};
use xen_types::{AreaId, BusAddr, Form, GrantRef, PAGE_SIZE};

use crate::tables::{need_vectors, number, ring_row, row_of, table};

const HEADER: &str = include_str!("../../../../docs/virtio-msg-xen.h");

#[test]
fn the_header_has_the_constants_of_the_code() {
    let mut defined = defines();
    for (name, expected) in constants() {
        let name = format!("XEN_VMSG_{name}");
        let value = defined.remove(&name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(number(&value), expected, "{name}");
    }
    let mut keys: BTreeSet<_> = BackendOffer::KEYS.into_iter().collect();
    keys.extend(FrontendKeys::KEYS);
    for (name, value) in std::mem::take(&mut defined) {
        if let Some(key) = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
        {
            let known = keys.remove(key) || key.replace("%u", "7") == ring_ref_key(7);
            assert!(known && name.starts_with("XEN_VMSG_KEY_"), "{name}");
        } else if name.starts_with("XEN_VMSG_RESERVED_") {
            let id = u8::try_from(number(&value)).unwrap();
            let unknown = |response| PrivateMessage::parse(id, response, &[]).is_err();
            assert!(unknown(false) && unknown(true), "{name}");
            row_of(&table("message ids"), 0, &value);
        } else {
            panic!("nothing in the code is known to be {name}");
        }
    }
    assert!(keys.is_empty(), "the header lacks {keys:?}");
}

#[test]
fn a_c_compiler_takes_the_header_and_its_macros_agree_with_the_tables() {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut command = Command::new(&compiler);
    command
        .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"])
        // NEED of constants is a comparison that never holds, now and then
        .arg("-Wno-type-limits")
        .args(["-fsyntax-only", "-x", "c", "-I"])
        .arg(docs)
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // straight to the descriptor: the harness keeps what a passing test prints
            let said = format!("SKIPPED: virtio-msg-xen.h was not compiled: {compiler}: {error}\n");
            std::io::stderr().write_all(said.as_bytes()).unwrap();
            return;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(c_assertions().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// A program of assertions alone: the header's structures and macros against code and tables.
fn c_assertions() -> String {
    let mut out = String::from("#include <stddef.h>\n#include \"virtio-msg-xen.h\"\n");
    let mut claim = |claim: String| {
        out.push_str(&format!("_Static_assert({claim}, \"\");\n"));
    };
    for (structure, len) in [
        ("area_share", payload_len(AREA_SHARE, false)),
        ("area_unshare", payload_len(AREA_UNSHARE, false)),
        ("area_reply", payload_len(AREA_SHARE, true)),
        ("area_reply", payload_len(AREA_UNSHARE, true)),
        ("remove_request", payload_len(REMOVE_REQUEST, false)),
        ("directory", PAGE_SIZE),
        ("ring", 320),
    ] {
        claim(format!("sizeof(struct xen_vmsg_{structure}) == {len}"));
    }
    for (name, value) in constants() {
        if let Some(field) = name
            .strip_prefix("OFF_")
            .filter(|name| *name != "SLOT_AREA")
        {
            let field = field.to_lowercase();
            claim(format!(
                "offsetof(struct xen_vmsg_ring, {field}) == {value}"
            ));
        }
    }
    for (field, offset) in [("area_id", 0), ("flags", 2), ("page_count", 4), ("gref", 8)] {
        claim(format!(
            "offsetof(struct xen_vmsg_area_share, {field}) == {offset}"
        ));
    }
    claim("offsetof(struct xen_vmsg_area_reply, result) == 2".into());
    claim("offsetof(struct xen_vmsg_directory, gref) == 4".into());
    for (new, old, at, need) in need_vectors() {
        let need = u8::from(need);
        claim(format!(
            "XEN_VMSG_NEED({new:#x}, {old:#x}, {at:#x}) == {need}"
        ));
    }
    for order in 0..=MAX_RING_PAGE_ORDER {
        // both sides of every place where the stride changes
        for size in (MIN_MESSAGE_SIZE..=MAX_MESSAGE_SIZE).filter(|size| size % 64 < 2) {
            let layout = RingLayout::new(order, size.into());
            let slots = layout.map_or(0, |layout| layout.slots());
            claim(format!("XEN_VMSG_SLOTS({order}, {size}) == {slots}"));
            let Ok(layout) = layout else { continue };
            let stride = layout.stride();
            claim(format!("XEN_VMSG_STRIDE({size}) == {stride}"));
            for index in [0, slots - 1, slots, u32::MAX] {
                let at = |direction| layout.slot_offset(direction, index);
                for (way, offset) in [
                    ("DEVICE", at(Direction::ToDevice)),
                    ("DRIVER", at(Direction::ToDriver)),
                ] {
                    claim(format!(
                        "XEN_VMSG_TO_{way}_SLOT({index:#x}, {stride}u, {slots}u) == {offset}"
                    ));
                }
            }
        }
    }
    for row in table("addresses") {
        let call = row[1]
            .replace("area ", "AREA_ADDR(")
            .replace("grant ", "GRANT_ADDR(")
            .replace("offset ", "");
        if call != "nothing" {
            claim(format!("XEN_VMSG_{call}) == {}", row[0]));
        }
    }
    out
}

/// The header's constants, without their prefix, with the values that the code has.
fn constants() -> Vec<(&'static str, u64)> {
    let grant = |addr: u64| match BusAddr(addr).form() {
        Some(Form::Grant { gref, offset: 0 }) => Some(gref),
        _ => None,
    };
    let grant_form = (0..64)
        .map(|bit| 1 << bit)
        .find(|form| grant(*form) == Some(GrantRef(0)))
        .unwrap();
    let grant_shift = (0..63)
        .find(|bit| grant(grant_form | 1 << bit) == Some(GrantRef(1)))
        .unwrap();
    let first_area = (1..=u16::MAX).find_map(AreaId::new).unwrap();
    let area_shift = BusAddr::in_area(first_area, 0).unwrap().0.trailing_zeros();
    let slot_area = RingLayout::new(0, 52)
        .unwrap()
        .slot_offset(Direction::ToDevice, 0);
    let to_device = Direction::ToDevice;
    let to_driver = Direction::ToDriver;
    vec![
        ("PAGE_SIZE", PAGE_SIZE as u64),
        ("BUS_VERSION", BUS_VERSION.into()),
        ("REVISION", REVISION.into()),
        ("DEFAULT_MESSAGE_SIZE", DEFAULT_MESSAGE_SIZE.into()),
        ("DEFAULT_MAX_AREAS", DEFAULT_MAX_AREAS.into()),
        ("DEFAULT_MAX_AREA_PAGES", DEFAULT_MAX_AREA_PAGES.into()),
        ("STATE_INITIALISING", state(XenbusState::Initialising)),
        ("STATE_INIT_WAIT", state(XenbusState::InitWait)),
        ("STATE_INITIALISED", state(XenbusState::Initialised)),
        ("STATE_CONNECTED", state(XenbusState::Connected)),
        ("STATE_CLOSING", state(XenbusState::Closing)),
        ("STATE_CLOSED", state(XenbusState::Closed)),
        ("MAX_RING_ORDER", MAX_RING_PAGE_ORDER.into()),
        ("MAX_RING_PAGES", MAX_RING_PAGES as u64),
        ("MIN_MESSAGE_SIZE", MIN_MESSAGE_SIZE.into()),
        ("MAX_MESSAGE_SIZE", MAX_MESSAGE_SIZE.into()),
        ("MIN_SLOTS", MIN_SLOTS.into()),
        ("RING_MAGIC", RING_MAGIC.into()),
        ("RING_LAYOUT", RING_VERSION.into()),
        ("OFF_MAGIC", ring_row("magic, 0x424d5658")),
        ("OFF_LAYOUT", ring_row("layout, 1")),
        ("OFF_STRIDE", ring_row("stride")),
        ("OFF_SLOTS", ring_row("slots")),
        ("OFF_SESSION", ring_row("session")),
        ("OFF_TO_DEVICE_PROD", Word::Producer(to_device).offset()),
        ("OFF_TO_DEVICE_SPACE_AT", Word::SpaceAt(to_device).offset()),
        ("OFF_TO_DEVICE_CONS", Word::Consumer(to_device).offset()),
        ("OFF_TO_DEVICE_WAKE_AT", Word::WakeAt(to_device).offset()),
        ("OFF_TO_DRIVER_PROD", Word::Producer(to_driver).offset()),
        ("OFF_TO_DRIVER_SPACE_AT", Word::SpaceAt(to_driver).offset()),
        ("OFF_TO_DRIVER_CONS", Word::Consumer(to_driver).offset()),
        ("OFF_TO_DRIVER_WAKE_AT", Word::WakeAt(to_driver).offset()),
        ("OFF_SLOT_AREA", slot_area),
        ("AREA_ID_MIN", first_area.get().into()),
        ("AREA_ID_MAX", AreaId::MAX.into()),
        ("AREA_SHIFT", area_shift.into()),
        ("GRANT_SHIFT", grant_shift),
        ("GRANT_FORM", grant_form),
        ("AREA_SHARE", AREA_SHARE.into()),
        ("AREA_UNSHARE", AREA_UNSHARE.into()),
        ("REMOVE_REQUEST", REMOVE_REQUEST.into()),
        ("SHARE_DEVICE_WRITE", ShareFlags::DEVICE_WRITE.bits().into()),
        ("SHARE_CONSECUTIVE", ShareFlags::CONSECUTIVE.bits().into()),
        ("RESULT_DONE", AreaResult::DONE.0.into()),
        ("RESULT_REFUSED", AreaResult::REFUSED.0.into()),
        ("RESULT_BUSY", AreaResult::BUSY.0.into()),
        ("RESULT_NO_ROOM", AreaResult::NO_ROOM.0.into()),
        ("DIRECTORY_REFS", REFS_PER_DIRECTORY as u64),
    ]
}

/// `#define NAME value` of the header: no macros with arguments, no include guard.
fn defines() -> BTreeMap<String, String> {
    HEADER
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
        .filter(|(name, _)| !name.contains('('))
        .map(|(name, value)| {
            let value = value.split("/*").next().unwrap_or_default();
            (name.to_owned(), value.trim().to_owned())
        })
        .collect()
}

fn payload_len(id: u8, response: bool) -> usize {
    match PrivateMessage::parse(id, response, &[]) {
        Err(MessageError::Length { expected, .. }) => expected,
        other => panic!("{other:?}"),
    }
}

fn state(state: XenbusState) -> u64 {
    state.number().into()
}
