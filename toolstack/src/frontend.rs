//! `vmsg frontend`: the guest's side.

use std::time::Duration;

use frontend_shim::{Disk, Frontend, FrontendError, Instance, open_platform};
use xen_hal::PlatformSpec;

use crate::{demo, disk, output};

/// An entropy source (virtio 5.4).
const RNG_DEVICE_ID: u32 = 4;
/// How long a backend may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long it may take to let go.
const LEAVE_LIMIT: Duration = Duration::from_secs(35);

/// Use devices: the guest's side.
///
/// Runs in the guest, in user space; a bus to which a kernel driver is bound is left alone.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List this guest's buses and the devices on them.
    List {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    #[command(subcommand)]
    Blk(disk::Command),
    /// The guest of `vmsg demo`.
    #[command(hide = true)]
    Demo(demo::GuestOptions),
}

/// One line of the list.
#[derive(Debug, serde::Serialize)]
struct Row {
    bus: u32,
    backend: u16,
    device: u16,
    #[serde(rename = "type")]
    kind: String,
    /// Of a block device, as what follows.
    bytes: Option<u64>,
    read_only: Option<bool>,
    serial: Option<String>,
}

pub(crate) fn run(spec: &PlatformSpec, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { json } => list(spec, *json),
        Command::Blk(command) => disk::run(spec, command),
        Command::Demo(options) => demo::guest(spec, options),
    }
}

/// Claims a bus and connects it; with `grants` buffers are named by their grants.
pub(crate) fn connect(spec: &PlatformSpec, handle: u32, grants: bool) -> anyhow::Result<Frontend> {
    let mut frontend = Frontend::open(spec, handle)?;
    if grants {
        frontend.name_grants();
    }
    frontend.connect(CONNECT_LIMIT)?;
    Ok(frontend)
}

/// Ends a connection in order.
pub(crate) fn leave(frontend: Frontend) -> anyhow::Result<()> {
    Ok(frontend.leave(LEAVE_LIMIT)?)
}

fn list(spec: &PlatformSpec, json: bool) -> anyhow::Result<()> {
    let (platform, mut store) = open_platform(spec)?;
    let instances = Instance::list(&mut store)?;
    drop((platform, store));
    let mut rows = Vec::new();
    for instance in &instances {
        let mut frontend = connect(spec, instance.handle, false)?;
        let on_bus = rows_of(&mut frontend);
        let left = leave(frontend);
        rows.extend(on_bus?);
        left?;
    }
    if json {
        return output::print_json(&rows);
    }
    if instances.is_empty() {
        return Ok(output::print(
            "no virtio-msg devices; `vmsg attach` in dom0 gives this domain one",
        )?);
    }
    let header = ["BUS", "BACKEND", "DEV", "TYPE", "BYTES", "MODE", "SERIAL"];
    let rows = rows.into_iter().map(Row::cells).collect();
    Ok(output::print(output::table(header, rows))?)
}

fn row(frontend: &mut Frontend, number: u16) -> anyhow::Result<Row> {
    let mut row = Row {
        bus: frontend.instance().handle,
        backend: frontend.instance().backend.0,
        device: number,
        kind: "blk".to_owned(),
        bytes: None,
        read_only: None,
        serial: None,
    };
    match Disk::open(frontend, number) {
        Ok(mut disk) => {
            row.bytes = Some(disk.bytes());
            row.read_only = Some(disk.is_read_only());
            row.serial = Some(disk.serial(frontend)?);
            disk.close(frontend)?;
        }
        Err(FrontendError::OtherKind { found, .. }) => match found {
            RNG_DEVICE_ID => "rng".clone_into(&mut row.kind),
            other => row.kind = format!("virtio-{other}"),
        },
        Err(error) => return Err(error.into()),
    }
    Ok(row)
}

/// A row for each device of a bus.
fn rows_of(frontend: &mut Frontend) -> anyhow::Result<Vec<Row>> {
    let numbers = frontend.devices()?;
    numbers
        .into_iter()
        .map(|number| row(frontend, number))
        .collect()
}

impl Row {
    fn cells(self) -> [String; 7] {
        [
            self.bus.to_string(),
            self.backend.to_string(),
            self.device.to_string(),
            self.kind,
            self.bytes
                .map_or_else(String::new, |bytes| bytes.to_string()),
            match self.read_only {
                None => String::new(),
                Some(true) => "ro".to_owned(),
                Some(false) => "rw".to_owned(),
            },
            self.serial.unwrap_or_default(),
        ]
    }
}
