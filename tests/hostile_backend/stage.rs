//! A frontend against a backend on a thread of its own, which does what the test says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use frontend_shim::{Disk, Frontend, FrontendError, Limits, Operation};
use tests::{Bus, LIMIT, Lies, Machine, RawBackend, Toolstack};
use xen_types::DomId;

/// How long the tests' frontends wait for an answer, a reset, a request: a backend that never
/// answers costs this.
const PATIENCE: Duration = Duration::from_millis(500);

/// A guest with a bus, and no backend yet.
pub(crate) struct Stage {
    pub(crate) machine: Machine,
    pub(crate) bus: Bus,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let machine = Machine::start();
        let bus = Bus::of(machine.create_domain("guest"));
        Toolstack::new(machine.store(DomId::DOM0)).make_bus(bus);
        Self { machine, bus }
    }

    /// A frontend without much patience.
    pub(crate) fn frontend(&self) -> Frontend {
        let mut frontend = Frontend::open(&self.machine.spec(self.bus.guest), 0).unwrap();
        frontend.set_limits(Limits {
            answer: PATIENCE,
            reset: PATIENCE,
            request: PATIENCE,
        });
        frontend
    }

    /// Runs `guest` against a backend that does what `backend` says, until `done` tells it that
    /// the guest has ended.
    pub(crate) fn play<T>(
        &self,
        backend: impl FnOnce(&mut RawBackend, &dyn Fn() -> bool) + Send,
        guest: impl FnOnce(Frontend) -> T,
    ) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut raw = RawBackend::new(&self.machine, self.bus);
                backend(&mut raw, &|| done.load(Ordering::Acquire));
            });
            let _end = Done(&done);
            guest(self.frontend())
        })
    }

    /// As [`Stage::play`], with a backend that connects and then lies like this.
    pub(crate) fn against<T>(
        &self,
        mut lies: impl Lies + Send,
        guest: impl FnOnce(Frontend) -> T,
    ) -> T {
        self.play(
            move |backend, done| {
                backend.offer(&[]);
                backend.connect();
                backend.serve(&mut lies, |_| done());
            },
            |mut frontend| {
                frontend.connect(LIMIT).unwrap();
                guest(frontend)
            },
        )
    }
}

/// What opening the disk says; it must fail, and leave nothing on the bus.
#[track_caller]
pub(crate) fn refused(mut frontend: Frontend) -> String {
    let opened = Disk::open(&mut frontend, 0).map(drop);
    let error = opened.unwrap_err().to_string();
    if let Ok(link) = frontend.link() {
        assert_eq!(link.bus().devices().count(), 0, "{error}");
    }
    error
}

/// What a read says of a disk that came up; it must fail.
#[track_caller]
pub(crate) fn broken(mut frontend: Frontend) -> FrontendError {
    let mut disk = Disk::open(&mut frontend, 0).unwrap();
    let read = Operation::Read {
        sector: 0,
        len: 512,
    };
    disk.run(&mut frontend, read).unwrap_err()
}

#[track_caller]
pub(crate) fn assert_says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

/// Tells the backend's thread also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
