//! `vmsg doctor`: whether this machine has what the bus needs, and what to type if not.
//!
//! [`facts`] looks, [`checks`] judges what was seen; [`buses`] does both for a guest's buses. Nothing is changed.

mod buses;
mod checks;
mod facts;

use std::path::Path;

use anyhow::bail;
use backend::Gauges;
use serde::Serialize;
use xen_hal::{Platform, PlatformSpec};
use xen_types::DomId;

use crate::output;
use checks::Role;
use facts::{Process, Store, Xen};

/// Check whether this machine has what the bus needs, and say what to type if not.
///
/// Each line is ok, warn (it works, up to a limit worth knowing) or FAIL (something needed is
/// missing). The exit status is 1 if there is a FAIL. Nothing is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vmsg doctor                                 this Xen domain
  vmsg doctor --platform hosted:/tmp/machine  the machine of `vmsg hosted /tmp/machine`
  vmsg doctor --json | jq -r '.checks[] | select(.verdict == \"fail\") | .advice'")]
pub(crate) struct Options {
    /// Print the checks for programs.
    #[arg(long)]
    json: bool,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, but somebody may miss something.
    Warn,
    /// Something needed is missing.
    Fail,
}

/// One check.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// What to type.
    advice: Option<String>,
}

/// All of them.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

pub(crate) fn run(named: Option<PlatformSpec>, options: &Options) -> anyhow::Result<()> {
    let process = Process::look();
    let spec = named.unwrap_or(PlatformSpec::Xen);
    let mut checks;
    let store;
    let role;
    match &spec {
        PlatformSpec::Xen => {
            let xen = Xen::look(Path::new("/"));
            store = ask_store(&spec);
            role = Role::of(xen.is_control_domain, store.as_ref().ok());
            checks = checks::xen(&xen, &process, &store, role);
        }
        PlatformSpec::Hosted { .. } => {
            let broker = Platform::open(&spec).map(drop).map_err(describe);
            store = ask_store(&spec);
            role = Role::of(false, store.as_ref().ok());
            checks = checks::hosted(&spec, &broker, &store, &process);
        }
    }
    if role != Role::Guest {
        let own = store.map_or(DomId::DOM0, |store| store.own);
        let gauges = Gauges::read(&backend::run_dir(&spec), own);
        checks.push(checks::backend(&spec, own, &gauges));
    } else if store.is_ok() {
        checks.extend(buses::judge(&spec, &buses::look(&spec)?));
    }
    let failed = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Fail)
        .count();
    let report = Report {
        ok: failed == 0,
        checks,
    };
    if options.json {
        output::print_json(&report)?;
    } else {
        let colour = output::may_colour(&std::io::stdout());
        output::print(report.text(colour))?;
    }
    if failed > 0 {
        bail!("{failed} of {} checks failed", report.checks.len());
    }
    Ok(())
}

fn ask_store(spec: &PlatformSpec) -> Result<Store, String> {
    Store::look(spec).map_err(|error| format!("{error:#}"))
}

fn describe(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

impl Report {
    fn text(&self, colour: bool) -> String {
        let width = self
            .checks
            .iter()
            .map(|check| check.check.len())
            .max()
            .unwrap_or(0);
        let mut lines = Vec::new();
        for check in &self.checks {
            let (word, code) = match check.verdict {
                Verdict::Ok => ("ok  ", "32"),
                Verdict::Warn => ("warn", "33"),
                Verdict::Fail => ("FAIL", "31"),
            };
            let word = if colour {
                format!("\u{1b}[{code}m{word}\u{1b}[0m")
            } else {
                word.to_owned()
            };
            lines.push(format!("{word}  {:width$}  {}", check.check, check.found));
            if let Some(advice) = &check.advice {
                lines.push(format!("      {:width$}  -> {advice}", ""));
            }
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_stand_in_front_and_advice_below() {
        let check = |check, verdict, advice: Option<&str>| Check {
            check,
            verdict,
            found: "f".into(),
            advice: advice.map(Into::into),
        };
        let report = Report {
            ok: false,
            checks: vec![
                check("gntdev", Verdict::Fail, Some("modprobe xen-gntdev")),
                check("user", Verdict::Ok, None),
            ],
        };
        assert_eq!(
            report.text(false),
            "FAIL  gntdev  f\n              -> modprobe xen-gntdev\nok    user    f"
        );
        assert!(report.text(true).starts_with("\u{1b}[31mFAIL\u{1b}[0m  "));
    }
}
