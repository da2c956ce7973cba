//! `vmsg resize`: has the backend look at the size of a disk that has grown (virtio 5.2.5).
//!
//! Nothing is written but what stands there already: it is the watch that counts (binding section 8).

use anyhow::bail;
use xen_hal::PlatformSpec;

use crate::bus::Bus;
use crate::domain::{self, read_text};
use crate::{output, platform};
use xenstore::Tree as _;

/// Tell a guest that a disk of its has another size.
///
/// Give the file or volume its new size first. The backend looks at it and tells the driver, which
/// goes on working meanwhile. (It also looks whenever the guest flushes; this is for at once.)
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  truncate -s +10G /srv/guest1.img && vmsg resize guest1 0")]
pub(crate) struct Options {
    /// The guest, by name or number.
    domain: String,
    /// The device, as `vmsg attach` and `vmsg list` number it.
    #[arg(value_name = "DEV")]
    device: u32,
    /// The guest's bus.
    #[arg(long, value_name = "HANDLE", default_value_t = 0)]
    bus: u32,
}

pub(crate) fn run(spec: &PlatformSpec, options: &Options) -> anyhow::Result<()> {
    let mut store = platform::open_dom0_store(spec)?;
    let guest = domain::find(&mut store, &options.domain)?;
    let bus = Bus::standing(&mut store, guest, options.bus)?;
    let number = options.device;
    let online = format!("{}/online", bus.device(number));
    store.transact(|tx| match read_text(tx, &online)?.as_deref() {
        Some("1") => Ok(tx.write(&online, "1")?),
        Some(_) => bail!("{bus} device {number} is being removed"),
        None => bail!("{bus} has no device {number}; `vmsg list` shows what there is"),
    })?;
    Ok(output::print(format_args!(
        "{bus} device {number}: its backend looks at its size"
    ))?)
}
