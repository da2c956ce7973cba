//! `cargo xtask fuzz`: the targets of fuzz/, under libFuzzer.
//!
//! Coverage comes from code generation options that the stable toolchain has; no sanitizer is used: the targets contain no
//! unsafe code of their own, and the two crates that do are checked by other means.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{PLATFORM, Workspace, cargo};

/// What makes rustc count the edges that an input takes, in the form that libFuzzer reads.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// An input that takes longer hangs: the slowest need a few milliseconds.
const INPUT_SECONDS: u32 = 10;

/// What no input needs; more is a leak or an allocation that the peer chose.
const MEMORY_MIB: u32 = 1024;

/// Which targets, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Targets (all; fuzz/README.md says what each does)
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = 10, value_name = "N")]
    seconds: u32,
    /// Run one target on this file once, as after a finding
    #[arg(long, value_name = "FILE", requires = "targets")]
    input: Option<std::path::PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let folder = workspace.root.join("fuzz");
    let known = targets(&folder)?;
    let targets = if options.targets.is_empty() {
        known.clone()
    } else {
        options.targets.clone()
    };
    for target in &targets {
        ensure!(
            known.contains(target),
            "no target '{target}'; there are: {}",
            known.join(", ")
        );
    }
    ensure!(
        options.input.is_none() || targets.len() == 1,
        "--input goes with one target"
    );
    let binaries = workspace.target_directory.join("fuzz");
    build(&folder, &binaries)?;
    for target in &targets {
        println!("{target}");
        let binary = binaries.join(PLATFORM).join("release").join(target);
        let mut command = Command::new(binary);
        match &options.input {
            Some(file) => command.arg(file),
            None => search(&mut command, &folder, target, options.seconds)?,
        };
        let status = command.status().context("cannot start the target")?;
        if !status.success() {
            bail!(
                "{target}: {status}; the input is in fuzz/artifacts/{target}, and runs again with --input"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of the files in fuzz/targets.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.join("targets");
    let files = folder
        .read_dir()
        .with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<_> = files
        .map(|file| {
            Ok(file?
                .path()
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned())
        })
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn build(folder: &Path, binaries: &Path) -> Result<()> {
    let status = cargo()
        .args(["build", "--release"])
        // Naming the platform keeps COVERAGE away from build scripts.
        .args(["--target", PLATFORM])
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(binaries)
        .env("RUSTFLAGS", COVERAGE)
        .status()
        .context("cannot run cargo build")?;
    ensure!(
        status.success(),
        "the targets were not built; if it is the linker or c++: libFuzzer needs a C++ compiler (Debian: g++)"
    );
    Ok(())
}

fn search<'a>(
    command: &'a mut Command,
    folder: &Path,
    target: &str,
    seconds: u32,
) -> Result<&'a mut Command> {
    let artifacts = folder.join("artifacts").join(target);
    let corpus = folder.join("corpus").join(target);
    for folder in [&artifacts, &corpus] {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(command
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .args(["-print_final_stats=1", "-verbosity=0"])
        .arg(corpus))
}
