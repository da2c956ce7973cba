//! The toolstack's part in XenStore, by the letter of binding sections 2 and 8, for tests that must
//! be able to stop between its steps. Tests of processes use `vmsg attach` and `vmsg detach`.

use std::time::Instant;

use xen_types::DomId;
use xenstore::{Access, Client, Permissions, Tree as _};

use crate::LIMIT;

/// The paths of a bus of a guest whose backend is in dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bus {
    /// The guest.
    pub guest: DomId,
    /// Which of its buses.
    pub handle: u32,
}

impl Bus {
    /// Bus 0 of a guest.
    #[must_use]
    pub fn of(guest: DomId) -> Self {
        Self { guest, handle: 0 }
    }

    /// A node of the frontend's directory.
    #[must_use]
    pub fn front(&self, key: &str) -> String {
        let Self { guest, handle } = self;
        format!("/local/domain/{guest}/device/virtio-msg/{handle}/{key}")
    }

    /// A node of the backend's directory.
    #[must_use]
    pub fn back(&self, key: &str) -> String {
        let Self { guest, handle } = self;
        format!("/local/domain/0/backend/virtio-msg/{guest}/{handle}/{key}")
    }

    /// A node of the toolstack's own record.
    #[must_use]
    pub fn record(&self, key: &str) -> String {
        let Self { guest, handle } = self;
        format!("/vmsg/{guest}/{handle}/{key}")
    }

    /// A node of a device's directory.
    #[must_use]
    pub fn device(&self, number: u16, key: &str) -> String {
        self.back(&format!("device/{number}/{key}"))
    }
}

/// Dom0's connection to XenStore.
#[derive(Debug)]
pub struct Toolstack {
    store: Client,
}

impl Toolstack {
    /// Over a connection of dom0.
    #[must_use]
    pub fn new(store: Client) -> Self {
        Self { store }
    }

    /// Makes both directories of a bus and its record, in one transaction.
    pub fn make_bus(&mut self, bus: Bus) {
        let (front, back) = (parent(&bus.front("state")), parent(&bus.back("state")));
        let made = self.store.transact(|tx| {
            tx.mkdir(&front)?;
            let frontend = Permissions::private(bus.guest);
            tx.set_perms(&front, &frontend.with(DomId::DOM0, Access::Read))?;
            tx.mkdir(&back)?;
            let backend = Permissions::private(DomId::DOM0);
            tx.set_perms(&back, &backend.with(bus.guest, Access::Read))?;
            tx.write(&bus.front("backend"), back.as_str())?;
            tx.write(&bus.front("backend-id"), "0")?;
            tx.write(&bus.front("state"), "1")?;
            tx.write(&bus.back("frontend"), front.as_str())?;
            tx.write(&bus.back("frontend-id"), bus.guest.to_string())?;
            tx.write(&bus.back("online"), "1")?;
            tx.write(&bus.back("state"), "1")?;
            tx.write(&bus.record("backend"), "0")
        });
        made.expect("make the bus");
    }

    /// Makes a device, in one transaction.
    pub fn make_device(&mut self, bus: Bus, number: u16, line: &str) {
        let directory = parent(&bus.device(number, "online"));
        let made = self.store.transact(|tx| {
            tx.mkdir(&directory)?;
            tx.set_perms(&directory, &Permissions::private(DomId::DOM0))?;
            tx.write(&bus.device(number, "config"), line)?;
            tx.write(&bus.device(number, "online"), "1")
        });
        made.expect("make the device");
    }

    /// Writes a node.
    pub fn write(&mut self, path: &str, value: &str) {
        self.store.write(path, value).expect(path);
    }

    /// A node as text; `None`: it is not there.
    pub fn read(&mut self, path: &str) -> Option<String> {
        let value = self.store.read_opt(path).expect(path)?;
        Some(String::from_utf8(value).expect("text"))
    }

    /// The names below a node; none if it is not there.
    pub fn list(&mut self, path: &str) -> Vec<String> {
        match self.store.directory(path) {
            Err(error) if error.is_absent() => Vec::new(),
            names => names.expect(path),
        }
    }

    /// Removes a node and all below it.
    pub fn remove(&mut self, path: &str) {
        self.store.rm(path).expect(path);
    }

    /// Removes both directories of a bus, and its record.
    pub fn remove_bus(&mut self, bus: Bus) {
        let removed = self.store.transact(|tx| {
            tx.rm(&parent(&bus.back("state")))?;
            tx.rm(&parent(&bus.front("state")))?;
            tx.rm(&parent(&bus.record("backend")))
        });
        removed.expect("remove the bus");
    }

    /// Waits until a node is as wanted; gives its value.
    pub fn wait(&mut self, path: &str, wanted: impl Fn(Option<&str>) -> bool) -> Option<String> {
        self.store.watch(path, "wait").expect(path);
        let deadline = Instant::now() + LIMIT;
        let value = loop {
            let value = self.read(path);
            if wanted(value.as_deref()) {
                break value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.store.wait_event(left).expect("XenStore");
            assert!(event.is_some(), "{path} stays {value:?}");
        };
        self.store.unwatch(path, "wait").expect(path);
        value
    }

    /// Waits until a node has this value.
    pub fn wait_for(&mut self, path: &str, value: &str) {
        self.wait(path, |found| found == Some(value));
    }

    /// Waits until a node is gone.
    pub fn wait_gone(&mut self, path: &str) {
        self.wait(path, |found| found.is_none());
    }
}

fn parent(path: &str) -> String {
    path.rsplit_once('/')
        .map_or("", |(parent, _)| parent)
        .to_owned()
}
