//! The programs under test with everything in them: the domains of the laboratory hold no C library for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::workspace::{PLATFORM, Workspace, cargo};

/// What is built: the arguments of cargo, the target, and its name in the laboratory.
const PROGRAMS: [(&[&str], &str, &str); 7] = [
    (&["build", "--package", "vmsg"], "vmsg", "vmsg"),
    (
        &["build", "--package", "tests", "--bin", "revoke-guest"],
        "revoke-guest",
        "revoke-guest",
    ),
    (
        &["build", "--package", "tests", "--bin", "raw-disk"],
        "raw-disk",
        "raw-disk",
    ),
    (
        &["build", "--package", "tests", "--bin", "hypercalls"],
        "hypercalls",
        "hypercalls",
    ),
    (
        &["build", "--package", "tests", "--bin", "clock-cost"],
        "clock-cost",
        "clock-cost",
    ),
    (
        &["build", "--package", "benches", "--bin", "xen-bench"],
        "xen-bench",
        "xen-bench",
    ),
    // Its tests that need a block device.
    (
        &["test", "--no-run", "--package", "virtio-devices", "--lib"],
        "virtio_devices",
        "virtio-devices-tests",
    ),
];

/// A line of `cargo --message-format=json`, as far as it is needed.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds them; the answer is a folder that holds them and nothing else.
pub(super) fn build(workspace: &Workspace) -> Result<PathBuf> {
    // A folder of its own: other flags would make the ordinary builds start anew each time.
    let target_dir = workspace.target_directory.join("static");
    let programs = target_dir.join("programs");
    fs::create_dir_all(&programs)?;
    for (arguments, target, name) in PROGRAMS {
        let built = executable(arguments, target, &target_dir)?;
        fs::copy(&built, programs.join(name))
            .with_context(|| format!("cannot copy {}", built.display()))?;
    }
    Ok(programs)
}

fn executable(arguments: &[&str], target: &str, target_dir: &Path) -> Result<PathBuf> {
    let output = cargo()
        .args(arguments)
        .args(["--release", "--message-format=json-render-diagnostics"])
        .args(["--target", PLATFORM, "--target-dir"])
        .arg(target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the static build of {target} failed"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| {
            message
                .target
                .as_ref()
                .is_some_and(|built| built.name == target)
        })
        .find_map(|message| message.executable)
        .with_context(|| format!("cargo names no executable of {target}"))
}
