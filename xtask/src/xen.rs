//! `cargo xtask xen run`: builds the static program and gives it to the laboratory in tests/xen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};

use crate::workspace::{PLATFORM, Workspace, cargo};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a scenario: QEMU boots Xen, dom0 and one guest, and both run their half of it
    ///
    /// Needs Debian (or a relative), its packages qemu-system-x86, cpio and python3, and the network at the first run: Xen, its tools and a kernel
    /// (about 85 MB) are fetched by apt-get download into a cache and unpacked there, never installed. Neither root nor hardware virtualisation is
    /// needed. A boot takes 15 to 60 seconds. If the laboratory itself fails, and not our programs, it is tried once more, and says so.
    Run(Run),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// A folder of tests/xen/scenarios, for example `skeleton`
    scenario: String,
    /// The kind of the guest; both, one after the other, if absent
    #[arg(long)]
    guest: Option<Guest>,
    /// Keep the results of a run that passed, too (those of a failed run always stay)
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Guest {
    /// Paravirtualised: no hardware virtualisation, XenStore and grants through hypercalls
    Pv,
    /// Hardware virtualisation with the paravirtual interfaces
    Pvh,
}

impl Guest {
    fn name(self) -> &'static str {
        match self {
            Guest::Pv => "pv",
            Guest::Pvh => "pvh",
        }
    }
}

pub(crate) fn run(workspace: &Workspace, command: &Command) -> Result<ExitCode> {
    let Command::Run(run) = command;
    let vmsg = build_static(workspace)?;
    let guests = run
        .guest
        .map_or(vec![Guest::Pv, Guest::Pvh], |guest| vec![guest]);
    let mut lines = Vec::new();
    let mut worst = 0;
    for guest in guests {
        let started = Instant::now();
        let code = boot(workspace, run, guest, &vmsg)?;
        let seconds = started.elapsed().as_secs();
        let scenario = &run.scenario;
        lines.push(format!(
            "{:<5} {scenario} on a {} guest, {seconds} s{}",
            word(code),
            guest.name(),
            reason(code)
        ));
        worst = worst.max(code);
    }
    for line in lines {
        println!("{line}");
    }
    Ok(ExitCode::from(worst))
}

/// The program with everything in it: dom0 and the guest of the laboratory hold no C library for it.
fn build_static(workspace: &Workspace) -> Result<PathBuf> {
    let target_dir = workspace.target_directory.join("static");
    // A folder of its own: other flags would make the ordinary builds start anew each time.
    let status = cargo()
        .args([
            "build",
            "--release",
            "--package",
            "vmsg",
            "--target",
            PLATFORM,
            "--target-dir",
        ])
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo build")?;
    ensure!(status.success(), "the static build of vmsg failed");
    Ok(target_dir.join(PLATFORM).join("release/vmsg"))
}

/// One boot, or two if the laboratory failed; the exit code is that of tests/xen/run.
fn boot(workspace: &Workspace, run: &Run, guest: Guest, vmsg: &Path) -> Result<u8> {
    let cache = std::env::var_os("VMSG_XEN_LAB")
        .map_or_else(|| workspace.target_directory.join("xen-lab"), PathBuf::from);
    let results = cache
        .join("results")
        .join(format!("{}-{}", run.scenario, guest.name()));
    // setpriv: the laboratory, and QEMU with it, ends when this program does, however that ends.
    let status = process::Command::new("setpriv")
        .args(["--pdeathsig", "TERM"])
        .arg(workspace.root.join("tests/xen/run"))
        .args(["--guest", guest.name(), &run.scenario, "--vmsg"])
        .arg(vmsg)
        .arg("--out")
        .arg(&results)
        .env("VMSG_XEN_LAB", &cache)
        .stdin(Stdio::null())
        .status()
        .context("cannot run tests/xen/run by setpriv (of util-linux)")?;
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .context("tests/xen/run was killed")?;
    if code != 0 {
        show_log(&results.join("dom0.log"));
    } else if !run.keep {
        fs::remove_dir_all(&results)
            .with_context(|| format!("cannot remove {}", results.display()))?;
    }
    Ok(code)
}

/// What dom0's half said: its last line is the failure.
fn show_log(path: &Path) {
    if let Ok(log) = fs::read_to_string(path) {
        println!("--- {}\n{}\n---", path.display(), log.trim_end());
    }
}

fn word(code: u8) -> &'static str {
    if code == 0 { "PASS" } else { "FAIL" }
}

/// The exit codes of tests/xen/run.
fn reason(code: u8) -> &'static str {
    match code {
        0 => "",
        2 => ": the laboratory was called wrongly",
        3 => ": the laboratory failed; our programs may be well",
        124 => ": the scenario took too long",
        _ => ": a program of ours failed",
    }
}
