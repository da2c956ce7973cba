//! What waits: the engine, flushes, stopping, budgets and notifications.

use std::fs;
use std::iter;
use std::sync::Arc;

use rustix::io::Errno;
use virtqueue::{DeviceQueue, QueueLayout, RingFeatures, Segment};

use super::rig::{
    BASE, Call, Disk, FLUSH, GET_ID, GUARD, IN, IOERR, OK, OUT, Rig, Setup, config, pattern,
};
use crate::blk::{Blk, BlkConfig};
use crate::{DeviceEvent, DeviceModel, Engine, Progress};

/// Requests of a device that wait at most, as `serve` has it.
const IN_FLIGHT_MAX: usize = 64;

fn statuses(rig: &Rig, status: &[Segment]) -> Vec<u8> {
    status.iter().map(|byte| rig.get(*byte)[0]).collect()
}

#[test]
fn what_would_wait_does_not_hold_up_the_loop() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(2), Setup::default());
    disk.close_gate();
    let (data, back) = (rig.buffer_with(&[0xee; 512]), rig.buffer(512));
    let (_, read) = rig.request(0, IN, 1, None, Some(back));
    let (_, write) = rig.request(0, OUT, 2, Some(data), None);
    let (_, flush) = rig.request(1, FLUSH, 0, None, None);
    assert_eq!(rig.poll(64), Progress::Idle);
    disk.wait_for_calls(3);

    // What does not wait is served meanwhile, on either queue.
    for queue in [0, 1] {
        rig.request(queue, GET_ID, 0, None, None);
        rig.poll(64);
        assert_eq!(rig.used.pop().unwrap().0, queue);
    }
    assert_eq!(statuses(&rig, &[read, write, flush]), [GUARD; 3]);

    disk.open_gate();
    rig.run();
    assert_eq!(statuses(&rig, &[read, write, flush]), [OK; 3]);
    assert_eq!(rig.get(back), pattern(8 * 512)[512..1024]);
    assert_eq!(disk.state().bytes[1024..1536], [0xee; 512]);
}

#[test]
fn disks_that_hang_do_not_hold_up_another() {
    let engine = Engine::new().unwrap();
    let (stuck, free) = (Disk::slow(8), Disk::slow(8));
    let device = |disk: &Arc<Disk>| Rig::new(disk.device(&config(1), &engine), Setup::default());
    for (count, threads) in [(1, 4), (16, 64), (20, 20 + 48)] {
        let mut hung: Vec<_> = (0..count).map(|_| device(&stuck)).collect();
        stuck.close_gate();
        for rig in &mut hung {
            for _ in 0..IN_FLIGHT_MAX {
                let back = rig.buffer(512);
                rig.request(0, IN, 0, None, Some(back));
            }
            rig.poll(IN_FLIGHT_MAX);
        }
        stuck.wait_for_calls(threads);
        let mut other = device(&free);
        for sector in 0..8 {
            let back = other.buffer(512);
            assert_eq!(other.ask(IN, sector, None, Some(back)), (OK, 513));
        }
        stuck.open_gate();
        hung.iter_mut().for_each(Rig::run);
    }
}

#[test]
fn the_rest_of_a_partly_cached_read_comes_from_the_engine() {
    let disk = Disk::new(pattern(4096));
    disk.state().at_most = 700;
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    let (one, two) = (rig.buffer(1000), rig.buffer(3096));
    let (request, status) = (rig.header(IN, 0), rig.buffer(1));
    // The first call is served, the second is not: as when only the first pages are cached.
    rig.drivers[0].add(&[request], &[one, two, status]).unwrap();
    rig.drivers[0].publish();
    rig.blk.kick(0);
    disk.state().again_after = Some(1);
    rig.run();
    assert_eq!(rig.used.pop().unwrap().1.len, 4097);
    assert_eq!([rig.get(one), rig.get(two)].concat(), pattern(4096));
    assert_eq!(rig.get(status), [OK]);
    // 4096 in steps of 700, none of them twice.
    assert_eq!(disk.count(Call::Read), 6);
}

#[test]
fn an_image_that_never_serves_at_once_is_not_asked_again() {
    let disk = Disk::slow(8);
    disk.state().nowait = Some(Errno::OPNOTSUPP);
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    for _ in 0..5 {
        let data = rig.buffer(512);
        assert_eq!(rig.ask(IN, 0, None, Some(data)), (OK, 513));
        assert_eq!(rig.ask(OUT, 1, Some(data), None), (OK, 1));
    }
    assert_eq!(disk.state().refused, 2);
}

#[test]
fn cached_writes_of_a_turn_are_one_thread_s_and_small_ones_wake_the_loop_once() {
    for (len, woken_after) in [(512, 8), (128 * 1024, 2)] {
        let disk = Disk::slow(8 * 256);
        disk.state().is_cached = true;
        let setup = Setup {
            area_bytes: 4 << 20,
            ..Setup::default()
        };
        let mut rig = Rig::over(&disk, &config(1), setup);
        disk.close_gate();
        for n in 0..8 {
            let data = rig.buffer_with(&vec![u8::try_from(n).unwrap(); len]);
            rig.request(0, OUT, n * 256, Some(data), None);
        }
        assert_eq!(rig.poll(64), Progress::Idle);
        for passed in 0..8 {
            disk.wait_for_passes(passed);
            assert_eq!(disk.state().at_gate, 1, "one writer at a time");
            assert_eq!(
                rig.is_readable(),
                passed >= woken_after,
                "{passed} of {len}"
            );
            disk.let_one_pass();
        }
        rig.run();
        assert!((0..8).all(|n| disk.state().bytes[n * 256 * 512] == u8::try_from(n).unwrap()));
        assert_eq!(disk.count(Call::Write), 8);
    }
}

#[test]
fn requests_beyond_the_limit_stay_in_the_ring() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(2), Setup::default());
    disk.close_gate();
    let mut status = Vec::new();
    for turn in 0..150 {
        let back = rig.buffer(512);
        status.push(rig.request(turn % 2, IN, 0, None, Some(back)).1);
    }
    // Idle, not More: only a completion helps.
    assert_eq!(rig.poll(1000), Progress::Idle);
    assert_eq!(disk.state().refused, IN_FLIGHT_MAX);
    // Two leases each besides those of rings and space.
    let before = rig.area.leases();
    disk.open_gate();
    rig.run();
    assert_eq!(before - rig.area.leases(), 3 * IN_FLIGHT_MAX);
    assert_eq!(statuses(&rig, &status), [OK; 150]);
}

#[test]
fn r34_a_flush_covers_what_completed_before_on_all_queues() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(2), Setup::default());
    let data = rig.buffer(512);
    rig.request(0, OUT, 0, Some(data), None);
    rig.run();

    disk.close_gate();
    let (_, first) = rig.request(1, FLUSH, 0, None, None);
    rig.poll(64);
    disk.wait_for_calls(1);
    // These were taken after the sync began: it says nothing about them.
    let late = [
        rig.request(0, FLUSH, 0, None, None).1,
        rig.request(1, FLUSH, 0, None, None).1,
    ];
    rig.poll(64);
    assert_eq!(disk.count(Call::SyncBegins), 1);
    assert_eq!(statuses(&rig, &[first, late[0], late[1]]), [GUARD; 3]);

    disk.open_gate();
    rig.run();
    assert_eq!(statuses(&rig, &[first, late[0], late[1]]), [OK; 3]);
    use Call::{SyncBegins, SyncEnds, Write};
    assert_eq!(
        disk.state().log,
        [Write, SyncBegins, SyncEnds, SyncBegins, SyncEnds]
    );
}

#[test]
fn r34_a_flush_does_not_complete_before_its_sync() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    disk.close_gate();
    let (_, status) = rig.request(0, FLUSH, 0, None, None);
    rig.poll(64);
    disk.wait_for_calls(1);
    rig.poll(64);
    assert!(rig.used.is_empty());
    assert_eq!(rig.get(status), [GUARD]);
    disk.open_gate();
    rig.run();
    assert_eq!(rig.get(status), [OK]);
}

#[test]
fn r34_after_a_failed_sync_no_flush_succeeds_again() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));

    disk.close_gate();
    let (_, first) = rig.request(0, FLUSH, 0, None, None);
    rig.poll(64);
    disk.wait_for_calls(1);
    let (_, waiting) = rig.request(0, FLUSH, 0, None, None);
    rig.poll(64);
    disk.state().sync_error = Some(Errno::IO);
    disk.open_gate();
    rig.run();
    assert_eq!(statuses(&rig, &[first, waiting]), [IOERR; 2]);

    rig.used.clear();
    disk.state().sync_error = None;
    assert_eq!(rig.ask(FLUSH, 0, None, None), (IOERR, 1));
    assert_eq!(disk.count(Call::SyncBegins), 2);
    // Reads and writes go on.
    let data = rig.buffer(512);
    assert_eq!(rig.ask(OUT, 0, Some(data), None), (OK, 1));
    assert_eq!(rig.ask(IN, 0, None, Some(data)), (OK, 513));
}

#[test]
fn r35_without_flush_every_write_is_synced_before_it_completes() {
    let disk = Disk::new(pattern(4096));
    let setup = Setup {
        features: 0,
        ..Setup::default()
    };
    let mut rig = Rig::over(&disk, &config(1), setup);
    let data = rig.buffer(512);
    for sector in 0..3 {
        assert_eq!(rig.ask(OUT, sector, Some(data), None), (OK, 1));
    }
    let synced = [Call::Write, Call::SyncBegins, Call::SyncEnds];
    assert_eq!(disk.state().log, synced.repeat(3));
    // Nothing to write, nothing to sync; a flush all the same.
    assert_eq!(rig.ask(OUT, 0, None, None), (OK, 1));
    assert_eq!(disk.count(Call::SyncEnds), 3);
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    assert_eq!(disk.count(Call::SyncEnds), 4);

    disk.state().sync_error = Some(Errno::NOSPC);
    assert_eq!(rig.ask(OUT, 0, Some(data), None), (IOERR, 1));
    disk.state().sync_error = None;
    assert_eq!(rig.ask(OUT, 0, Some(data), None), (IOERR, 1));
}

#[test]
fn r35_writes_that_meet_share_a_sync_that_began_after_all_of_them() {
    let disk = Disk::slow(64);
    let setup = Setup {
        features: 0,
        ..Setup::default()
    };
    let mut rig = Rig::over(&disk, &config(1), setup);
    let data = rig.buffer(512);
    let status: Vec<_> = (0..50)
        .map(|sector| rig.request(0, OUT, sector, Some(data), None).1)
        .collect();
    rig.run();
    assert_eq!(statuses(&rig, &status), [OK; 50]);
    let log = &disk.state().log;
    let last_write = log.iter().rposition(|call| *call == Call::Write).unwrap();
    assert!(log[last_write..].contains(&Call::SyncBegins));
    // Never two at a time.
    let syncs: Vec<_> = log.iter().filter(|call| **call != Call::Write).collect();
    assert!(
        syncs
            .chunks(2)
            .all(|pair| pair == [&Call::SyncBegins, &Call::SyncEnds])
    );
}

#[test]
fn r40_a_failing_disk_is_never_reported_as_fine() {
    for nowait in [None, Some(Errno::AGAIN)] {
        let disk = Disk::new(pattern(4096));
        disk.state().nowait = nowait;
        let mut rig = Rig::over(&disk, &config(1), Setup::default());
        let (data, back) = (rig.buffer_with(&[0xee; 1024]), rig.buffer(1024));

        disk.state().read_error = Some(Errno::IO);
        disk.state().write_error = Some(Errno::NOSPC);
        assert_eq!(rig.ask(IN, 0, None, Some(back)), (IOERR, 0));
        assert_eq!(rig.ask(OUT, 0, Some(data), None), (IOERR, 1));
        assert_eq!(disk.state().bytes, pattern(4096));

        disk.state().read_error = None;
        disk.state().write_error = None;
        disk.state().at_most = 100;
        assert_eq!(rig.ask(IN, 0, None, Some(back)), (OK, 1025));
        assert_eq!(rig.get(back), pattern(4096)[..1024]);
        assert_eq!(rig.ask(OUT, 2, Some(data), None), (OK, 1));
        assert_eq!(disk.state().bytes[1024..2048], [0xee; 1024]);

        // Less than the capacity is left: what was there is told, and that it is not all.
        disk.state().bytes.truncate(700);
        let back = rig.buffer(1024);
        assert_eq!(rig.ask(IN, 0, None, Some(back)), (IOERR, 700));
        assert_eq!(rig.get(back)[..700], pattern(4096)[..700]);
        assert_eq!(rig.get(back)[700..], [GUARD; 324]);
    }
}

#[test]
fn r40_a_file_cut_short_gives_errors_and_no_stale_bytes() {
    let image = tempfile::NamedTempFile::new().unwrap();
    fs::write(image.path(), pattern(8192)).unwrap();
    let config = BlkConfig {
        path: image.path().into(),
        ..config(1)
    };
    let blk = Blk::open(&config, &Engine::new().unwrap()).unwrap();
    let mut rig = Rig::new(blk, Setup::default());
    let back = rig.buffer(512);
    assert_eq!(rig.ask(IN, 10, None, Some(back)), (OK, 513));
    image.as_file().set_len(4096).unwrap();
    let back = rig.buffer(512);
    assert_eq!(rig.ask(IN, 10, None, Some(back)), (IOERR, 0));
    assert_eq!(rig.get(back), [GUARD; 512]);
    assert_eq!(rig.ask(IN, 7, None, Some(back)), (OK, 513));
}

#[test]
fn r16_requests_in_flight_at_a_fault_are_answered() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    disk.close_gate();
    let back = rig.buffer(512);
    let (head, status) = rig.request(0, IN, 3, None, Some(back));
    rig.poll(64);
    disk.wait_for_calls(1);

    // An available index far ahead: the queue is broken.
    let layout = QueueLayout::contiguous(BASE, 256);
    rig.put(layout.avail + 2, &1000u16.to_le_bytes());
    rig.blk.kick(0);
    rig.poll(64);
    assert_eq!(rig.needs_reset(), 1);

    disk.open_gate();
    rig.run();
    assert_eq!(rig.used.pop().unwrap().1.head, head);
    assert_eq!(rig.get(status), [OK]);
    assert_eq!(rig.get(back), pattern(8 * 512)[3 * 512..4 * 512]);
    rig.blk.kick(0);
    assert_eq!(rig.poll(64), Progress::Idle);
    assert_eq!(rig.needs_reset(), 1);
}

#[test]
fn r19_after_stopped_nothing_of_the_queue_is_touched() {
    let disk = Disk::slow(64);
    let mut rig = Rig::over(&disk, &config(2), Setup::default());
    let layout = QueueLayout::contiguous(BASE, 256);
    let features = RingFeatures::default();
    let idle_leases = rig.area.leases();
    let another = DeviceQueue::new(&rig.space, layout, features).unwrap();
    let ring_leases = rig.area.leases() - idle_leases;
    drop(another);
    disk.close_gate();
    let mut status = Vec::new();
    for sector in 0..40 {
        let data = rig.buffer(512);
        let kind = if sector % 2 == 0 { IN } else { OUT };
        let (data_out, data_in) = if kind == IN {
            (None, Some(data))
        } else {
            (Some(data), None)
        };
        status.push(rig.request(0, kind, sector, data_out, data_in).1);
    }
    status.push(rig.request(0, FLUSH, 0, None, None).1);
    status.push(rig.request(0, FLUSH, 0, None, None).1);
    rig.poll(64);
    disk.wait_for_calls(4);
    // Offered, but not taken before the stop.
    let late = rig.request(0, GET_ID, 0, None, None).1;

    rig.blk.stop_queue(0);
    rig.blk.stop_queue(0);
    rig.blk.kick(0);
    for _ in 0..5 {
        rig.poll(64);
        assert!(rig.stopped(0).is_none(), "jobs are still pending");
    }
    // The other queue runs on.
    rig.request(1, GET_ID, 0, None, None);
    rig.poll(64);
    assert!(rig.used.iter().any(|(queue, _)| *queue == 1));

    disk.open_gate();
    rig.run_until(|rig| rig.stopped(0).is_some());
    let state = rig.stopped(0).unwrap().clone();
    assert_eq!((state.next_avail, state.next_used), (42, 42));
    assert!(state.in_flight.is_empty());
    assert_eq!(statuses(&rig, &status), [OK; 42]);
    assert_eq!(rig.get(late), [GUARD]);
    // Neither buffers nor rings are held.
    assert!(ring_leases > 0);
    assert_eq!(rig.area.leases(), idle_leases - ring_leases);

    let memory = rig.memory();
    rig.events.clear();
    for _ in 0..5 {
        rig.blk.kick(0);
        assert_eq!(rig.poll(64), Progress::Idle);
    }
    assert!(rig.events.is_empty());
    assert!(rig.memory() == memory);

    // Started again where it stopped, it goes on with the request that was waiting.
    let ring = DeviceQueue::from_state(&rig.space, layout, features, &state).unwrap();
    rig.start(0, ring);
    rig.run();
    assert_eq!(rig.get(late), [OK]);
}

#[test]
fn a_dropped_device_leaves_its_memory_mapped_while_a_thread_uses_it() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    disk.close_gate();
    for _ in 0..20 {
        let back = rig.buffer(512);
        rig.request(0, IN, 0, None, Some(back));
    }
    rig.poll(64);
    disk.wait_for_calls(4);
    let Rig {
        blk,
        area,
        drivers,
        space,
        ..
    } = rig;
    drop((blk, drivers));
    // The four that run; the others were dropped with the device.
    let leases = area.leases();
    assert!((2..=1 + 4 * 3).contains(&leases), "{leases} leases");
    disk.open_gate();
    drop(space);
    let mut area = area;
    // The leases go when the threads have seen the end of their calls.
    loop {
        match area.unmap() {
            Ok(()) => break,
            Err(guest_memory::UnmapError::Leased { area: back, .. }) => area = back,
            Err(error) => panic!("{error}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_budget_is_kept_and_more_is_said_until_all_is_served() {
    let disk = Disk::new(pattern(4096));
    let mut rig = Rig::over(&disk, &config(3), Setup::default());
    for queue in [0, 0, 0, 0, 0, 1, 2] {
        for _ in 0..20 {
            rig.request(queue, GET_ID, 0, None, None);
        }
    }
    for budget in [1, 7, 16, 40] {
        rig.used.clear();
        assert_eq!(rig.poll(budget), Progress::More);
        // A look that finds a queue empty costs as much as a request.
        assert!(rig.used.len() <= budget && rig.used.len() + 3 > budget);
    }
    while rig.poll(50) == Progress::More {}
    assert!(rig.drivers.iter().all(|driver| driver.offered() == 0));
    assert_eq!(rig.poll(50), Progress::Idle);
}

#[test]
fn queues_take_turns_within_a_budget() {
    let disk = Disk::new(pattern(4096));
    let mut rig = Rig::over(&disk, &config(3), Setup::default());
    for queue in 0..3 {
        for _ in 0..100 {
            rig.request(queue, GET_ID, 0, None, None);
        }
    }
    rig.poll(48);
    let offered: Vec<_> = rig.drivers.iter().map(|driver| driver.offered()).collect();
    assert_eq!(offered, [84; 3]);
    // The next poll goes on with the queue whose turn it is.
    rig.poll(16);
    rig.poll(16);
    let offered: Vec<_> = rig.drivers.iter().map(|driver| driver.offered()).collect();
    assert_eq!(offered, [68, 68, 84]);
}

#[test]
fn the_driver_is_notified_once_per_batch_and_only_if_it_wants() {
    for event_idx in [false, true] {
        let disk = Disk::new(pattern(4096));
        let setup = Setup {
            ring: RingFeatures {
                indirect: false,
                event_idx,
            },
            ..Setup::default()
        };
        let mut rig = Rig::over(&disk, &config(1), setup);
        let ten = |rig: &mut Rig| {
            rig.events.clear();
            for _ in 0..10 {
                rig.request(0, GET_ID, 0, None, None);
            }
            rig.poll(64);
            rig.events.len()
        };
        assert_eq!(ten(&mut rig), 1);
        assert!(matches!(rig.events[0], DeviceEvent::Used(0)));
        rig.drivers[0].disarm();
        assert_eq!(ten(&mut rig), 0, "event_idx {event_idx}");
        assert!(!rig.drivers[0].rearm());
        assert_eq!(ten(&mut rig), 1);
    }
}

#[test]
fn completions_of_the_engine_are_notified_too() {
    let disk = Disk::slow(8);
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    let back = rig.buffer(512);
    rig.ask(IN, 0, None, Some(back));
    let used = |event: &&DeviceEvent| matches!(event, DeviceEvent::Used(0));
    assert_eq!(rig.events.iter().filter(used).count(), 1);
}

#[test]
fn r20_buffers_wait_for_the_start_and_are_then_served_without_a_kick() {
    let disk = Disk::new(pattern(4096));
    let mut rig = Rig::over(&disk, &config(1), Setup::default());
    rig.blk.stop_queue(0);
    rig.poll(64);
    let state = rig.stopped(0).unwrap().clone();
    let status: Vec<_> = iter::repeat_with(|| rig.request(0, GET_ID, 0, None, None).1)
        .take(3)
        .collect();
    rig.poll(64);
    assert_eq!(statuses(&rig, &status), [GUARD; 3]);
    let layout = QueueLayout::contiguous(BASE, 256);
    let features = RingFeatures::default();
    let ring = DeviceQueue::from_state(&rig.space, layout, features, &state).unwrap();
    rig.start(0, ring);
    rig.poll(64);
    assert_eq!(statuses(&rig, &status), [OK; 3]);
}
