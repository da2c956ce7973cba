//! Development tasks of the workspace: `cargo xtask --help` lists them.

#![forbid(unsafe_code)]

mod counts;
mod deps;
mod fuzz;
mod loom;
mod workspace;
mod xen;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Development tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check the dependency arrows, where unsafe is allowed, all licences, and docs/dependencies.md
    ///
    /// Only manifests and sources are read, nothing is built. Every finding is printed; one is enough to fail.
    Deps,
    /// Count the instructions of a chain and of a message, and compare them with their limits
    ///
    /// Needs Debian's valgrind, and says so where it is missing. The tests are built as a release is.
    Counts,
    /// Run the loom tests: every interleaving of the lock-free code, within loom's bounds
    ///
    /// They are the models of the message ring (xen-bus) and of the virtqueue. They are built in a target folder of their own, because cfg(loom) changes every crate.
    Loom,
    /// Run the fuzz targets: everything that reads what a peer wrote, under libFuzzer
    ///
    /// They stand in fuzz/, a workspace of its own that needs a C++ compiler (Debian: g++).
    Fuzz(fuzz::Options),
    /// Boot a real Xen in QEMU and run our programs there
    #[command(subcommand)]
    Xen(xen::Command),
}

fn main() -> ExitCode {
    run(Cli::parse().task).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    match task {
        Task::Counts => counts::run(),
        Task::Deps => deps::check(&workspace),
        Task::Loom => loom::run(&workspace),
        Task::Fuzz(options) => fuzz::run(&workspace, &options),
        Task::Xen(command) => xen::run(&workspace, &command),
    }
}
