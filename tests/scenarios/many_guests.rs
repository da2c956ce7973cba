//! One backend process, many guests with several disks each: everybody sees the own disks alone,
//! and whoever dies, nothing of the guests stays held.

use frontend_shim::{Disk, Frontend, Operation};
use tests::{Bus, Holdings, LIMIT, Machine, Process, Toolstack, write_pattern};
use xen_types::DomId;

use crate::scene::start_backend;

/// Guests, and disks of each.
const GUESTS: u16 = 32;
const DISKS: u16 = 2;
/// Bytes of a disk, and of a request.
const BYTES: usize = 256 << 10;
const REQUEST: usize = 64 << 10;

/// What tells a disk from every other disk of the machine.
fn generation(guest: DomId, disk: u16) -> u64 {
    u64::from(guest.0) << 16 | u64::from(disk)
}

fn serial(guest: DomId, disk: u16) -> String {
    format!("{guest}-{disk}")
}

/// A domain that uses all disks of its bus.
struct Guest {
    bus: Bus,
    frontend: Frontend,
    disks: Vec<Disk>,
}

impl Guest {
    /// Connects, and finds the own disks on the bus and nothing else.
    fn bring_up(machine: &Machine, bus: Bus) -> Self {
        let mut frontend = Frontend::open(&machine.spec(bus.guest), bus.handle).unwrap();
        frontend.connect(LIMIT).unwrap();
        assert_eq!(frontend.devices().unwrap(), [0, 1]);
        let open = |number| Disk::open(&mut frontend, number).unwrap();
        let disks = (0..DISKS).map(open).collect();
        Self {
            bus,
            frontend,
            disks,
        }
    }

    /// Reads every byte of every disk; they are the ones that were made for this guest.
    fn verify(&mut self) {
        let (guest, frontend) = (self.bus.guest, &mut self.frontend);
        for (number, disk) in (0..).zip(&mut self.disks) {
            assert_eq!(disk.serial(frontend).unwrap(), serial(guest, number));
            assert_eq!(disk.bytes(), BYTES as u64);
            let (mut expected, mut found) = (vec![0; REQUEST], vec![0; REQUEST]);
            for at in (0..BYTES).step_by(REQUEST) {
                let sector = at as u64 / 512;
                let len = REQUEST;
                let finished = disk.run(frontend, Operation::Read { sector, len });
                disk.take(frontend, finished.unwrap().slot, &mut found)
                    .unwrap();
                write_pattern(&mut expected, sector, generation(guest, number));
                assert!(
                    found == expected,
                    "domain {guest} disk {number} byte {at} on"
                );
            }
        }
    }

    /// Leaves a request in flight on every disk.
    fn begin_reads(&mut self) {
        for disk in &mut self.disks {
            let slot = disk.free_slot().unwrap();
            let operation = Operation::Read {
                sector: 0,
                len: REQUEST,
            };
            disk.submit(&mut self.frontend, slot, operation).unwrap();
        }
        self.frontend.pump().unwrap();
    }
}

/// The machine with all its guests at work.
struct Crowd {
    guests: Vec<Guest>,
    backend: Process,
    toolstack: Toolstack,
    machine: Machine,
}

impl Crowd {
    /// Every guest has verified its disks, all at the same time, and has requests in flight.
    fn at_work() -> Self {
        let machine = Machine::start();
        let backend = start_backend(&machine);
        let mut toolstack = Toolstack::new(machine.store(DomId::DOM0));
        let buses: Vec<_> = (0..GUESTS)
            .map(|guest| give_disks(&machine, &mut toolstack, &format!("guest{guest}")))
            .collect();
        let work = |bus| {
            let mut guest = Guest::bring_up(&machine, bus);
            guest.verify();
            guest.begin_reads();
            guest
        };
        let guests = std::thread::scope(|scope| {
            let threads: Vec<_> = buses
                .into_iter()
                .map(|bus| scope.spawn(move || work(bus)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Guest>| thread.join().unwrap();
            threads.into_iter().map(join).collect()
        });
        Self {
            guests,
            backend,
            toolstack,
            machine,
        }
    }

    /// Destroys every domain, and takes its process away afterwards.
    fn destroy_guests(&mut self) -> Vec<Bus> {
        let destroy = |guest: Guest| {
            let domid = guest.bus.guest;
            self.machine.hypervisor().destroy_domain(domid).unwrap();
            guest.bus
        };
        self.guests.drain(..).map(destroy).collect()
    }

    /// Of the guests nothing is left, and dom0 holds nothing.
    #[track_caller]
    fn assert_forgotten(&mut self, buses: &[Bus]) {
        for bus in buses {
            let (guest, report) = (bus.guest, self.machine.report(bus.guest));
            assert!(self.machine.is_gone(guest), "{report:?}");
            assert_eq!(
                self.machine.holdings(guest),
                Holdings::default(),
                "{report:?}"
            );
            assert_eq!(report.nodes, 0, "{report:?}");
        }
        assert_eq!(self.machine.holdings(DomId::DOM0), Holdings::default());
    }

    /// The directories of the backend and of the toolstack are gone.
    #[track_caller]
    fn wait_cleaned_up(&mut self, buses: &[Bus]) {
        for bus in buses {
            // The last thing that the backend removes.
            self.toolstack.wait_gone(&format!("/vmsg/{}", bus.guest));
        }
        for path in ["/local/domain/0/backend/virtio-msg", "/vmsg"] {
            assert_eq!(self.toolstack.list(path), [] as [&str; 0], "{path}");
        }
    }
}

fn give_disks(machine: &Machine, toolstack: &mut Toolstack, name: &str) -> Bus {
    let bus = Bus::of(machine.create_domain(name));
    toolstack.make_bus(bus);
    for disk in 0..DISKS {
        let serial = serial(bus.guest, disk);
        let image = machine.file(&serial);
        let mut bytes = vec![0; BYTES];
        write_pattern(&mut bytes, 0, generation(bus.guest, disk));
        std::fs::write(&image, bytes).unwrap();
        let line = format!("type=blk,serial={serial},path={}", image.display());
        toolstack.make_device(bus, disk, &line);
        toolstack.wait_for(&bus.device(disk, "status"), "ready");
    }
    bus
}

#[test]
fn guests_that_are_destroyed_leave_nothing_in_a_backend_that_lives() {
    let mut crowd = Crowd::at_work();
    let held = crowd.machine.holdings(DomId::DOM0);
    assert_eq!(held.ports, u32::from(GUESTS));
    assert!(held.mapped >= u32::from(GUESTS), "{held:?}");
    let buses = crowd.destroy_guests();
    crowd.wait_cleaned_up(&buses);
    crowd.assert_forgotten(&buses);
    crowd.backend.stop().succeeded();
    assert_eq!(crowd.machine.lock_files(), [] as [&str; 0]);
}

#[test]
fn when_everybody_is_killed_nothing_stays_held_and_the_next_backend_cleans_up() {
    let mut crowd = Crowd::at_work();
    crowd.backend.kill();
    assert_eq!(crowd.machine.holdings(DomId::DOM0), Holdings::default());
    let buses = crowd.destroy_guests();
    crowd.assert_forgotten(&buses);
    crowd.backend = start_backend(&crowd.machine);
    crowd.wait_cleaned_up(&buses);
    crowd.backend.stop().succeeded();
    assert_eq!(crowd.machine.lock_files(), [] as [&str; 0]);
}
