//! One boot: calls tests/xen/run and reads its results.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use super::plan::{Boot, Setting};
use super::programs;
use super::report::{Row, Verdict};
use crate::workspace::Workspace;

/// Exit codes of tests/xen/run that do not speak of scenarios.
const USAGE: i32 = 2;

/// What all boots share.
#[derive(Debug)]
pub(super) struct Laboratory {
    script: PathBuf,
    cache: PathBuf,
    programs: PathBuf,
}

impl Laboratory {
    /// Looks whether the machine has what is needed, and builds the programs under test.
    pub(super) fn new(workspace: &Workspace) -> Result<Self> {
        let script = workspace.root.join("tests/xen/run");
        let tools = Command::new(&script).arg("tools").status();
        ensure!(
            tools.context("cannot run tests/xen/run")?.success(),
            "this machine cannot run the laboratory"
        );
        Ok(Self {
            script,
            cache: std::env::var_os("VMSG_XEN_LAB")
                .map_or_else(|| workspace.target_directory.join("xen-lab"), PathBuf::from),
            programs: programs::build(workspace)?,
        })
    }

    /// Runs the scenarios of a boot; a row for each.
    pub(super) fn run(&self, boot: &Boot, setting: Setting, keep: bool) -> Result<Vec<Row>> {
        let results = self.results(boot);
        let status = self
            .command(boot, setting)
            .arg("--out")
            .arg(&results)
            .args(&boot.scenarios)
            .stdin(Stdio::null())
            .status()
            .context("cannot run tests/xen/run by setpriv (of util-linux)")?;
        let code = status.code().context("tests/xen/run was killed")?;
        ensure!(code != USAGE, "tests/xen/run was called wrongly");
        let rows: Vec<_> = boot
            .scenarios
            .iter()
            .map(|scenario| row(boot, scenario, &results.join(scenario)))
            .collect();
        let well = rows.iter().all(|row| row.verdict.is_well());
        for row in rows.iter().filter(|row| !row.verdict.is_well()) {
            show_log(&results.join(&row.scenario).join("dom0.log"));
        }
        if well && !keep {
            fs::remove_dir_all(&results)
                .with_context(|| format!("cannot remove {}", results.display()))?;
        } else {
            println!("{boot}: results in {}", results.display());
        }
        Ok(rows)
    }

    /// The folder of a boot's results.
    pub(super) fn results(&self, boot: &Boot) -> PathBuf {
        self.cache.join("results").join(boot.folder())
    }

    /// Hands the terminal to dom0.
    pub(super) fn shell(&self, (boot, setting): &(Boot, Setting)) -> Result<ExitCode> {
        let status = self
            .command(boot, *setting)
            .arg("shell")
            .status()
            .context("cannot run tests/xen/run by setpriv (of util-linux)")?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn command(&self, boot: &Boot, setting: Setting) -> Command {
        // setpriv: the laboratory, and QEMU with it, ends when this program does, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM"])
            .arg(&self.script)
            .args(["--guest", boot.guest.name()])
            .args(["--kernel", boot.kernel.name()])
            .args(["--dom0", boot.dom0.name()])
            .args(["--rounds", &setting.rounds.to_string()])
            .arg("--programs")
            .arg(&self.programs)
            .env("VMSG_XEN_LAB", &self.cache);
        if setting.deterministic {
            command.arg("--deterministic");
        }
        if let Some(seconds) = setting.seconds {
            command.args(["--timeout", &seconds.to_string()]);
        }
        command
    }
}

fn row(boot: &Boot, scenario: &str, results: &Path) -> Row {
    let number = |name| -> Option<u32> {
        let text = fs::read_to_string(results.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let last_line = || {
        let log = fs::read_to_string(results.join("dom0.log")).ok()?;
        log.lines().next_back().map(str::to_owned)
    };
    let verdict = Verdict::of(number("code"));
    Row {
        verdict,
        scenario: scenario.to_owned(),
        machine: boot.to_string(),
        seconds: number("seconds"),
        reason: match verdict {
            Verdict::Passed => String::new(),
            _ => last_line().unwrap_or_default(),
        },
    }
}

/// What dom0's half said: its last line is the failure.
fn show_log(path: &Path) {
    if let Ok(log) = fs::read_to_string(path) {
        println!("--- {}\n{}\n---", path.display(), log.trim_end());
    }
}
