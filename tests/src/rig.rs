//! A real backend in the test's own thread, on a machine whose broker the test can wait for: what
//! happens between two steps of a test is everything that can happen, in an order that the test
//! chooses.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backend::{GrantBuffers, Service, open_host};
use xen_types::DomId;

use crate::{Bus, LIMIT, Machine, Toolstack, make_disk};

/// How often a backend on a thread looks whether it is still needed.
const LOOK: Duration = Duration::from_millis(10);

/// A machine, its toolstack and a backend in its dom0.
#[derive(Debug)]
pub struct Rig {
    /// Dom0's hand in XenStore.
    pub toolstack: Toolstack,
    service: Service,
    /// The machine.
    pub machine: Machine,
}

impl Rig {
    /// Without guests.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(GrantBuffers::default())
    }

    /// As [`Rig::start`], with buffers at grant addresses reached in this way.
    #[must_use]
    pub fn start_with(buffers: GrantBuffers) -> Self {
        let machine = Machine::start();
        Self {
            toolstack: Toolstack::new(machine.store(DomId::DOM0)),
            service: new_service(&machine, buffers),
            machine,
        }
    }

    /// A guest with a bus that has one disk of this many bytes.
    pub fn guest_with_disk(&mut self, name: &str, bytes: usize) -> Bus {
        let bus = Bus::of(self.machine.create_domain(name));
        self.toolstack.make_bus(bus);
        let line = self.disk_line(&format!("{name}.img"), bytes);
        self.toolstack.make_device(bus, 0, &line);
        self.until_node(&bus.device(0, "status"), "ready");
        bus
    }

    /// Makes an image in the machine's directory; the line that describes a device of it.
    #[must_use]
    pub fn disk_line(&self, name: &str, bytes: usize) -> String {
        let path = self.machine.file(name);
        make_disk(&path, bytes);
        format!("type=blk,path={}", path.display())
    }

    /// The backend.
    pub fn service(&mut self) -> &mut Service {
        &mut self.service
    }

    /// The backend dies as if it were killed, and another takes its place.
    pub fn restart(&mut self) {
        let buffers = self.service.host().grant_buffers;
        self.service = new_service(&self.machine, buffers);
        self.machine.barrier();
    }

    /// Lets the backend work until it has nothing to do. What its I/O threads do is not waited for.
    pub fn settle(&mut self) {
        loop {
            self.machine.barrier();
            let before = self.traffic();
            while self.service.turn(Some(Duration::ZERO)).expect("backend") {}
            self.machine.barrier();
            if self.traffic() == before {
                return;
            }
        }
    }

    /// Lets the backend work until something is so.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.settle();
            if let Some(found) = so(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "never came: {what}");
            self.service.turn(Some(LOOK)).expect("backend");
        }
    }

    /// Lets the backend work until a node has this value.
    #[track_caller]
    pub fn until_node(&mut self, path: &str, value: &str) {
        let what = format!("{path} = {value}");
        self.until(&what, |rig| {
            (rig.toolstack.read(path).as_deref() == Some(value)).then_some(())
        });
    }

    /// Runs the backend on a thread of its own while `work` runs on this one.
    pub fn while_serving<T>(&mut self, work: impl FnOnce(&Machine, &mut Toolstack) -> T) -> T {
        self.while_serving_as(|| (), work)
    }

    /// As [`Rig::while_serving`]; the backend's thread begins with `begin`.
    pub fn while_serving_as<T>(
        &mut self,
        begin: impl FnOnce() + Send,
        work: impl FnOnce(&Machine, &mut Toolstack) -> T,
    ) -> T {
        let done = AtomicBool::new(false);
        let Self {
            toolstack,
            service,
            machine,
        } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin();
                while !done.load(Ordering::Acquire) {
                    service.turn(Some(LOOK)).expect("backend");
                }
            });
            let _end = Done(&done);
            work(machine, toolstack)
        })
    }

    /// Everything that shows that the backend did something.
    fn traffic(&self) -> impl PartialEq + use<> {
        let requests = *self.service.host().store.requests();
        (requests, self.machine.counters(DomId::DOM0))
    }
}

fn new_service(machine: &Machine, buffers: GrantBuffers) -> Service {
    let mut host = open_host(&machine.spec(DomId::DOM0)).expect("host");
    host.grant_buffers = buffers;
    Service::new(host, None).expect("service")
}

/// Ends the backend's thread also when the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
