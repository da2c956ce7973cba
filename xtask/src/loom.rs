//! `cargo xtask loom`: the tests that run under the loom model checker.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::workspace::{Workspace, cargo};

/// Where models stand: the package, and what cargo test is told to run of it.
const MODELS: [(&str, &[&str]); 2] = [
    ("virtqueue", &["--lib", "memory"]),
    ("xen-bus", &["--test", "loom_ring"]),
];

pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    for (package, tests) in MODELS {
        let what = tests.join(" ");
        println!("{package}: {what}");
        let output = cargo()
            .args(["test", "--release", "--package", package])
            .args(tests)
            .arg("--target-dir")
            .arg(workspace.target_directory.join("loom"))
            .env("RUSTFLAGS", "--cfg loom")
            // Exploring takes the time here, and linking with LTO would double it.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo test")?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        if !output.status.success() {
            return Ok(ExitCode::FAILURE);
        }
        // A filter that finds nothing passes too.
        ensure!(
            !text.contains("running 0 tests"),
            "{package} has no test under cfg(loom) for {what}"
        );
    }
    Ok(ExitCode::SUCCESS)
}
