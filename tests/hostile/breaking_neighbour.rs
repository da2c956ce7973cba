//! A guest that breaks its queues and its memory without end, beside one that works.
//!
//! Attack: Over and over it resets its disk and offers a chain that is a circle, lets a
//! second thread flip the addresses and lengths of descriptors that are being served, or takes back
//! the grants of all buffers that it has just offered.
//!
//! Outcome: A queue that breaks ends its device alone, and a request that fails takes no more of a
//! turn than one that is served. The victim has at least 0.9 of the chains per turn that it has
//! alone.
//!
//! Class: 1 (XSA-155), 2 (XSA-448), 3 (XSA-361)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use backend::GUEST_LINES_PER_PERIOD;
use guest_memory::{Access, AddressSpace as _};
use tests::{GrantDisk, GrantRequest, RawDisk, RawGuest, Rig};
use virtio_msg::Features;
use xen_hal::GrantedPages;

use crate::rig::neighbours::{TURNS, withstands_saying, withstands_with};
use crate::rig::stage::NEXT;

const LINE: &str = "WARN the driver broke a queue; the device needs a reset id=domain … bus 0 dev_num=1 reason=queue 0: …";

/// The attacker's disk, beside the device that makes its events work.
const DISK: u16 = 1;
/// Request type, and status.
const GET_ID: u8 = 8;
const IOERR: u8 = 1;
/// Bytes of the serial.
const ID: u32 = 20;

fn add_disk(rig: &mut Rig, guest: &RawGuest) {
    let line = rig.disk_line("attacker.img", 64 << 10);
    rig.toolstack.make_device(guest.bus, DISK, &line);
    rig.until_node(&guest.bus.device(DISK, "status"), "ready");
}

fn bring_up(rig: &mut Rig, guest: &mut RawGuest) -> RawDisk {
    add_disk(rig, guest);
    let pool = guest.share_pool(rig, 2, 4);
    RawDisk::bring_up(rig, guest, DISK, pool)
}

#[test]
fn a_circle_in_every_turn_takes_nothing_from_the_neighbour() {
    let (mut owed, mut circles) = (0, 0);
    withstands_saying(
        |log| {
            log.line(LINE);
            let loops = |line: &&String| line.contains("loops: it is longer than its table");
            let said = log.lines().iter().filter(loops).count();
            assert!(said <= GUEST_LINES_PER_PERIOD as usize, "{said} lines");
        },
        bring_up,
        |attacker, disk| {
            let frames = attacker.receive();
            owed -= frames.iter().filter(|frame| is_answer(frame)).count();
            // The one before is broken, and the device with it.
            if owed == 0 {
                owed = disk.send_restart(attacker);
                for index in 0..RawDisk::SIZE {
                    let next = (index + 1) % RawDisk::SIZE;
                    disk.describe(index, disk.layout.desc, 16, NEXT, next);
                }
                disk.offer(attacker, 0);
                circles += 1;
            }
        },
    );
    assert!(circles > TURNS / 8, "{circles} circles");
}

/// Whether the frame answers a request.
fn is_answer(frame: &[u8]) -> bool {
    frame[0] & 1 != 0
}

/// A disk whose descriptors a second thread of the guest flips, until it is dropped.
struct Flipping {
    disk: RawDisk,
    statuses: [u64; 2],
    used: u16,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flipping {
    /// Requests in flight, of three descriptors each.
    const REQUESTS: u16 = 2;

    fn bring_up(rig: &mut Rig, guest: &mut RawGuest) -> Self {
        let mut disk = bring_up(rig, guest);
        let mut statuses = [0; 2];
        for (status, first) in statuses.iter_mut().zip([0, 3]) {
            let (_, data) = disk.take(64);
            *status = disk.read_request(first, 0, data, ID);
            disk.write(*status - 16, &[GET_ID]);
            disk.offer(guest, first);
        }
        let bytes = 16 * u32::from(RawDisk::SIZE);
        let table = disk
            .pool
            .translate_leased(disk.layout.desc, bytes, Access::Write);
        let table = table.unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::spawn(move || {
            let mut bad = false;
            while !ended.load(Ordering::Relaxed) {
                bad = !bad;
                for data in [1, 4_u64] {
                    let descriptor = table.range();
                    // An area that is not there, and more than the serial has.
                    let (area, len) = if bad { (9, ID + 1) } else { (2, ID) };
                    descriptor.write(16 * data + 6, &[area]).unwrap();
                    descriptor.write(16 * data + 8, &len.to_le_bytes()).unwrap();
                }
            }
        });
        Self {
            disk,
            statuses,
            used: 0,
            end,
            thread: Some(thread),
        }
    }

    /// Offers what was served again; the statuses of that.
    fn again(&mut self, guest: &mut RawGuest) -> Vec<u8> {
        let mut found = Vec::new();
        while self.used != self.disk.used() {
            let which = self.used % Self::REQUESTS;
            let status = self.statuses[usize::from(which)];
            found.extend(self.disk.read(status, 1));
            self.disk.offer(guest, 3 * which);
            self.used = self.used.wrapping_add(1);
        }
        found
    }
}

impl Drop for Flipping {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn descriptors_that_never_rest_take_nothing_from_the_neighbour() {
    let mut found = Vec::new();
    let most = TURNS * u64::from(Flipping::REQUESTS);
    withstands_with(Flipping::bring_up, |attacker, disk| {
        attacker.receive();
        found.extend(disk.again(attacker));
    });
    assert!(found.len() as u64 > most / 2, "{} requests", found.len());
    assert!(found.contains(&IOERR), "nothing was flipped");
}

#[test]
fn buffers_that_are_revoked_in_flight_take_nothing_from_the_neighbour() {
    /// As many as the queue has room for.
    const REQUESTS: u64 = GrantDisk::SIZE as u64 / 3;
    let mut controls: Vec<GrantedPages> = Vec::new();
    let mut failed = 0;
    withstands_with(
        |rig, attacker| {
            add_disk(rig, attacker);
            GrantDisk::bring_up(rig, attacker, DISK, Features(0))
        },
        |attacker, disk| {
            attacker.receive();
            while disk.used().is_some() {
                failed += 1;
            }
            for control in controls.drain(..) {
                let status = control.area.range(16, 1, Access::Read).unwrap();
                assert_eq!(status.read_array(0), Ok([IOERR]));
            }
            let mut buffers = Vec::new();
            for _ in 0..REQUESTS {
                let request = GrantRequest::get_id(attacker);
                disk.add(&request);
                buffers.push(request.data);
                controls.push(request.control);
            }
            for buffer in buffers {
                buffer.revoke().unwrap();
            }
            disk.kick(attacker);
        },
    );
    assert_eq!(failed, REQUESTS * (TURNS - 1));
}
