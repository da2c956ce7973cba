//! The memory contract (binding section 6): what the driver takes back is its own again, and states
//! 2 and 6 mean that nothing is held.

use std::iter;
use std::time::Duration;

use tests::{Bus, Holdings, Random, RawDisk, RawGuest, Rig};
use virtio_msg::Status;
use virtio_msg::wire::Request;
use xen_bus::messages::AreaResult;
use xen_types::DomId;

/// Bytes of the disk.
const BYTES: usize = 64 << 10;
/// Pages of the area.
const POOL: usize = 16;
/// Where the area begins, as area 1.
const AREA: u64 = 1 << 48;
/// How often a device or queue is taken back under load.
const ROUNDS: usize = 40;
/// Bytes of a read.
const READ: u32 = 32 << 10;
/// Written over everything that was taken back.
const GUARD: u8 = 0xa5;

struct World {
    rig: Rig,
    guest: RawGuest,
    bus: Bus,
}

impl World {
    fn new() -> Self {
        Self::with("").expect("a disk behind the page cache")
    }

    /// A world behind the page cache, and one past it, where data lands late too: by the engine
    /// that this host has, if the file system of the images has direct I/O.
    fn all() -> impl Iterator<Item = Self> {
        iter::once(Self::new()).chain(Self::with("direct=1,"))
    }

    /// With a disk that has this key; `None` if the images' file system has no direct I/O.
    fn with(key: &str) -> Option<Self> {
        let mut rig = Rig::start();
        let bus = Bus::of(rig.machine.create_domain("guest"));
        rig.toolstack.make_bus(bus);
        let line = rig.disk_line("guest.img", BYTES);
        let line = line.replacen("type=blk,", &format!("type=blk,{key}"), 1);
        rig.toolstack.make_device(bus, 0, &line);
        rig.settle();
        if let Some(error) = rig.toolstack.read(&bus.device(0, "error")) {
            assert!(error.contains("has no direct I/O"), "{error}");
            eprintln!("\n*** NOT TESTED: {error} ***\n");
            return None;
        }
        let mut guest = RawGuest::new(&rig, bus);
        guest.connect(&mut rig);
        Some(Self { rig, guest, bus })
    }

    /// A write that the device has to wait for the disk with, as FLUSH was not negotiated, and a
    /// read, whose data lands in the driver's memory when the disk has it.
    fn load(&mut self, disk: &mut RawDisk) {
        let mut take = |len: usize| disk.take(len + 4096).1.next_multiple_of(4096);
        let (out, into) = (take(4096), take(READ as usize));
        disk.write_request(0, 0, out, 4096);
        disk.read_request(3, 8, into, READ);
        for first in [0, 3] {
            disk.offer(&mut self.guest, first);
        }
    }

    /// The driver's memory is its own again: nobody else writes to it, now or later.
    fn assert_untouched(&mut self, disk: &RawDisk) {
        let len = u32::try_from(POOL * 4096).unwrap();
        disk.write(AREA, &vec![GUARD; POOL * 4096]);
        for _ in 0..4 {
            self.rig.settle();
            let turn = Some(Duration::from_millis(1));
            self.rig.service().turn(turn).unwrap();
        }
        assert!(disk.read(AREA, len).iter().all(|byte| *byte == GUARD));
    }
}

#[test]
fn nothing_is_written_after_the_answer_to_status_0() {
    let mut random = Random::seeded(4);
    for mut world in World::all() {
        let mut pool = world.guest.share_pool(&mut world.rig, 1, POOL);
        for _ in 0..ROUNDS {
            let mut disk = RawDisk::bring_up(&mut world.rig, &mut world.guest, 0, pool);
            world.load(&mut disk);
            for _ in 0..random.below(3) {
                world.rig.service().turn(Some(Duration::ZERO)).unwrap();
            }
            let none = Request::SetDeviceStatus { status: 0 };
            world.guest.request_turn_by_turn(&mut world.rig, 0, none);
            world.assert_untouched(&disk);
            let status = world.guest.status(&mut world.rig, 0);
            assert!(status.is_empty());
            pool = disk.into_empty_pool();
        }
    }
}

#[test]
fn nothing_is_written_after_the_answer_to_reset_vqueue() {
    let mut random = Random::seeded(5);
    for mut world in World::all() {
        let mut pool = world.guest.share_pool(&mut world.rig, 1, POOL);
        for _ in 0..ROUNDS {
            let features = virtio_msg::Features::RING_RESET;
            let mut disk =
                RawDisk::bring_up_with(&mut world.rig, &mut world.guest, 0, pool, features);
            world.load(&mut disk);
            for _ in 0..random.below(3) {
                world.rig.service().turn(Some(Duration::ZERO)).unwrap();
            }
            let reset = Request::ResetVqueue { index: 0 };
            world.guest.request_turn_by_turn(&mut world.rig, 0, reset);
            world.assert_untouched(&disk);
            assert!(!world.guest.is_enabled(&mut world.rig, 0, 0));
            let none = Status::empty();
            world.guest.set_status(&mut world.rig, 0, none);
            pool = disk.into_empty_pool();
        }
    }
}

#[test]
fn an_area_is_unmapped_when_unshare_is_done_and_kept_while_a_queue_lies_in_it() {
    let mut world = World::new();
    let dom0 = |world: &World| world.rig.machine.holdings(DomId::DOM0).mapped;
    let ring = dom0(&world);
    let pool = world.guest.share_pool(&mut world.rig, 1, POOL);
    let pages = u32::try_from(POOL).unwrap();
    assert_eq!(dom0(&world), ring + pages);
    let disk = RawDisk::bring_up(&mut world.rig, &mut world.guest, 0, pool);
    let unshare = |world: &mut World| world.guest.unshare(&mut world.rig, 1);
    assert_eq!(unshare(&mut world), AreaResult::BUSY);
    assert_eq!(dom0(&world), ring + pages);
    let none = Status::empty();
    world.guest.set_status(&mut world.rig, 0, none);
    assert_eq!(unshare(&mut world), AreaResult::DONE);
    assert_eq!(dom0(&world), ring);
    disk.pool.into_pages().revoke().unwrap();
    // The id is free again.
    world.guest.share_pool(&mut world.rig, 1, POOL);
    assert_eq!(dom0(&world), ring + pages);
}

/// Turn by turn: whenever the backend's state is 2 or 6, it holds nothing.
#[track_caller]
fn assert_holds_nothing_in_2_and_6(world: &mut World, end: &str) {
    let state = world.bus.back("state");
    world.rig.until("the end", |rig| {
        rig.service().turn(Some(Duration::ZERO)).unwrap();
        let now = rig.toolstack.read(&state).unwrap();
        if now == "2" || now == "6" {
            let holdings = rig.machine.holdings(DomId::DOM0);
            assert_eq!(holdings, Holdings::default(), "in state {now}");
        }
        (now == end).then_some(())
    });
}

#[test]
fn states_2_and_6_hold_nothing_however_the_connection_ended() {
    for (state, end) in [("5", "6"), ("6", "6"), ("1", "2"), ("0", "6"), ("x", "6")] {
        for mut world in World::all() {
            let pool = world.guest.share_pool(&mut world.rig, 1, POOL);
            let mut disk = RawDisk::bring_up(&mut world.rig, &mut world.guest, 0, pool);
            world.load(&mut disk);
            world.guest.write("state", state);
            assert_holds_nothing_in_2_and_6(&mut world, end);
            world.assert_untouched(&disk);
        }
    }
}

#[test]
fn states_2_and_6_hold_nothing_after_a_fault() {
    let mut world = World::new();
    let pool = world.guest.share_pool(&mut world.rig, 1, POOL);
    let mut disk = RawDisk::bring_up(&mut world.rig, &mut world.guest, 0, pool);
    world.load(&mut disk);
    world.guest.scribble(64, 0x8000_0000);
    world.guest.notify();
    assert_holds_nothing_in_2_and_6(&mut world, "6");
    world.assert_untouched(&disk);
}

#[test]
fn a_queue_that_starts_does_not_hold_a_forced_removal_off() {
    let mut world = World::new();
    let pool = world.guest.share_pool(&mut world.rig, 1, POOL);
    let disk = RawDisk::bring_up(&mut world.rig, &mut world.guest, 0, pool);
    let none = Status::empty();
    world.guest.set_status(&mut world.rig, 0, none);
    RawDisk::negotiate(&mut world.rig, &mut world.guest, 0);
    let online = world.bus.device(0, "online");
    world.rig.toolstack.write(&online, "force");
    world.rig.machine.barrier();
    // The backend has seen it when a queue comes that wants to start.
    world.rig.service().turn(Some(Duration::ZERO)).unwrap();
    RawDisk::send_queue_and_driver_ok(&mut world.guest, 0, disk.layout);
    let status = world.bus.device(0, "status");
    world.rig.until_node(&status, "removed");
    world.assert_untouched(&disk);
}
