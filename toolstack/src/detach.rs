//! `vmsg detach`: takes a device, or a whole bus, from a guest (binding section 8).

use std::time::Duration;

use anyhow::{Context as _, bail};
use backend::Gauges;
use frontend_shim::backend_command;
use xen_hal::PlatformSpec;
use xen_types::DomId;
use xenstore::{Client, StoreError, Transaction, Tree as _};

use crate::bus::Bus;
use crate::domain::{self, read_text};
use crate::{output, platform, stale, wait};

/// How long a driver that was asked may take to let go, and then the backend: it gives up asking
/// for a whole bus after 30 s (section 8).
const ASK_LIMIT: Duration = Duration::from_secs(40);
/// How long I/O in flight is waited for when nobody is asked.
const FORCE_LIMIT: Duration = Duration::from_secs(10);
/// How long a backend may take that has closed the bus, or is not there: the two look alike.
const CLOSED_LIMIT: Duration = Duration::from_secs(2);

/// Take a device from a guest.
///
/// The guest's driver is asked to let it go, which it may refuse; --force does not ask, and I/O in
/// flight still completes. The last device takes its bus with it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vmsg detach guest1 0           device 0 of bus 0, once its driver lets it go
  vmsg detach guest1 0 --force   the same, whatever the driver does with it
  vmsg detach guest1 --all       bus 0 with all its devices")]
#[command(override_usage = "vmsg detach [OPTIONS] <DOMAIN> <DEV|--all>")]
pub(crate) struct Options {
    /// The guest, by name or number.
    domain: String,
    /// The device, as `vmsg attach` and `vmsg list` number it.
    #[arg(
        value_name = "DEV",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    device: Option<u32>,
    /// The whole bus. Its driver is asked, and after 30 s it goes all the same.
    #[arg(long)]
    all: bool,
    /// The guest's bus.
    #[arg(long, value_name = "HANDLE", default_value_t = 0)]
    bus: u32,
    /// Ask nobody. Also what takes away a device whose backend is dead.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(spec: &PlatformSpec, options: &Options) -> anyhow::Result<()> {
    let mut store = platform::open_dom0_store(spec)?;
    stale::sweep(&mut store)?;
    let guest = domain::find(&mut store, &options.domain)?;
    let bus = Bus::standing(&mut store, guest, options.bus)?;
    let missing = missing_backend(spec, &bus);
    let missing = missing.as_deref();
    if let Some(number) = options.device {
        ask_device(&mut store, &bus, number, options.force, missing)?;
        let last = remove_device_directory(&mut store, &bus, number)?;
        output::print(format_args!("{bus} device {number}: removed"))?;
        if !last {
            return Ok(());
        }
    }
    remove_bus(&mut store, &bus, options.force, missing)?;
    output::print(format_args!("{bus}: removed"))?;
    Ok(())
}

/// Takes away a device that was never ready, and its bus if nothing else is on it.
pub(crate) fn remove_device(store: &mut Client, bus: &Bus, number: u32) -> anyhow::Result<()> {
    if remove_device_directory(store, bus, number)? {
        remove_bus(store, bus, true, None)?;
    }
    Ok(())
}

/// Writes `online` and waits until nobody holds the device any more.
fn ask_device(
    store: &mut Client,
    bus: &Bus,
    number: u32,
    force: bool,
    missing: Option<&str>,
) -> anyhow::Result<()> {
    let device = bus.device(number);
    let (online, status) = (format!("{device}/online"), format!("{device}/status"));
    let limit = patience(store, bus, force, missing)?;
    // In a transaction: a directory that somebody else deletes now must not be made again.
    store.transact(|tx| -> anyhow::Result<()> {
        let Some(now) = read_text(tx, &online)? else {
            bail!("{bus} has no device {number}; `vmsg list` shows what there is");
        };
        // 1, 0, force, and never back.
        match (now.as_str(), force) {
            ("force", _) | ("0", false) => {}
            (_, true) => tx.write(&online, "force")?,
            (_, false) => tx.write(&online, "0")?,
        }
        Ok(())
    })?;
    let gone = wait::until(store, &[&device], limit, |store| {
        let gone = store.read_opt(&online)?.is_none()
            || matches!(
                read_text(store, &status)?.as_deref(),
                Some("removed" | "failed")
            );
        Ok(gone.then_some(()))
    })?;
    if gone.is_none() && limit == ASK_LIMIT {
        let status = read_text(store, &status)?;
        bail!(
            "{bus} device {number} is still in use after {} s: {}; it stays asked: run this again later, or with --force",
            limit.as_secs(),
            who_is_silent(bus.backend_id, status.as_deref())
        );
    }
    Ok(())
}

/// Whose answer is missing: a backend that runs says at once that it asks the guest's driver.
fn who_is_silent(backend_id: DomId, status: Option<&str>) -> String {
    match status {
        Some("removing") => "the guest does not let it go".into(),
        _ => format!(
            "the backend in domain {backend_id} does not answer (is it stopped?), so the guest was not asked"
        ),
    }
}

/// Deletes a device's directory. If it was the last, the bus is told to go in the same
/// transaction, so that no other device can join it; the answer is whether it was.
fn remove_device_directory(store: &mut Client, bus: &Bus, number: u32) -> anyhow::Result<bool> {
    store.transact(|tx| {
        remove_if_there(tx, &bus.device(number))?;
        let last = domain::numbers(tx, &bus.devices())?.next().is_none();
        if last {
            end_bus(tx, bus)?;
        }
        Ok(last)
    })
}

/// Takes down a bus with all that is on it.
fn remove_bus(
    store: &mut Client,
    bus: &Bus,
    force: bool,
    missing: Option<&str>,
) -> anyhow::Result<()> {
    let limit = patience(store, bus, force, missing)?;
    store.transact(|tx| end_bus(tx, bus))?;
    let state = format!("{}/state", bus.backend());
    let closed = wait::until(store, &[&state], limit, |store| {
        let closed = matches!(read_text(store, &state)?.as_deref(), None | Some("6"));
        Ok(closed.then_some(()))
    })?;
    if closed.is_none() && limit == ASK_LIMIT {
        bail!(
            "the backend still holds {bus} after {} s: run `vmsg detach {} --bus {} --all` again later, or with --force",
            limit.as_secs(),
            bus.frontend_id,
            bus.handle
        );
    }
    store
        .transact(|tx| stale::remove(tx, bus))
        .with_context(|| bus.to_string())
}

fn end_bus(tx: &mut Transaction<'_>, bus: &Bus) -> Result<(), StoreError> {
    let online = format!("{}/online", bus.backend());
    if tx.read_opt(&online)?.is_some_and(|now| now != b"0") {
        tx.write(&online, "0")?;
    }
    Ok(())
}

/// How long the backend may take to answer, judged by its state, and by whether it runs at all.
///
/// # Errors
/// It does not run, its guest was connected when it died, and nobody said that this does not matter.
fn patience(
    store: &mut Client,
    bus: &Bus,
    force: bool,
    missing: Option<&str>,
) -> anyhow::Result<Duration> {
    let state = read_text(store, &format!("{}/state", bus.backend()))?;
    Ok(match state.as_deref() {
        // No backend has seen the bus: one that runs takes it out of state 1 at once.
        None | Some("1") => Duration::ZERO,
        // In these states a backend that stopped holds nothing of the guest's (section 3).
        Some("2" | "6") if missing.is_some() => Duration::ZERO,
        _ if missing.is_some() && force => Duration::ZERO,
        _ if let Some(command) = missing => bail!(
            "{bus}: the guest is connected, and no backend runs in domain {} that could ask it: start {command}, or use --force",
            bus.backend_id
        ),
        Some("6") => CLOSED_LIMIT,
        _ if force => FORCE_LIMIT,
        _ => ASK_LIMIT,
    })
}

/// What would start the backend of the bus, if none runs. What runs in a driver domain of a real Xen
/// cannot be seen from here.
fn missing_backend(spec: &PlatformSpec, bus: &Bus) -> Option<String> {
    let visible = bus.backend_id == DomId::DOM0 || matches!(spec, PlatformSpec::Hosted { .. });
    let gauges = || Gauges::read(&backend::run_dir(spec), bus.backend_id);
    (visible && matches!(gauges(), Ok(None))).then(|| backend_command(spec, bus.backend_id))
}

fn remove_if_there(tx: &mut Transaction<'_>, path: &str) -> Result<(), StoreError> {
    match tx.rm(path) {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_named() {
        let guest = who_is_silent(DomId(3), Some("removing"));
        assert_eq!(guest, "the guest does not let it go");
        for status in [Some("ready"), None] {
            let backend = who_is_silent(DomId(3), status);
            assert!(backend.starts_with("the backend in domain 3 does not answer"));
        }
    }
}
