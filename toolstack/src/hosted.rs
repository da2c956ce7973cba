//! `vmsg hosted DIR`: a machine without Xen.

use std::path::PathBuf;

use anyhow::Context as _;
use hosted::{Broker, MAX_GUESTS};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xen_hal::hosted::Hypervisor;

use crate::output;

/// Run a machine without Xen, for the other commands.
///
/// A broker plays hypervisor and XenStore until Ctrl-C. Other vmsg processes join it by
/// --platform hosted:DIR (dom0) or hosted:DIR,1 (guest 1). `ready: DIR` on standard output says
/// that they can.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "XenStore clients of the host work on it too: XENSTORED_PATH=DIR/xenstored/socket xenstore-ls"
)]
pub(crate) struct Options {
    /// Directory of the machine's sockets; it is made if it is not there.
    dir: PathBuf,
    /// How many guests the machine has, up to 511: domains 1 to N, named guest1 to guestN.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = guests())]
    guests: u16,
}

fn guests() -> impl clap::builder::TypedValueParser<Value = u16> {
    clap::value_parser!(u16).range(..=MAX_GUESTS as i64)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let dir = &options.dir;
    let machine = Broker::open(dir)?.spawn()?;
    let hypervisor = Hypervisor::connect(dir)?;
    for guest in 1..=options.guests {
        hypervisor
            .create_domain(&format!("guest{guest}"))
            .with_context(|| format!("guest {guest}"))?;
    }
    let shown = dir.display();
    output::print(format_args!("ready: {shown}"))?;
    if options.guests > 0 {
        eprintln!(
            "Now, in other terminals:\n  \
             vmsg --platform hosted:{shown} backend\n  \
             vmsg --platform hosted:{shown} attach guest1 type=blk,path=/path/to/disk.img\n  \
             vmsg --platform hosted:{shown},1 frontend list"
        );
    }
    signals.forever().next();
    machine.stop()?;
    Ok(())
}
