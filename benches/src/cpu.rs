//! The machine: which processor a thread runs on, and how busy all of it was.

use std::fs;

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

/// What the figures were measured on, for the reader to judge them by.
#[derive(Clone, Debug, Serialize)]
pub struct Conditions {
    /// Processor, as the kernel names it.
    pub processor: String,
    /// Processors that this process may use.
    pub processors: usize,
    /// Kernel release.
    pub kernel: String,
    /// Runnable tasks over the last minute; above the processors in use the times are advisory.
    pub load: String,
}

impl Conditions {
    /// As they are now.
    #[must_use]
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches(['\t', ' ', ':']));
        let load = read("/proc/loadavg");
        Self {
            processor: processor.to_owned(),
            processors: allowed().map_or(1, |cpus| cpus.len()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load
                .split_whitespace()
                .next()
                .unwrap_or("unknown")
                .to_owned(),
        }
    }
}

/// The processors that this thread may run on, ascending.
pub(crate) fn allowed() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("the processors of this thread")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

/// Keeps this thread, and those that it starts from now on, on one processor.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot keep to processor {cpu}"))
}
