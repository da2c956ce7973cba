//! `vmsg frontend`: the guest's side.

use std::time::Duration;

use anyhow::bail;
use frontend_shim::{Disk, Frontend, FrontendError, Instance, RNG_DEVICE_ID, open_platform};
use xen_bus::handshake::XenbusState;
use xen_hal::PlatformSpec;

use crate::{demo, disk, output, rng};

/// How long a backend may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// The same for one that seems not to be there, by its state: it may just be starting, or rest.
const ABSENT_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to let go.
const LEAVE_LIMIT: Duration = Duration::from_secs(35);

/// Use devices: the guest's side.
///
/// Runs in the guest, in user space; a bus to which a kernel driver is bound is left alone.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List this guest's buses and the devices on them.
    ///
    /// STATUS is ready, in-use (by a kernel driver or another vmsg: nothing can be asked) or failed;
    /// REASON says why. The exit status is 1 if something failed.
    List {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    #[command(subcommand)]
    Blk(disk::Command),
    #[command(subcommand)]
    Rng(rng::Command),
    /// The guest of `vmsg demo`.
    #[command(hide = true)]
    Demo(demo::GuestOptions),
}

/// One line of the list: a device, or a bus of which the devices are not known.
#[derive(Debug, serde::Serialize)]
struct Row {
    bus: u32,
    backend: u16,
    device: Option<u16>,
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Of a block device, as what follows.
    bytes: Option<u64>,
    read_only: Option<bool>,
    serial: Option<String>,
    status: Status,
    /// Why it is not ready.
    reason: Option<String>,
}

/// What became of a bus or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Ready,
    /// Somebody else of this domain drives the bus.
    InUse,
    Failed,
}

pub(crate) fn run(spec: &PlatformSpec, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { json } => list(spec, *json),
        Command::Blk(command) => disk::run(spec, command),
        Command::Rng(command) => rng::run(spec, command),
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
    let (_platform, mut store) = open_platform(spec)?;
    let instances = Instance::list(&mut store)?;
    let mut rows = Vec::new();
    for instance in &instances {
        let state = instance.backend_state(&mut store)?;
        if let Err(error) = look(spec, instance, state, &mut rows) {
            rows.push(Row::of_bus(instance, &error));
        }
    }
    let failed = |row: &Row| row.status == Status::Failed;
    let failed = rows.iter().filter(|row| failed(row)).count();
    if json {
        output::print_json(&rows)?;
    } else if instances.is_empty() {
        output::print("no virtio-msg devices; `vmsg attach` in dom0 gives this domain one")?;
    } else {
        let header = [
            "BUS", "BACKEND", "DEV", "TYPE", "BYTES", "MODE", "SERIAL", "STATUS", "REASON",
        ];
        let rows = rows.into_iter().map(Row::cells).collect();
        output::print(output::table(header, rows))?;
    }
    if failed > 0 {
        bail!("{failed} of these lines failed: see the reason in each");
    }
    Ok(())
}

/// Adds a row for each device of a bus.
fn look(
    spec: &PlatformSpec,
    instance: &Instance,
    state: XenbusState,
    rows: &mut Vec<Row>,
) -> Result<(), FrontendError> {
    let mut frontend = Frontend::open(spec, instance.handle)?;
    frontend.connect(match state {
        XenbusState::Unknown | XenbusState::Initialising | XenbusState::Closed => ABSENT_LIMIT,
        _ => CONNECT_LIMIT,
    })?;
    let numbers = frontend.devices();
    for number in numbers.iter().flatten() {
        let mut row = Row::new(instance);
        row.device = Some(*number);
        if let Err(error) = row.ask(&mut frontend, *number) {
            row.fail(&error);
        }
        rows.push(row);
    }
    // In order also after a failure: the backend is to let go of this process's memory.
    let left = frontend.leave(LEAVE_LIMIT);
    numbers?;
    left
}

impl Row {
    fn new(instance: &Instance) -> Self {
        Self {
            bus: instance.handle,
            backend: instance.backend.0,
            device: None,
            kind: None,
            bytes: None,
            read_only: None,
            serial: None,
            status: Status::Ready,
            reason: None,
        }
    }

    fn of_bus(instance: &Instance, error: &FrontendError) -> Self {
        let mut row = Self::new(instance);
        row.fail(error);
        row
    }

    fn fail(&mut self, error: &FrontendError) {
        self.status = match error {
            FrontendError::InUse { .. } | FrontendError::KernelDriver { .. } => Status::InUse,
            _ => Status::Failed,
        };
        self.reason = Some(error.to_string());
    }

    /// Asks the device what it is.
    fn ask(&mut self, frontend: &mut Frontend, number: u16) -> Result<(), FrontendError> {
        let mut disk = match Disk::open(frontend, number) {
            Err(FrontendError::OtherKind { found, .. }) => {
                self.kind = Some(match found {
                    RNG_DEVICE_ID => "rng".to_owned(),
                    other => format!("virtio-{other}"),
                });
                return Ok(());
            }
            disk => disk?,
        };
        self.kind = Some("blk".to_owned());
        self.bytes = Some(disk.bytes());
        self.read_only = Some(disk.is_read_only());
        let serial = disk.serial(frontend);
        disk.close(frontend)?;
        self.serial = Some(serial?);
        Ok(())
    }

    fn cells(self) -> [String; 9] {
        let number = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
        [
            self.bus.to_string(),
            self.backend.to_string(),
            number(self.device.map(u64::from)),
            self.kind.unwrap_or_default(),
            number(self.bytes),
            match self.read_only {
                None => String::new(),
                Some(true) => "ro".to_owned(),
                Some(false) => "rw".to_owned(),
            },
            self.serial.unwrap_or_default(),
            match self.status {
                Status::Ready => "ready".to_owned(),
                Status::InUse => "in-use".to_owned(),
                Status::Failed => "failed".to_owned(),
            },
            self.reason.unwrap_or_default(),
        ]
    }
}
