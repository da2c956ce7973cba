//! `vmsg attach`: gives a device to a guest (binding section 2).
//!
//! Everything is made in one transaction, permissions before any key, so that neither side sees
//! half of it, and the guest never sees what the host's device is made of.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use frontend_shim::backend_command;
use xen_bus::config::{ConfigError, DeviceConfig};
use xen_hal::PlatformSpec;
use xen_types::{DomId, parse_decimal};
use xenstore::{Access, Client, Permissions, StoreError, Transaction, Tree as _};

use crate::bus::Bus;
use crate::domain::{self, read_text};
use crate::{detach, driver_domain, output, platform, stale, wait};

/// How long a backend that runs may take to find a new bus.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(1);
/// How long it may take to open the device.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// Give a device to a guest, whether or not the guest uses its bus yet.
///
/// CONFIG is one line, the same as in xl.cfg and in XenStore:
/// type=blk|rng,mode=rw|ro,serial=TEXT,queues=N,direct=0|1,uuid=UUID,path=FILE. Only type is needed,
/// and path for a block device; path= takes the rest of the line. With direct=1 the host's page cache
/// is not used. Prints the number that the device got on the bus; it is not
/// given again while the bus lives.
///
/// If the backend cannot open the device, nothing is left of it, and the exit status is 1. If no
/// backend runs, the device waits for one; if the backend misses something, until it has that.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vmsg attach guest1 type=blk,path=/srv/guest1.img
  vmsg attach guest1 type=blk,mode=ro,serial=install,path=/srv/debian.iso
  vmsg attach guest1 type=blk,direct=1,path=/dev/vg0/guest1-database
  vmsg attach guest1 type=rng
  vmsg attach 7 --bus 1 type=blk,path=/dev/vg0/guest1-data
  vmsg attach guest1 --bus 2 --backend storage type=blk,path=/dev/sdb   a disk of domain `storage`")]
pub(crate) struct Options {
    /// The guest, by name or number.
    domain: String,
    /// The guest's bus to put the device on; it is made if it is not there.
    #[arg(long, value_name = "HANDLE", default_value_t = 0)]
    bus: u32,
    /// The domain that serves the bus, by name or number: dom0, or a driver domain that runs
    /// `vmsg backend` [default: whoever serves the bus already, else dom0].
    #[arg(long, value_name = "DOMAIN")]
    backend: Option<String>,
    /// What the device is.
    #[arg(value_parser = possible)]
    config: DeviceConfig,
}

/// What the backend made of a device.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is on the bus.
    Ready,
    /// It cannot be opened, and why.
    Failed(String),
    /// The backend misses something, tries again by itself, and what that is.
    Waits(String),
    /// No backend looked at it in time.
    Nobody,
}

pub(crate) fn run(spec: &PlatformSpec, options: &Options) -> anyhow::Result<()> {
    let mut store = platform::open_dom0_store(spec)?;
    stale::sweep(&mut store)?;
    let bus = find_bus(&mut store, options)?;
    let mut config = options.config.clone();
    if let Some(path) = &mut config.path {
        *path = path_for(bus.backend_id, path)?;
    }
    if bus.backend_id != DomId::DOM0 {
        driver_domain::prepare(&mut store, bus.backend_id)?;
    }
    let number = attach(&mut store, &bus, config)?;
    match answer(&mut store, &bus, number)? {
        Answer::Ready => output::print(format_args!("{bus} device {number}: ready"))?,
        Answer::Nobody => output::print(format_args!(
            "{bus} device {number}: waits for a backend (start {})",
            backend_command(spec, bus.backend_id)
        ))?,
        Answer::Waits(why) => output::print(format_args!(
            "{bus} device {number}: waits, and the backend tries again by itself: {why}"
        ))?,
        Answer::Failed(why) => {
            detach::remove_device(&mut store, &bus, number)
                .with_context(|| format!("{why}; and the device stays attached"))?;
            bail!("{bus}: {why}");
        }
    }
    Ok(())
}

/// A line that a backend can serve, as far as the line itself tells. No backend need run for it, so
/// that a mistake is told to whoever makes it.
fn possible(line: &str) -> Result<DeviceConfig, String> {
    let config: DeviceConfig = line
        .parse()
        .map_err(|error: ConfigError| error.to_string())?;
    match config.device_type.as_str() {
        "blk" if config.path.is_none() => Err("type=blk needs path=".into()),
        "rng"
            if config.path.is_some()
                || config.serial.is_some()
                || config.queues != 1
                || config.direct =>
        {
            Err("type=rng has no path, no serial, one queue and no direct=1".into())
        }
        "blk" | "rng" => Ok(config),
        other => Err(format!("type={other} is not known; known are: blk, rng")),
    }
}

/// The bus that is meant, which need not stand yet.
fn find_bus(store: &mut Client, options: &Options) -> anyhow::Result<Bus> {
    let guest = domain::find(store, &options.domain)?;
    let wanted = match &options.backend {
        None => None,
        Some(named) => Some(domain::find(store, named).context("--backend")?),
    };
    let standing = Bus::recorded(store, guest, options.bus)?;
    let serving = standing.as_ref().map(|bus| bus.backend_id);
    if wanted.or(serving).unwrap_or(DomId::DOM0) == guest {
        bail!("domain {guest} cannot serve itself: give another --backend");
    }
    match (standing, wanted) {
        (Some(bus), Some(wanted)) if bus.backend_id != wanted => {
            Err(served_by_another(&bus, wanted))
        }
        (Some(bus), _) => Ok(bus),
        (None, wanted) => Ok(Bus {
            frontend_id: guest,
            backend_id: wanted.unwrap_or(DomId::DOM0),
            handle: options.bus,
        }),
    }
}

fn served_by_another(bus: &Bus, wanted: DomId) -> anyhow::Error {
    anyhow!(
        "{bus} is served by domain {}, not {wanted}: take another with --bus",
        bus.backend_id
    )
}

/// Makes the bus if it is not there, and the device; gives the device's number.
pub(crate) fn attach(
    store: &mut Client,
    bus: &Bus,
    mut config: DeviceConfig,
) -> anyhow::Result<u32> {
    config.uuid.get_or_insert_with(uuid::Uuid::new_v4);
    let made = store.transact(|tx| {
        domain::must_live(tx, bus.frontend_id)?;
        if bus.backend_id != DomId::DOM0 {
            domain::must_live(tx, bus.backend_id)?;
        }
        match Bus::recorded(tx, bus.frontend_id, bus.handle)? {
            None => make_bus(tx, bus)?,
            Some(standing) if standing == *bus => must_be_online(tx, bus)?,
            Some(standing) => return Err(served_by_another(&standing, bus.backend_id)),
        }
        make_device(tx, bus, &config)
    });
    made.map_err(explain_quota).with_context(|| bus.to_string())
}

fn make_bus(tx: &mut Transaction<'_>, bus: &Bus) -> anyhow::Result<()> {
    let (guest, backend) = (bus.frontend_id, bus.backend_id);
    let (front, back, record) = (bus.frontend(), bus.backend(), bus.record());
    if tx.read_opt(&format!("{back}/frontend"))?.is_some() {
        bail!("{back} exists, but was not made by vmsg attach");
    }
    let frontend_uuid = domain::uuid(tx, guest)?;
    let readable_by = |owner, reader| Permissions::private(owner).with(reader, Access::Read);
    for (directory, permissions, keys) in [
        (
            &front,
            readable_by(guest, backend),
            &[
                ("backend", back.as_str()),
                ("backend-id", &backend.to_string()),
                ("state", "1"),
            ][..],
        ),
        (
            &back,
            readable_by(backend, guest),
            &[
                ("frontend", front.as_str()),
                ("frontend-id", &guest.to_string()),
                ("frontend-uuid", &frontend_uuid),
                ("online", "1"),
                ("state", "1"),
            ],
        ),
        (
            &record,
            Permissions::private(DomId::DOM0),
            &[("backend", &backend.to_string()), ("next-device", "0")],
        ),
    ] {
        tx.mkdir(directory)?;
        tx.set_perms(directory, &permissions)?;
        for (key, value) in keys {
            tx.write(&format!("{directory}/{key}"), value)?;
        }
    }
    Ok(())
}

/// A bus that is going down takes no device more.
fn must_be_online(tx: &mut Transaction<'_>, bus: &Bus) -> anyhow::Result<()> {
    if read_text(tx, &format!("{}/online", bus.backend()))?.as_deref() != Some("1") {
        bail!(
            "the bus is being removed: try again when `vmsg list` does not show it any more, or take another with --bus"
        );
    }
    Ok(())
}

fn make_device(tx: &mut Transaction<'_>, bus: &Bus, config: &DeviceConfig) -> anyhow::Result<u32> {
    let next = format!("{}/next-device", bus.record());
    let number = tx
        .read_opt(&next)?
        .and_then(|text| parse_decimal(&text))
        .with_context(|| format!("XenStore {next} is no number"))?;
    if number > u32::from(u16::MAX) {
        bail!("every device number of this bus was used; take another with --bus");
    }
    tx.write(&next, (number + 1).to_string())?;
    let device = bus.device(number);
    tx.mkdir(&device)?;
    tx.set_perms(&device, &Permissions::private(bus.backend_id))?;
    tx.write(&format!("{device}/config"), config.to_string())?;
    tx.write(&format!("{device}/online"), "1")?;
    Ok(number)
}

/// Waits for what the backend makes of a device.
pub(crate) fn answer(store: &mut Client, bus: &Bus, number: u32) -> anyhow::Result<Answer> {
    let device = bus.device(number);
    let (status, state) = (
        format!("{device}/status"),
        format!("{}/state", bus.backend()),
    );
    // A backend that runs takes the bus out of state 1, or says that it builds the device.
    let taken = wait::until(store, &[&status, &state], DISCOVERY_LIMIT, |store| {
        let taken = read_text(store, &state)?.as_deref() != Some("1")
            || read_text(store, &status)?.is_some();
        Ok(taken.then_some(()))
    })?;
    if taken.is_none() {
        return Ok(Answer::Nobody);
    }
    let error = format!("{device}/error");
    let answer = wait::until(store, &[&device], OPEN_LIMIT, |store| {
        if store.read_opt(&format!("{device}/online"))?.is_none() {
            bail!("{bus} device {number} was taken away again by somebody else");
        }
        Ok(match read_text(store, &status)?.as_deref() {
            Some("failed") => {
                let why = read_text(store, &error)?;
                Some(Answer::Failed(why.unwrap_or_else(|| {
                    "the backend failed and does not say why".into()
                })))
            }
            Some("ready" | "removing" | "removed") => Some(Answer::Ready),
            // The reason is why it waits.
            Some("building") => read_text(store, &error)?.map(Answer::Waits),
            _ => None,
        })
    })?;
    Ok(answer.unwrap_or(Answer::Nobody))
}

/// The path as the backend is to open it: its working directory is not that of whoever types it,
/// and a driver domain's files are not those of dom0.
fn path_for(backend_id: DomId, path: &str) -> anyhow::Result<String> {
    if backend_id != DomId::DOM0 && !path.starts_with('/') {
        bail!("path={path} is to be a file of domain {backend_id}: give it from / on");
    }
    absolute(path)
}

fn absolute(path: &str) -> anyhow::Result<String> {
    let absolute = std::path::absolute(path).with_context(|| format!("path={path}"))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| anyhow!("path={} is not UTF-8", path.display()))
}

/// Says what a quota is and what raises it.
fn explain_quota(error: anyhow::Error) -> anyhow::Error {
    if matches!(
        error.downcast_ref::<StoreError>(),
        Some(StoreError::Quota { .. })
    ) {
        error.context(
            "a domain may own 1,000 XenStore nodes by default (a bus costs the guest 13 to 28, the backend 18, a device 5); `xenstore-control quota` shows the limits, `xenstore-control quota set nodes 2000` raises this one",
        )
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_no_backend_can_serve_is_wrong_usage() {
        for (line, why) in [
            ("type=tape,path=/x", "type=tape is not known"),
            ("type=blk", "type=blk needs path="),
            ("type=rng,path=/x", "type=rng has no path"),
            ("type=rng,queues=2", "one queue"),
            ("type=blk,mode=x,path=/x", "mode=x is not possible"),
        ] {
            let error = possible(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
        for line in ["type=rng", "type=blk,path=/x"] {
            assert!(possible(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_path_is_handed_on_as_it_is_seen_here() {
        assert_eq!(absolute("/srv/a,b.img").unwrap(), "/srv/a,b.img");
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            absolute("a.img").unwrap(),
            here.join("a.img").display().to_string()
        );
    }

    #[test]
    fn a_quota_error_says_the_limit_and_what_raises_it() {
        let error = StoreError::Quota {
            path: "/local/domain/7/device/virtio-msg/0".into(),
            kind: xenstore::MessageType::SET_PERMS,
            code: xenstore::ErrorCode::NoSpace,
        };
        let text = format!("{:#}", explain_quota(error.into()));
        for words in [
            "1,000",
            "xenstore-control quota set nodes",
            "/local/domain/7",
        ] {
            assert!(text.contains(words), "{text}");
        }
        let other = explain_quota(StoreError::Conflict.into()).to_string();
        assert_eq!(other, StoreError::Conflict.to_string());
    }
}
