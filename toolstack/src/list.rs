//! `vmsg list`: the buses and devices of all guests, as they stand in XenStore (binding sections 2,
//! 3 and 8).
//!
//! What the guests and driver domains wrote is shown, never believed: which buses there are, and
//! who serves them, comes from the toolstack's own record.

use anyhow::Context as _;
use serde::Serialize;
use xen_bus::config::DeviceConfig;
use xen_bus::handshake::XenbusState;
use xen_hal::PlatformSpec;
use xen_types::DomId;
use xenstore::{Client, StoreError, Tree as _};

use crate::bus::Bus;
use crate::domain::{self, numbers, read_text};
use crate::{output, platform, stale};

/// List the buses and devices of all guests, or of one; in a driver domain those that it serves.
///
/// BACK and FRONT are the xenbus states of the two sides; messages flow while both are connected.
/// STATUS is the backend's word on a device: building, ready, removing, removed or failed; `-` means
/// that no backend has looked at it yet.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vmsg list
  vmsg list guest1 --json | jq -r '.[].devices[] | select(.status == \"failed\") | .error'")]
pub(crate) struct Options {
    /// Only this guest, by name or number.
    domain: Option<String>,
    /// Print an array of buses for programs.
    #[arg(long)]
    json: bool,
}

/// Instead of an empty table.
pub(crate) const NOTHING: &str =
    "no virtio-msg devices; `vmsg attach DOMAIN CONFIG` gives one to a guest";

/// One bus.
#[derive(Debug, Serialize)]
pub(crate) struct BusReport {
    /// The guest's number.
    pub(crate) domain: u16,
    /// The guest's name; null if it is gone.
    pub(crate) name: Option<String>,
    /// Which of the guest's buses.
    pub(crate) bus: u32,
    /// The domain that serves it.
    pub(crate) backend: u16,
    /// State of the backend.
    pub(crate) backend_state: &'static str,
    /// State of the frontend.
    pub(crate) frontend_state: &'static str,
    /// Whether one side's domain is gone; the next attach or detach removes the rest.
    pub(crate) stale: bool,
    /// Why the last session failed, in the backend's words.
    pub(crate) error: Option<String>,
    /// What is on the bus.
    pub(crate) devices: Vec<DeviceReport>,
}

/// One device.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceReport {
    pub(crate) device: u32,
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) mode: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) queues: Option<u16>,
    pub(crate) uuid: Option<String>,
    pub(crate) path: Option<String>,
    /// What the toolstack wants: 1; 0: it is to go; force: at once.
    pub(crate) online: String,
    /// The backend's word.
    pub(crate) status: Option<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

pub(crate) fn run(spec: &PlatformSpec, options: &Options) -> anyhow::Result<()> {
    let (mut store, own) = platform::open_serving_store(spec)?;
    let only = match &options.domain {
        None => None,
        Some(named) if own == DomId::DOM0 => Some(domain::find(&mut store, named)?),
        Some(named) => Some(domain::parse_domid(named).with_context(|| {
            format!("a driver domain knows no names: give the number of {named:?}")
        })?),
    };
    let mut reports = Vec::new();
    for bus in buses(&mut store, own)? {
        if only.is_none_or(|only| only == bus.frontend_id) {
            reports.push(BusReport::read(&mut store, own, &bus)?);
        }
    }
    if options.json {
        return output::print_json(&reports);
    }
    if reports.is_empty() {
        return Ok(output::print(NOTHING)?);
    }
    let header = [
        "DOMAIN", "NAME", "BUS", "BACKEND", "BACK", "FRONT", "DEV", "TYPE", "MODE", "STATUS",
        "PATH", "ERROR",
    ];
    let rows = reports.iter().flat_map(BusReport::rows).collect();
    Ok(output::print(output::table(header, rows))?)
}

/// The buses that domain `own` may see: dom0 all, from its record, a driver domain those that it
/// serves.
pub(crate) fn buses(store: &mut Client, own: DomId) -> Result<Vec<Bus>, StoreError> {
    match own {
        DomId::DOM0 => Bus::all(store),
        own => Bus::served_by(store, own),
    }
}

impl BusReport {
    /// Reads what both sides and the toolstack wrote of a bus. Changes meanwhile may show in part.
    pub(crate) fn read(store: &mut Client, own: DomId, bus: &Bus) -> Result<Self, StoreError> {
        let mut devices = Vec::new();
        for number in numbers(store, &bus.devices())? {
            devices.extend(DeviceReport::read(store, bus, number)?);
        }
        Ok(Self {
            domain: bus.frontend_id.0,
            name: domain::name(store, bus.frontend_id)?,
            bus: bus.handle,
            backend: bus.backend_id.0,
            backend_state: read_state(store, &bus.backend())?,
            frontend_state: read_state(store, &bus.frontend())?,
            stale: match own {
                DomId::DOM0 => stale::is_dead(store, bus)?,
                // All that a driver domain sees of a guest.
                _ => store
                    .read_opt(&format!("{}/state", bus.frontend()))?
                    .is_none(),
            },
            error: read_text(store, &format!("{}/error", bus.backend()))?,
            devices,
        })
    }

    /// A row for each device, or one for the bus if it has none.
    fn rows(&self) -> Vec<[String; 12]> {
        let row = |device: [String; 5], device_error: Option<&str>| {
            let [dev, kind, mode, status, path] = device;
            let stale = self.stale.then_some("one side's domain is gone");
            let error = device_error.or(stale).or(self.error.as_deref());
            [
                self.domain.to_string(),
                self.name.clone().unwrap_or_default(),
                self.bus.to_string(),
                self.backend.to_string(),
                self.backend_state.to_owned(),
                self.frontend_state.to_owned(),
                dev,
                kind,
                mode,
                status,
                path,
                error.unwrap_or_default().to_owned(),
            ]
        };
        if self.devices.is_empty() {
            return vec![row(Default::default(), None)];
        }
        let rows = self.devices.iter().map(|device| {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let cells = [
                device.device.to_string(),
                text(&device.kind),
                text(&device.mode),
                text(&device.status),
                text(&device.path),
            ];
            row(cells, device.error.as_deref())
        });
        rows.collect()
    }
}

impl DeviceReport {
    /// `None`: it was taken away meanwhile.
    fn read(store: &mut Client, bus: &Bus, number: u32) -> Result<Option<Self>, StoreError> {
        let device = bus.device(number);
        let mut read = |key: &str| read_text(store, &format!("{device}/{key}"));
        let Some(online) = read("online")? else {
            return Ok(None);
        };
        // A line that does not parse is the backend's to report.
        let config: Option<DeviceConfig> = read("config")?.and_then(|line| line.parse().ok());
        Ok(Some(Self {
            device: number,
            kind: config.as_ref().map(|config| config.device_type.clone()),
            mode: config.as_ref().map(|config| config.mode.to_string()),
            queues: config.as_ref().map(|config| config.queues),
            uuid: config
                .as_ref()
                .and_then(|config| config.uuid)
                .map(|uuid| uuid.to_string()),
            serial: config.as_ref().and_then(|config| config.serial.clone()),
            path: config.and_then(|config| config.path),
            online,
            status: read("status")?,
            error: read("error")?,
        }))
    }
}

fn read_state(store: &mut Client, directory: &str) -> Result<&'static str, StoreError> {
    let state = store.read_opt(&format!("{directory}/state"))?;
    Ok(match state.map(|text| XenbusState::parse(&text)) {
        None => "absent",
        Some(XenbusState::Unknown) => "unknown",
        Some(XenbusState::Initialising) => "initialising",
        Some(XenbusState::InitWait) => "init-wait",
        Some(XenbusState::Initialised) => "initialised",
        Some(XenbusState::Connected) => "connected",
        Some(XenbusState::Closing) => "closing",
        Some(XenbusState::Closed) => "closed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> BusReport {
        BusReport {
            domain: 7,
            name: Some("guest1".into()),
            bus: 0,
            backend: 0,
            backend_state: "connected",
            frontend_state: "connected",
            stale: false,
            error: Some("ring: broken".into()),
            devices: Vec::new(),
        }
    }

    #[test]
    fn a_bus_without_devices_has_a_row_of_its_own() {
        let rows = report().rows();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0][0], "7");
        assert_eq!(rows[0][6], "");
        assert_eq!(rows[0][11], "ring: broken");
    }

    #[test]
    fn the_error_of_a_device_goes_before_that_of_the_bus() {
        let mut report = report();
        report.devices.push(DeviceReport {
            device: 3,
            kind: Some("blk".into()),
            mode: None,
            serial: None,
            queues: None,
            uuid: None,
            path: None,
            online: "1".into(),
            status: Some("failed".into()),
            error: Some("no such file".into()),
        });
        let rows = report.rows();
        assert_eq!(rows[0][6..9], ["3", "blk", ""]);
        assert_eq!(rows[0][11], "no such file");
    }
}
