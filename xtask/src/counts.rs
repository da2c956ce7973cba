//! `cargo xtask counts`: the tests that count instructions, optimised as a release is.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::workspace::cargo;

pub(crate) fn run() -> Result<ExitCode> {
    let status = cargo()
        .args(["test", "--release", "--package", "instructions"])
        .status()
        .context("cannot run cargo test")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
