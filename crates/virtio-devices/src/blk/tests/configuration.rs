//! Features, configuration space, the cache mode that the driver switches, and a disk that changes
//! its size.

use std::sync::Arc;

use rustix::io::Errno;
use virtio_msg::wire::{FeatureBlocks, MaxMessageSize, Request, Token};
use virtio_msg::{DeviceInfo, DeviceSide, Features, Limits, Status};

use super::rig::{
    Call, Disk, F_CONFIG_WCE, F_FLUSH, FLUSH, GUARD, IN, IOERR, OK, OUT, Rig, Setup, config,
    pattern,
};
use crate::blk::{Blk, BlkConfig};
use crate::{ConfigWrite, DeviceEvent, DeviceModel, Engine};

const SECTORS: usize = 64;
const WRITEBACK: u32 = 32;
const BOTH: u128 = F_FLUSH | F_CONFIG_WCE;

fn rig(features: u128) -> (Arc<Disk>, Rig) {
    let disk = Disk::new(pattern(SECTORS * 512));
    let setup = Setup {
        features,
        ..Setup::default()
    };
    let rig = Rig::over(&disk, &config(1), setup);
    (disk, rig)
}

/// Writes to the configuration space as a driver with these features, to the end; whether it was
/// accepted.
fn write(rig: &mut Rig, offset: u32, data: &[u8], features: u128) -> bool {
    let ended = |event: &DeviceEvent| match event {
        DeviceEvent::ConfigWritten { accepted } => Some(*accepted),
        _ => None,
    };
    match rig.blk.write_config(offset, data, features) {
        ConfigWrite::Accepted => true,
        ConfigWrite::Refused => false,
        ConfigWrite::Later => {
            rig.run_until(|rig| rig.events.iter().any(|event| ended(event).is_some()));
            let accepted = rig.events.iter().find_map(ended);
            rig.events.retain(|event| ended(event).is_none());
            accepted.unwrap()
        }
    }
}

/// What the device has reported of its configuration space.
fn changes(events: &[DeviceEvent]) -> Vec<(u32, Vec<u8>)> {
    let change = |event: &DeviceEvent| match event {
        DeviceEvent::ConfigChanged { offset, data } => Some((*offset, data.clone())),
        _ => None,
    };
    events.iter().filter_map(change).collect()
}

#[test]
fn r36_only_the_cache_mode_can_be_written_and_only_if_negotiated() {
    let (_, mut rig) = rig(BOTH);
    for offset in (0..64).chain([u32::MAX]) {
        for value in 0..=255 {
            let fine = offset == WRITEBACK && value < 2;
            assert_eq!(write(&mut rig, offset, &[value], BOTH), fine);
            assert!(!write(&mut rig, offset, &[value], !F_CONFIG_WCE));
        }
        // Not even together with its neighbours.
        for len in [0, 2, 4, 60] {
            assert!(!write(&mut rig, offset, &vec![0; len], BOTH));
        }
    }
    // Who does not flush has no volatile cache.
    assert!(!write(&mut rig, WRITEBACK, &[1], F_CONFIG_WCE));
    assert!(write(&mut rig, WRITEBACK, &[0], F_CONFIG_WCE));
}

#[test]
fn r35_the_driver_switches_between_write_back_and_write_through() {
    let (disk, mut rig) = rig(BOTH);
    let data = rig.buffer(512);
    let (mut syncs, mut before) = (0, 1);
    for writeback in [1, 0, 0, 1, 0, 1, 1] {
        assert!(write(&mut rig, WRITEBACK, &[writeback], BOTH));
        // What was volatile is made stable by the switch.
        syncs += usize::from(before == 1 && writeback == 0);
        before = writeback;
        for _ in 0..3 {
            assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
            syncs += usize::from(writeback == 0);
            assert_eq!(disk.count(Call::SyncEnds), syncs);
        }
    }
    // A value that is refused changes nothing.
    assert!(!write(&mut rig, WRITEBACK, &[2], BOTH));
    assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    assert_eq!(disk.count(Call::SyncEnds), syncs);
}

#[test]
fn r35_the_switch_to_write_through_is_answered_when_all_is_stable() {
    let (disk, mut rig) = rig(BOTH);
    let data = rig.buffer(512);
    assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    disk.close_gate();
    let answer = rig.blk.write_config(WRITEBACK, &[0], BOTH);
    assert_eq!(answer, ConfigWrite::Later);
    rig.events.clear();
    disk.wait_for_calls(1);
    rig.poll(64);
    assert!(rig.events.is_empty(), "{:?}", rig.events);
    // One at a time.
    let second = rig.blk.write_config(WRITEBACK, &[0], BOTH);
    assert_eq!(second, ConfigWrite::Refused);
    disk.open_gate();
    rig.run_until(|rig| !rig.events.is_empty());
    assert!(matches!(
        rig.events[..],
        [DeviceEvent::ConfigWritten { accepted: true }]
    ));
    assert_eq!(
        disk.state().log,
        [Call::Write, Call::SyncBegins, Call::SyncEnds]
    );
}

#[test]
fn r35_a_switch_whose_sync_fails_is_refused_and_the_mode_stays() {
    let (disk, mut rig) = rig(BOTH);
    disk.state().sync_error = Some(Errno::IO);
    assert!(!write(&mut rig, WRITEBACK, &[0], BOTH));
    let syncs = disk.count(Call::SyncEnds);
    let data = rig.buffer(512);
    assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    assert_eq!(disk.count(Call::SyncEnds), syncs, "still write-back");
    // As with a flush: what was lost stays lost.
    disk.state().sync_error = None;
    assert!(!write(&mut rig, WRITEBACK, &[0], BOTH));
}

#[test]
fn r35_writes_taken_in_write_through_are_synced_whatever_is_switched_meanwhile() {
    let (disk, mut rig) = rig(BOTH);
    disk.state().nowait = Some(Errno::AGAIN);
    let data = rig.buffer(512);
    for _ in 0..50 {
        assert!(write(&mut rig, WRITEBACK, &[0], BOTH));
        disk.close_gate();
        let through = rig.request(0, OUT, 1, Some(data), None);
        rig.poll(64);
        assert!(write(&mut rig, WRITEBACK, &[1], BOTH));
        let back = rig.request(0, OUT, 2, Some(data), None);
        rig.poll(64);
        disk.wait_for_calls(2);
        let before = disk.count(Call::SyncEnds);
        disk.open_gate();
        rig.run();
        assert_eq!(disk.count(Call::SyncEnds), before + 1);
        for (_, status) in [through, back] {
            assert_eq!(rig.get(status), [OK]);
        }
    }
}

#[test]
fn r35_the_cache_mode_without_flush_reads_0_and_writes_are_stable() {
    let (disk, mut rig) = rig(F_CONFIG_WCE);
    let mut told = Vec::new();
    for _ in 0..2 {
        rig.blk.negotiated(F_CONFIG_WCE, &mut told);
        assert_eq!(changes(&told), [(WRITEBACK, vec![0])]);
    }
    let data = rig.buffer(512);
    assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    assert_eq!(disk.count(Call::SyncEnds), 1);
    // Nothing is volatile, so that there is nothing to sync for.
    let again = rig.blk.write_config(WRITEBACK, &[0], F_CONFIG_WCE);
    assert_eq!(again, ConfigWrite::Accepted);

    for features in [0, F_FLUSH, BOTH] {
        let mut told = Vec::new();
        rig.blk.reset(&mut Vec::new());
        rig.blk.negotiated(features, &mut told);
        assert!(told.is_empty(), "features {features:#x}");
    }
}

#[test]
fn r35_the_cache_mode_does_not_outlive_its_driver() {
    let (disk, mut rig) = rig(BOTH);
    assert!(write(&mut rig, WRITEBACK, &[0], BOTH));
    let mut told = Vec::new();
    rig.blk.reset(&mut told);
    assert_eq!(changes(&told), [(WRITEBACK, vec![1])]);
    let syncs = disk.count(Call::SyncEnds);
    let data = rig.buffer(512);
    assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    assert_eq!(disk.count(Call::SyncEnds), syncs);
    told.clear();
    rig.blk.reset(&mut told);
    assert!(told.is_empty());
}

/// How each switch ended that was reported so far.
fn switches(rig: &Rig) -> Vec<bool> {
    let written = |event: &DeviceEvent| match event {
        DeviceEvent::ConfigWritten { accepted } => Some(*accepted),
        _ => None,
    };
    rig.events.iter().filter_map(written).collect()
}

#[test]
fn r35_a_switch_is_answered_by_a_sync_that_began_after_it() {
    let (disk, mut rig) = rig(BOTH);
    disk.close_gate();
    let switch = |rig: &mut Rig| rig.blk.write_config(WRITEBACK, &[0], BOTH);
    assert_eq!(switch(&mut rig), ConfigWrite::Later);
    disk.wait_for_calls(1);
    // Even if its driver goes without waiting, its sync answers no other switch.
    rig.blk.reset(&mut Vec::new());
    let data = rig.buffer(512);
    assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    assert_eq!(switch(&mut rig), ConfigWrite::Refused);
    disk.let_one_pass();
    rig.run_until(|rig| !switches(rig).is_empty());
    assert_eq!(switch(&mut rig), ConfigWrite::Later);
    disk.wait_for_calls(1);
    rig.poll(64);
    assert_eq!(switches(&rig), [true]);
    disk.open_gate();
    rig.run_until(|rig| switches(rig).len() == 2);
    assert_eq!(
        disk.state().log,
        [
            Call::SyncBegins,
            Call::Write,
            Call::SyncEnds,
            Call::SyncBegins,
            Call::SyncEnds
        ]
    );
}

#[test]
fn r35_a_switch_that_does_not_end_is_the_only_one() {
    let (disk, mut rig) = rig(BOTH);
    disk.close_gate();
    let first = rig.blk.write_config(WRITEBACK, &[0], BOTH);
    assert_eq!(first, ConfigWrite::Later);
    for _ in 0..1000 {
        rig.blk.reset(&mut Vec::new());
        let another = rig.blk.write_config(WRITEBACK, &[0], BOTH);
        assert_eq!(another, ConfigWrite::Refused);
    }
    // What needs no sync is served beside it.
    let data = rig.buffer(512);
    assert_eq!(rig.ask(IN, 1, None, Some(data)), (OK, 513));
    disk.open_gate();
    // A flush runs behind it, and behind all others that there might be.
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    assert_eq!(switches(&rig), [true]);
    assert_eq!(disk.count(Call::SyncEnds), 2);
}

#[test]
fn r35_a_switch_that_ends_after_a_reset_changes_no_mode() {
    for failure in [None, Some(Errno::IO)] {
        let (disk, mut rig) = rig(BOTH);
        disk.close_gate();
        disk.state().sync_error = failure;
        let answer = rig.blk.write_config(WRITEBACK, &[0], BOTH);
        assert_eq!(answer, ConfigWrite::Later);
        let mut told = Vec::new();
        rig.blk.reset(&mut told);
        assert_eq!(changes(&told), [(WRITEBACK, vec![1])]);
        disk.open_gate();
        rig.run_until(|rig| !switches(rig).is_empty());
        assert_eq!(switches(&rig), [failure.is_none()]);
        // Write-back, as the reset left it.
        let syncs = disk.count(Call::SyncEnds);
        let data = rig.buffer(512);
        assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
        assert_eq!(disk.count(Call::SyncEnds), syncs);
    }
}

#[test]
fn r35_the_mode_counts_only_for_who_can_read_it() {
    let (disk, mut rig) = rig(F_FLUSH);
    assert!(write(&mut rig, WRITEBACK, &[0], BOTH));
    let syncs = disk.count(Call::SyncEnds);
    let data = rig.buffer(512);
    assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    assert_eq!(disk.count(Call::SyncEnds), syncs);
}

fn resize(disk: &Disk, rig: &mut Rig, sectors: usize) {
    disk.state().bytes.resize(sectors * 512, 0);
    rig.blk.refresh();
    rig.events.clear();
    rig.poll(64);
    let capacity = (sectors as u64).to_le_bytes().to_vec();
    assert_eq!(changes(&rig.events), [(0, capacity.clone())]);
    assert_eq!(rig.blk.describe().config[..8], capacity);
}

#[test]
fn r37_a_disk_that_grows_or_shrinks_is_told_and_honoured() {
    let (disk, mut rig) = rig(F_FLUSH);
    let data = rig.buffer(512);
    for size in [SECTORS + 8, SECTORS / 2, 0, 1, 2 * SECTORS] {
        resize(&disk, &mut rig, size);
        let mut reads = |sector: u64| rig.ask(IN, sector, None, Some(data)).0 == OK;
        assert!(!reads(size as u64), "size {size}");
        if let Some(last) = size.checked_sub(1) {
            assert!(reads(last as u64), "size {size}");
            assert_eq!(rig.ask(OUT, last as u64, Some(data), None), (OK, 1));
        }
        assert_eq!(rig.ask(OUT, size as u64, Some(data), None), (IOERR, 1));
    }
    // The same size is no news, and neither is a sector that is not whole.
    rig.blk.refresh();
    rig.events.clear();
    rig.poll(64);
    disk.state().bytes.push(0);
    rig.blk.refresh();
    rig.poll(64);
    assert_eq!(changes(&rig.events), []);
}

#[test]
fn r37_a_request_is_judged_by_the_size_at_which_it_was_taken() {
    let disk = Disk::slow(SECTORS);
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    disk.close_gate();
    let back = rig.buffer(512);
    let (_, early) = rig.request(0, IN, 60, None, Some(back));
    rig.poll(64);
    disk.wait_for_calls(1);
    resize(&disk, &mut rig, 32);
    let (_, late) = rig.request(0, IN, 60, None, Some(back));
    rig.poll(64);
    assert_eq!(rig.get(late), [IOERR]);
    assert_eq!(rig.get(early), [GUARD]);
    disk.state().bytes = pattern(SECTORS * 512);
    disk.open_gate();
    rig.run();
    assert_eq!(rig.get(early), [OK]);
    assert_eq!(rig.get(back), pattern(SECTORS * 512)[60 * 512..61 * 512]);
}

#[test]
fn r37_the_size_is_noticed_at_a_flush_and_at_the_end_of_a_file_that_shrank() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(8 * 512).unwrap();
    let config = BlkConfig {
        path: image.path().into(),
        ..config(1)
    };
    let blk = Blk::open(&config, &Engine::new().unwrap()).unwrap();
    let mut rig = Rig::new(blk, Setup::default());
    image.as_file().set_len(16 * 512).unwrap();
    rig.events.clear();
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    rig.poll(64);
    assert_eq!(changes(&rig.events), [(0, 16u64.to_le_bytes().to_vec())]);
    image.as_file().set_len(4 * 512).unwrap();
    rig.events.clear();
    let back = rig.buffer(512);
    assert_eq!(rig.ask(IN, 12, None, Some(back)), (IOERR, 0));
    rig.poll(64);
    assert_eq!(changes(&rig.events), [(0, 4u64.to_le_bytes().to_vec())]);
}

/// On a file system that is slow to tell a size, a guest that flushes would hold up everybody.
#[test]
fn a_flush_has_no_size_looked_at_by_the_thread_that_serves_all() {
    let (disk, mut rig) = rig(F_FLUSH);
    disk.state().sized_by.clear();
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    rig.poll(64);
    let sized_by = disk.state().sized_by.clone();
    assert!(!sized_by.is_empty(), "nobody looked");
    assert!(!sized_by.contains(&std::thread::current().id()));
}

/// The status after a driver has asked for FEATURES_OK with these bits.
fn negotiate(device: &mut DeviceSide, features: u128) -> Status {
    let requests = [
        Request::SetDeviceStatus { status: 3 },
        Request::SetDriverFeatures {
            block_index: 0,
            blocks: FeatureBlocks::of(Features(features), 0, 4),
        },
        Request::SetDeviceStatus { status: 0x0b },
    ];
    for (token, request) in (1..).zip(requests) {
        device.handle(request, Token(token)).unwrap();
        while device.poll_reply().is_some() {}
    }
    device.status()
}

fn reset(device: &mut DeviceSide) {
    let request = Request::SetDeviceStatus { status: 0 };
    device.handle(request, Token(9)).unwrap();
    assert_eq!(device.poll_action(), Some(virtio_msg::Action::Reset));
    device.complete(virtio_msg::Completion::ResetDone);
    while device.poll_reply().is_some() {}
    assert_eq!(device.status(), Status::empty());
}

#[test]
fn r38_features_ok_needs_bits_32_and_33_and_nothing_that_was_not_offered() {
    let about = Disk::new(pattern(4096))
        .device(&config(2), &Engine::new().unwrap())
        .describe();
    let offered = about.features;
    let info = DeviceInfo {
        device_id: about.device_id,
        vendor_id: about.vendor_id,
        uuid: [0; 16],
        features: Features(offered),
        prerequisites: &[],
        config: about.config,
        queue_max: about.queue_max,
    };
    let limits = Limits {
        max_message_size: MaxMessageSize::new(264).unwrap(),
        slots: 8,
    };
    let mut device = DeviceSide::new(info, limits).unwrap();
    let required = 1 << 32 | 1 << 33;
    let mut verdict = |features: u128| {
        let status = negotiate(&mut device, features);
        reset(&mut device);
        status.contains(Status::FEATURES_OK)
    };
    for features in [required, offered, required | F_FLUSH] {
        assert!(verdict(features));
        assert!(!verdict(features & !(1 << 32)));
        assert!(!verdict(features & !(1 << 33)));
        // What was accepted once is accepted after every reset.
        assert!(verdict(features));
    }
    for bit in 0..128 {
        let one = 1 << bit;
        assert_eq!(verdict(required | one), offered & one != 0, "bit {bit}");
    }
}
