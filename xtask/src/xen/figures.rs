//! `cargo xtask xen figures`: what a read costs by each path to the same disk, beside the targets.
//!
//! The machine's clock counts instructions, so a figure is what all domains and Xen together execute for one read. The scenario
//! `figures` of tests/xen measures, and reports `PATH-LOAD=INSTRUCTIONS`; here the table is made of it. [`steps`] adds single
//! steps of the bus and virtio-mmio, [`counts`] calls to the hypervisor, [`repeat`] compares with an earlier run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::boot::Laboratory;
use super::plan::{self, Guest, Kernel, Setting};
use super::{Machine, counts, repeat, report, steps};
use crate::workspace::Workspace;

/// The scenario.
const SCENARIO: &str = "figures";
/// How long it may take: every instruction is emulated and counted, on a machine that others use too.
const SECONDS: u32 = 3600;

/// The paths to the disk, in the order of the columns, as the scenario names them.
const BLKBACK: [&str; 2] = ["persistent", "persistent-again"];
const COLUMNS: [(&str, &str); 4] = [
    (CACHE, "ours, page cache"),
    (DIRECT, "ours, direct=1"),
    ("persistent", "blkback"),
    ("transient", "blkback, no persistent grants"),
];
/// Ours. The target is for the second, as blkback never uses the page cache of its domain either.
const CACHE: &str = "cache";
const DIRECT: &str = "direct";

/// A load, and what of blkback's cost ours may be, in hundredths, for a guest of each kind.
struct Load {
    name: &'static str,
    about: &'static str,
    pv: u64,
    pvh: u64,
}

const LOADS: [Load; 3] = [
    Load {
        name: "4k-qd1",
        about: "4 KiB random reads, one in flight",
        pv: 85,
        pvh: 92,
    },
    Load {
        name: "4k-qd32",
        about: "4 KiB random reads, 32 in flight",
        pv: 60,
        pvh: 60,
    },
    Load {
        name: "1m-qd1",
        about: "1 MiB sequential reads, one in flight",
        pv: 50,
        pvh: 50,
    },
];

/// Xen's modes of the guest's time-stamp counter, as the scenario has guests of them.
pub(super) const TSC_MODES: [&str; 2] = ["native", "default"];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The kind of the guests; both, in a boot each, if absent
    #[arg(long)]
    guest: Option<Guest>,
    /// Linux of dom0 and the guests (6.1)
    #[arg(long)]
    kernel: Option<Kernel>,
    /// Write all figures there, for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with what an earlier run wrote by --json: no figure may differ by more than 1 %
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Read the results of an earlier run instead of booting
    #[arg(long)]
    again: bool,
}

/// All figures of one guest, or of dom0: instructions a request, by `PATH-LOAD`.
type Figures = BTreeMap<String, u64>;

/// What a boot measured.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Measured {
    pub(super) guest: String,
    /// By guest: `native` and `default` by their TSC mode; `dom0` alone on the disk.
    pub(super) figures: BTreeMap<String, Figures>,
}

impl Measured {
    pub(super) fn figure(&self, who: &str, key: &str) -> Result<u64> {
        let found = self.figures.get(who).and_then(|all| all.get(key));
        found
            .copied()
            .with_context(|| format!("{who} has no figure {key}"))
    }
}

pub(super) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let laboratory = Laboratory::new(workspace)?;
    let setting = Setting {
        rounds: super::ROUNDS,
        deterministic: true,
        seconds: Some(SECONDS),
    };
    let machine = Machine {
        guest: options.guest,
        kernel: options.kernel,
        ..Machine::default()
    };
    // Read first: --json may write the same file.
    let earlier = options.against.as_deref().map(repeat::read).transpose()?;
    let mut is_well = true;
    let mut all = Vec::new();
    for boot in plan::named(&[SCENARIO.into(), counts::SCENARIO.into()], machine) {
        if !options.again {
            let rows = laboratory.run(&boot, setting, true)?;
            if rows.iter().any(|row| !row.verdict.is_well()) {
                report::print(&rows);
                return Ok(report::exit_code(&rows));
            }
        }
        let results = laboratory.results(&boot);
        let measured = Measured {
            guest: boot.guest.name().to_owned(),
            figures: read(&results.join(SCENARIO))?,
        };
        print!("{}", table(boot.guest, &measured)?);
        print!("{}", steps::tables(boot.guest, &measured)?);
        let counts = counts::read(&results.join(counts::SCENARIO))?;
        print!("{}", counts.table());
        is_well &= report_differences(&counts.differences());
        all.push(measured);
    }
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(earlier) = &earlier {
        let compared = repeat::compare(earlier, &all);
        println!("\n{compared}");
        is_well &= compared.is_well();
    }
    Ok(match is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What a read asks of the hypervisor here, against the hosted platform; true if that is the same.
fn report_differences(differences: &[String]) -> bool {
    if differences.is_empty() {
        println!("The hosted platform counts the same: {}.", counts::HOSTED);
    }
    for difference in differences {
        println!(
            "DIFFERS from the hosted platform ({}): {difference}",
            counts::HOSTED
        );
    }
    differences.is_empty()
}

/// The consoles of the guests, and what dom0 wrote itself.
fn read(results: &Path) -> Result<BTreeMap<String, Figures>> {
    let mut all = BTreeMap::new();
    for name in TSC_MODES {
        let console = results.join(format!("guest-{SCENARIO}-{name}.log"));
        all.insert(name.to_owned(), figures(&console)?);
    }
    all.insert("dom0".into(), figures(&results.join("dom0.figures"))?);
    Ok(all)
}

fn figures(path: &Path) -> Result<Figures> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let figures = parse(&text);
    ensure!(!figures.is_empty(), "no figures in {}", path.display());
    Ok(figures)
}

fn parse(text: &str) -> Figures {
    text.lines()
        .filter_map(|line| line.split_once("@@LAB report "))
        .filter_map(|(_, figure)| figure.split_once('='))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// In Markdown, thousands of instructions a read.
fn table(guest: Guest, measured: &Measured) -> Result<String> {
    let mut text = String::new();
    for load in &LOADS {
        writeln!(text, "\n**{}, {} guest**\n", load.about, guest.name())?;
        write!(text, "| TSC | dom0 alone |")?;
        for (_, title) in COLUMNS {
            write!(text, " {title} |")?;
        }
        writeln!(text, " page cache / blkback | direct / blkback | target |")?;
        writeln!(text, "| --- |{}", " ---: |".repeat(COLUMNS.len() + 4))?;
        let figure = |who: &str, path: &str| measured.figure(who, &format!("{path}-{}", load.name));
        for tsc in TSC_MODES {
            write!(text, "| {tsc} | {} |", thousands(figure("dom0", "dom0")?))?;
            let mut blkback = u64::MAX;
            for path in BLKBACK {
                blkback = blkback.min(figure(tsc, path)?);
            }
            for (path, _) in COLUMNS {
                let cost = match BLKBACK.contains(&path) {
                    true => blkback,
                    false => figure(tsc, path)?,
                };
                write!(text, " {} |", thousands(cost))?;
            }
            let target = match guest {
                Guest::Pv => load.pv,
                Guest::Pvh => load.pvh,
            };
            let ratio =
                |path| -> Result<u64> { Ok((figure(tsc, path)? * 100).div_ceil(blkback.max(1))) };
            let (cache, direct) = (ratio(CACHE)?, ratio(DIRECT)?);
            let verdict = if direct <= target { "met" } else { "missed" };
            write!(text, " {} | {} |", hundredths(cache), hundredths(direct))?;
            writeln!(text, " {}: {verdict} |", hundredths(target))?;
        }
    }
    Ok(text)
}

pub(super) fn thousands(instructions: u64) -> String {
    let tenths = (instructions + 50) / 100;
    format!("{}.{}", tenths / 10, tenths % 10)
}

pub(super) fn hundredths(ratio: u64) -> String {
    format!("{}.{:02}", ratio / 100, ratio % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_holds_figures_among_other_lines() {
        let text = "[2026-01-01] @@LAB guest-ready up=1\n[2026-01-01] @@LAB report direct-4k-qd1=61234\r\n@@LAB report read=done\n";
        let figures = parse(text);
        assert_eq!(figures, Figures::from([("direct-4k-qd1".into(), 61_234)]));
    }

    #[test]
    fn the_lower_of_two_states_of_blkback_counts_and_a_ratio_is_never_rounded_to_a_hit() {
        let guest = |ours| -> Figures {
            let mut all = Figures::new();
            for load in &LOADS {
                for (path, cost) in [
                    (CACHE, 1_000),
                    (DIRECT, ours),
                    ("persistent", 140_000),
                    ("persistent-again", 100_000),
                    ("transient", 200_000),
                    ("dom0", 5_678),
                ] {
                    all.insert(format!("{path}-{}", load.name), cost);
                }
            }
            all
        };
        let measured = Measured {
            guest: "pv".into(),
            figures: BTreeMap::from([
                ("native".into(), guest(85_000)),
                ("default".into(), guest(85_001)),
                ("dom0".into(), guest(0)),
            ]),
        };
        let text = table(Guest::Pv, &measured).expect("a table");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[5..7],
            [
                "| native | 5.7 | 1.0 | 85.0 | 100.0 | 200.0 | 0.01 | 0.85 | 0.85: met |",
                "| default | 5.7 | 1.0 | 85.0 | 100.0 | 200.0 | 0.01 | 0.86 | 0.85: missed |",
            ]
        );
    }
}
