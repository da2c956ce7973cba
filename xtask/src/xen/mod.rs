//! `cargo xtask xen`: our programs on a real Xen, in the laboratory of tests/xen.

mod boot;
mod counts;
mod figures;
mod plan;
mod programs;
mod repeat;
mod report;
mod scenarios;
mod steps;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand};

use self::boot::Laboratory;
use self::plan::{Dom0, Guest, Kernel, Setting};
use self::scenarios::Scenario;
use crate::workspace::Workspace;

/// How often a scenario repeats what it does at random moments.
const ROUNDS: u32 = 3;
/// The same when everything is run.
const ROUNDS_OF_ALL: u32 = 20;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the scenarios
    List,
    /// Run scenarios: QEMU boots Xen, dom0 and guests; scenarios that want the same kind of machine share a boot
    ///
    /// Needs Debian 12 (or a relative), its packages qemu-system-x86, cpio, python3 and zstd, and the network at the first run: Xen, its tools and a
    /// kernel (about 90 MB) are fetched by apt-get download into a cache and unpacked there, never installed. Neither root nor hardware
    /// virtualisation is needed. A boot takes 15 to 60 seconds. If the laboratory itself fails, and not our programs, the scenario is tried once
    /// more, and it is said.
    Run(Run),
    /// Build the programs that the domains run, and nothing else
    Build,
    /// Open a console in dom0 of a real Xen: the service runs, and a guest has a disk
    Shell(Machine),
    /// Measure what I/O costs, by our bus, blkfront/blkback and virtio-mmio, in instructions of the whole machine, which repeat
    ///
    /// A boot for each kind of guest, some minutes each. docs/performance-xen.md says what the figures mean.
    Figures(figures::Options),
}

/// What kind of machine.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Machine {
    /// The kind of the guests; both, in a boot each, if absent
    #[arg(long)]
    guest: Option<Guest>,
    /// Linux of dom0 and the guests (6.1)
    #[arg(long)]
    kernel: Option<Kernel>,
    /// The kind of dom0 (pv)
    #[arg(long)]
    dom0: Option<Dom0>,
    /// The machine's clock counts instructions, so that figures repeat; twice as slow
    #[arg(long)]
    deterministic: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Folders of tests/xen/scenarios, or `all`: every scenario for each kind of guest, the important ones for each kind of machine
    #[arg(required_unless_present = "ci")]
    scenarios: Vec<String>,
    #[command(flatten)]
    machine: Machine,
    /// What CI runs: its scenarios, PV guests with Linux 6.1, PVH guests with 6.12
    #[arg(long, conflicts_with_all = ["scenarios", "guest", "kernel", "dom0"])]
    ci: bool,
    /// How often a scenario repeats what it does at random moments (3; 20 for `all`)
    #[arg(long)]
    rounds: Option<u32>,
    /// Keep the results of boots in which all passed, too (those of the others always stay)
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(workspace: &Workspace, command: &Command) -> Result<ExitCode> {
    match command {
        Command::List => list(workspace),
        Command::Build => programs::build(workspace).map(|_| ExitCode::SUCCESS),
        Command::Run(options) => run_scenarios(workspace, options),
        Command::Figures(options) => figures::run(workspace, options),
        Command::Shell(machine) => Laboratory::new(workspace)?.shell(&plan::shell(*machine)),
    }
}

fn list(workspace: &Workspace) -> Result<ExitCode> {
    for scenario in scenarios::all(workspace)? {
        let ci = if scenario.ci { "CI" } else { "" };
        println!("{:<15} {ci:<3} {}", scenario.name, scenario.about);
    }
    Ok(ExitCode::SUCCESS)
}

fn run_scenarios(workspace: &Workspace, options: &Run) -> Result<ExitCode> {
    let known = scenarios::all(workspace)?;
    let everything = options.scenarios == ["all"];
    let plan = if options.ci {
        plan::ci(&known)
    } else if everything {
        plan::all(&known, options.machine)
    } else {
        for name in &options.scenarios {
            ensure!(
                known.iter().any(|scenario| scenario.name == *name),
                "no scenario {name}; `cargo xtask xen list` shows them"
            );
        }
        plan::named(&options.scenarios, options.machine)
    };
    if plan.is_empty() {
        bail!("nothing to run");
    }
    let rounds = options
        .rounds
        .unwrap_or(if everything { ROUNDS_OF_ALL } else { ROUNDS });
    let setting = Setting {
        rounds,
        deterministic: options.machine.deterministic,
        seconds: None,
    };
    let laboratory = Laboratory::new(workspace)?;
    let mut rows = Vec::new();
    let begin = Instant::now();
    for (number, boot) in (1..).zip(&plan) {
        let scenarios = boot.scenarios.join(" ");
        println!("boot {number} of {}: {boot}: {scenarios}", plan.len());
        rows.extend(laboratory.run(boot, setting, options.keep)?);
    }
    report::print(&rows);
    report::print_total(&rows, plan.len(), begin.elapsed());
    Ok(report::exit_code(&rows))
}
