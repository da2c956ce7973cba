//! The devices that the toolstack wants on an instance, and what the backend answers
//! (binding sections 2 and 8).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use virtio_devices::{DeviceModel, Engine};
use xenstore::{Client, StoreError, Tree as _};

use crate::instance::Paths;
use crate::negotiation::{Done, read, transact};
use crate::opening::{Opening, PATIENCE, Refusal, close};

/// Devices of one instance; each costs a model, its queues and an open file.
pub const MAX_DEVICES: usize = 64;

/// One device and how far it is.
#[derive(Debug)]
pub(crate) struct Device {
    /// What serves it.
    pub(crate) model: Box<dyn DeviceModel>,
    /// Stable identity, for GET_DEVICE_INFO.
    pub(crate) uuid: [u8; 16],
    leaving: Leaving,
}

/// How a device was told to go; never back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leaving {
    No,
    Asked,
    Forced,
}

/// What the session has to do about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is ready: show it to the driver.
    Added(u16),
    /// Ask the driver to let it go.
    Ask(u16),
    /// Take it away.
    Force(u16),
}

/// All devices of one instance.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    live: BTreeMap<u16, Device>,
    /// Those that are being opened.
    opening: BTreeMap<u16, Opening>,
    /// Numbers that had a device: none is given twice (section 8).
    spent: BTreeSet<u16>,
    /// Why a device was not opened in the last look that may be in a later one.
    shortage: Option<String>,
}

impl Devices {
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Device)> {
        self.live
            .iter_mut()
            .map(|(number, device)| (*number, device))
    }

    pub(crate) fn get_mut(&mut self, number: u16) -> Option<&mut Device> {
        self.live.get_mut(&number)
    }

    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Why the last look has to be done again later, if it has.
    pub(crate) fn take_shortage(&mut self) -> Option<String> {
        self.shortage.take()
    }

    /// Compares the directory with what stands, opens what is new, and says what changed.
    ///
    /// # Errors
    /// The connection to XenStore failed.
    pub(crate) fn reconcile(
        &mut self,
        store: &mut Client,
        paths: &Paths,
        engine: &Engine,
    ) -> Result<Vec<Change>, StoreError> {
        let mut changes = Vec::new();
        let listed: BTreeSet<u16> = match store.directory(&paths.own("device")) {
            Ok(names) => names.iter().filter_map(|name| parse_number(name)).collect(),
            Err(error) if error.is_absent() => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        self.opening.retain(|number, _| listed.contains(number));
        for number in &listed {
            let online = read(store, &format!("{}/online", paths.device(*number)))?;
            let unfinished = self.is_unfinished(*number);
            match (self.live.get_mut(number), online.as_deref()) {
                (None, Some(b"1")) => {
                    self.begin(store, paths, engine, *number)?;
                }
                (None, Some(_)) if unfinished => {
                    self.spent.insert(*number);
                    self.opening.remove(number);
                    set_status(store, paths, *number, "removed", None)?;
                }
                (None, _) => {}
                // Somebody wrote to the directory, perhaps to have the size looked at.
                (Some(device), Some(b"1")) if device.leaving == Leaving::No => {
                    device.model.refresh();
                }
                (Some(device), Some(b"0" | b"1")) => {
                    if device.raise(Leaving::Asked) {
                        set_status(store, paths, *number, "removing", None)?;
                        changes.push(Change::Ask(*number));
                    }
                }
                // "force", nonsense, or the directory is being deleted
                (Some(device), _) => {
                    if device.raise(Leaving::Forced) {
                        changes.push(Change::Force(*number));
                    }
                }
            }
        }
        // All open side by side, and are waited for together.
        let deadline = Instant::now() + PATIENCE;
        for number in self.opening.keys().copied().collect::<Vec<_>>() {
            if self.opened(store, paths, number, deadline)? {
                changes.push(Change::Added(number));
            }
        }
        for (number, device) in &mut self.live {
            if !listed.contains(number) && device.raise(Leaving::Forced) {
                changes.push(Change::Force(*number));
            }
        }
        Ok(changes)
    }

    /// The device has gone from the bus, and nothing of it is held any more.
    ///
    /// # Errors
    /// The connection to XenStore failed.
    pub(crate) fn removed(
        &mut self,
        store: &mut Client,
        paths: &Paths,
        number: u16,
    ) -> Result<(), StoreError> {
        if let Some(device) = self.live.remove(&number) {
            close(device.model);
            tracing::info!(path = paths.backend, dev_num = number, "device removed");
            set_status(store, paths, number, "removed", None)?;
        }
        Ok(())
    }

    /// The connection has ended: what was told to go has no driver any more, and is gone.
    ///
    /// # Errors
    /// The connection to XenStore failed.
    pub(crate) fn remove_leaving(
        &mut self,
        store: &mut Client,
        paths: &Paths,
    ) -> Result<(), StoreError> {
        let leaving = self
            .live
            .iter()
            .filter(|(_, device)| device.leaving != Leaving::No)
            .map(|(number, _)| *number);
        for number in leaving.collect::<Vec<_>>() {
            self.removed(store, paths, number)?;
        }
        Ok(())
    }

    /// Whether the number is new, or its device is being opened.
    fn is_unfinished(&self, number: u16) -> bool {
        !self.spent.contains(&number) || self.opening.contains_key(&number)
    }

    /// Begins to open a device.
    fn begin(
        &mut self,
        store: &mut Client,
        paths: &Paths,
        engine: &Engine,
        number: u16,
    ) -> Result<(), StoreError> {
        if !self.is_unfinished(number) {
            return refuse_spent(store, paths, number);
        }
        if self.spent.insert(number) {
            if self.live.len() + self.opening.len() >= MAX_DEVICES {
                let why =
                    format!("the bus has {MAX_DEVICES} devices, the most that one bus may have");
                return self.refused(store, paths, number, Refusal::Device(why));
            }
            let line = read(store, &format!("{}/config", paths.device(number)))?;
            match Opening::begin(line.unwrap_or_default(), engine) {
                Ok(opening) => drop(self.opening.insert(number, opening)),
                Err(error) => {
                    let why = format!("no thread to open it: {error}");
                    return self.refused(store, paths, number, Refusal::Shortage(why));
                }
            }
        }
        Ok(())
    }

    /// Sees to a device that is being opened. Whether it has become ready.
    fn opened(
        &mut self,
        store: &mut Client,
        paths: &Paths,
        number: u16,
        deadline: Instant,
    ) -> Result<bool, StoreError> {
        let Some(opening) = self.opening.get_mut(&number) else {
            return Ok(false);
        };
        let is_new = opening.is_new();
        let Some(outcome) = opening.outcome(deadline) else {
            let why = "its image does not open yet";
            self.shortage = Some(format!("device {number}: {why}"));
            if is_new {
                set_status(store, paths, number, "building", Some(why))?;
            }
            return Ok(false);
        };
        self.opening.remove(&number);
        match outcome {
            Ok((model, uuid)) => {
                tracing::info!(path = paths.backend, dev_num = number, "device ready");
                let device = Device {
                    model,
                    uuid,
                    leaving: Leaving::No,
                };
                self.live.insert(number, device);
                set_status(store, paths, number, "ready", None)?;
                Ok(true)
            }
            Err(refusal) => {
                self.refused(store, paths, number, refusal)?;
                Ok(false)
            }
        }
    }

    /// A device cannot be opened, for good or for now.
    fn refused(
        &mut self,
        store: &mut Client,
        paths: &Paths,
        number: u16,
        refusal: Refusal,
    ) -> Result<(), StoreError> {
        match refusal {
            Refusal::Shortage(why) => {
                self.spent.remove(&number);
                set_status(store, paths, number, "building", Some(&why))?;
                self.shortage = Some(format!("device {number}: {why}"));
            }
            Refusal::Device(why) => {
                tracing::error!(path = paths.backend, dev_num = number, why, "device failed");
                set_status(store, paths, number, "failed", Some(&why))?;
            }
        }
        Ok(())
    }
}

impl Device {
    /// Whether that is news.
    fn raise(&mut self, to: Leaving) -> bool {
        let news = to > self.leaving;
        self.leaving = self.leaving.max(to);
        news
    }
}

/// A number is wanted that had a device.
fn refuse_spent(store: &mut Client, paths: &Paths, number: u16) -> Result<(), StoreError> {
    let known = read(store, &format!("{}/status", paths.device(number)))?;
    if matches!(known.as_deref(), Some(b"failed" | b"removed")) {
        return Ok(());
    }
    let why =
        format!("device number {number} was used before on this bus; attach gives the next one");
    set_status(store, paths, number, "failed", Some(&why))
}

/// Answers the toolstack, in a transaction that reads `online`: a directory that it deleted
/// meanwhile is not made again.
fn set_status(
    store: &mut Client,
    paths: &Paths,
    number: u16,
    status: &str,
    error: Option<&str>,
) -> Result<(), StoreError> {
    let device = paths.device(number);
    transact(store, |tx| {
        if read(tx, &format!("{device}/online"))?.is_none() {
            return Ok(Done::No);
        }
        let told = format!("{device}/error");
        match error {
            Some(error) => tx.write(&told, error)?,
            None if read(tx, &told)?.is_some() => tx.rm(&told)?,
            None => {}
        }
        tx.write(&format!("{device}/status"), status)?;
        Ok(Done::Yes(()))
    })
    .map(drop)
}

fn parse_number(name: &str) -> Option<u16> {
    u16::try_from(xen_types::parse_decimal(name.as_bytes())?).ok()
}
