//! The table at the end, and the exit code.

use std::process::ExitCode;
use std::time::Duration;

/// What became of a scenario on a machine.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) verdict: Verdict,
    pub(super) scenario: String,
    pub(super) machine: String,
    /// In dom0, without the boot.
    pub(super) seconds: Option<u32>,
    /// Its last line, if it did not pass.
    pub(super) reason: String,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    /// Something that it needs is not there.
    Skipped,
    Failed,
    /// The laboratory failed, twice; our programs may be well.
    Laboratory,
    TookTooLong,
}

impl Verdict {
    /// From the scenario's exit code (tests/xen/run); none if it did not run.
    pub(super) fn of(code: Option<u32>) -> Self {
        match code {
            Some(0) => Self::Passed,
            Some(77) => Self::Skipped,
            Some(124) => Self::TookTooLong,
            Some(3) | None => Self::Laboratory,
            Some(_) => Self::Failed,
        }
    }

    pub(super) fn is_well(self) -> bool {
        matches!(self, Self::Passed | Self::Skipped)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Passed => "PASS",
            Self::Skipped => "SKIP",
            Self::Failed => "FAIL",
            Self::Laboratory => "LAB",
            Self::TookTooLong => "TIME",
        }
    }
}

pub(super) fn print(rows: &[Row]) {
    println!();
    for row in rows {
        println!("{}", line(row));
    }
}

/// `took`: all of it, with the boots.
pub(super) fn print_total(rows: &[Row], boots: usize, took: Duration) {
    let seconds = took.as_secs();
    let within: u32 = rows.iter().filter_map(|row| row.seconds).sum();
    println!(
        "{} scenarios in {within} s; with {boots} boots and the results {} min {} s",
        rows.len(),
        seconds / 60,
        seconds % 60
    );
}

fn line(row: &Row) -> String {
    let seconds = row
        .seconds
        .map_or_else(|| "-".into(), |seconds| format!("{seconds} s"));
    let line = format!(
        "{:<5}{:<16}{:<26}{seconds:>6}  {}",
        row.verdict.word(),
        row.scenario,
        row.machine,
        row.reason
    );
    line.trim_end().to_owned()
}

/// 0: all is well; 1: a program of ours failed; 3: only the laboratory did.
pub(super) fn exit_code(rows: &[Row]) -> ExitCode {
    ExitCode::from(code(rows))
}

fn code(rows: &[Row]) -> u8 {
    let any = |verdict| rows.iter().any(|row| row.verdict == verdict);
    if any(Verdict::Failed) || any(Verdict::TookTooLong) {
        1
    } else if any(Verdict::Laboratory) {
        3
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(code: Option<u32>) -> Row {
        Row {
            verdict: Verdict::of(code),
            scenario: "main".into(),
            machine: "pv guests, 6.1".into(),
            seconds: code,
            reason: String::new(),
        }
    }

    #[test]
    fn a_failure_of_ours_outweighs_one_of_the_laboratory_and_a_skip_is_none() {
        let of = |codes: &[Option<u32>]| {
            let rows: Vec<_> = codes.iter().copied().map(row).collect();
            code(&rows)
        };
        assert_eq!(of(&[Some(0), Some(77)]), 0);
        assert_eq!(of(&[Some(3), Some(124)]), 1);
        assert_eq!(of(&[Some(0), None]), 3);
        assert_eq!(of(&[None, Some(1)]), 1);
    }

    #[test]
    fn a_line_says_verdict_scenario_machine_and_time() {
        assert_eq!(
            line(&row(Some(0))),
            "PASS main            pv guests, 6.1               0 s"
        );
        assert_eq!(
            line(&row(None)),
            "LAB  main            pv guests, 6.1                 -"
        );
    }
}
