//! `vmsg`: the one executable of the virtio-msg bus over Xen.
//!
//! Exit status: 0 done, 1 it failed (the reason is on standard error), 2 wrong usage,
//! 130 interrupted.

#![forbid(unsafe_code)]

mod attach;
mod bench;
mod bus;
mod demo;
mod detach;
mod disk;
mod doctor;
mod domain;
mod driver_domain;
mod export;
mod frontend;
mod hosted;
mod interrupt;
mod latency;
mod list;
mod load;
mod logging;
mod output;
mod platform;
mod progress;
mod resize;
mod rng;
mod stale;
mod stat;
mod transfer;
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xen_hal::PlatformSpec;

/// Virtio devices for Xen guests over the virtio-msg bus: no traps, no foreign mappings, only what
/// the guest grants.
///
/// Without Xen, `vmsg demo` shows all of it at work, and `vmsg hosted DIR` runs a machine to try
/// the other commands on. On a Xen host, `vmsg backend` runs in dom0 (or a driver domain),
/// `vmsg attach` gives a device to a guest, and `vmsg frontend` uses it there.
#[derive(Debug, Parser)]
#[command(name = "vmsg", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// Where to run: `xen`, or `hosted:DIR[,DOMID]`, the machine of `vmsg hosted DIR` as domain
    /// DOMID (0 if absent) [default: xen, if this is a Xen domain].
    #[arg(long, global = true, value_name = "PLATFORM", display_order = 100)]
    platform: Option<PlatformSpec>,

    /// How logs look on standard error; RUST_LOG says how much (info, debug, backend=trace, ...).
    #[arg(long, global = true, value_enum, default_value_t, display_order = 101)]
    log: logging::Format,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Options),
    /// Serve devices to guests: the service of dom0 or of a driver domain.
    ///
    /// Finds the guests that `vmsg attach` gave devices to, now and later, and serves until Ctrl-C
    /// or SIGTERM, which ends every connection in order. Logs go to standard error; `vmsg stat`
    /// shows what it does.
    Backend,
    #[command(subcommand)]
    Frontend(frontend::Command),
    Attach(attach::Options),
    Detach(detach::Options),
    Resize(resize::Options),
    List(list::Options),
    Stat(stat::Options),
    Doctor(doctor::Options),
    Bench(bench::Options),
    Hosted(hosted::Options),
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}; see --help")]
pub(crate) struct Usage(String);

impl Usage {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = demo::end_with_parent() {
        eprintln!("vmsg: {error}");
        return ExitCode::FAILURE;
    }
    let level = match cli.command {
        // A backend comes and goes with each benchmark; that is no news.
        Command::Bench(_) => "warn",
        _ => "info",
    };
    let format = cli.log;
    logging::start(format, level);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.is::<platform::NoPlatform>() || error.is::<Usage>();
            let interrupted = error.is::<demo::Interrupted>()
                || error.is::<benches::Interrupted>()
                || error.is::<interrupt::Interrupted>();
            logging::last_words(format, &error);
            ExitCode::from(match (usage, interrupted) {
                (true, _) => 2,
                (_, true) => 130,
                _ => 1,
            })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Demo(_) | Command::Hosted(_) if cli.platform.is_some() => Err(Usage::new(
            "this command makes a machine of its own: it takes no --platform",
        )
        .into()),
        Command::Demo(options) => demo::run(&options, cli.log),
        Command::Hosted(options) => hosted::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Backend => Ok(backend::run(&platform::or_default(cli.platform)?)?),
        Command::Frontend(command) => frontend::run(&platform::or_default(cli.platform)?, &command),
        Command::Attach(options) => attach::run(&platform::or_default(cli.platform)?, &options),
        Command::Detach(options) => detach::run(&platform::or_default(cli.platform)?, &options),
        Command::Resize(options) => resize::run(&platform::or_default(cli.platform)?, &options),
        Command::Doctor(options) => doctor::run(cli.platform, &options),
        Command::Stat(options) => stat::run(&platform::or_default(cli.platform)?, &options),
        Command::List(options) => list::run(&platform::or_default(cli.platform)?, &options),
    }
}
