//! What `cargo metadata` says of the workspace, as far as the tasks need it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The only platform that the project is for. Packages of others are neither fetched nor checked.
pub(crate) const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The workspace and every package that its build or its tests use.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    pub(crate) target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: Option<String>,
    /// The registry; none for a package of the workspace.
    pub(crate) source: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// None: normal; else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    /// `lib`, `bin`, `test`, …
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Workspace {
    pub(crate) fn load() -> Result<Self> {
        let output = cargo()
            .args([
                "metadata",
                "--format-version=1",
                "--filter-platform",
                PLATFORM,
            ])
            // Nothing is built: this makes the dependencies under cfg(loom) appear too.
            .env("RUSTFLAGS", "--cfg loom")
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata failed");
        serde_json::from_slice(&output.stdout)
            .context("cargo metadata printed something unexpected")
    }

    /// The packages of the workspace.
    pub(crate) fn members(&self) -> Vec<&Package> {
        self.packages
            .iter()
            .filter(|package| package.source.is_none())
            .collect()
    }

    /// The packages of others.
    pub(crate) fn libraries(&self) -> Vec<&Package> {
        self.packages
            .iter()
            .filter(|package| package.source.is_some())
            .collect()
    }
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
