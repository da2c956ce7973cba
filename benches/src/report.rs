//! A figure as it is shown: to people as a table, to programs as JSON.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::cpu::Conditions;
use crate::rounds::Spread;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured: suite and case.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// The lowest of all rounds.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// What it should be, if anything.
    pub target: Option<Target>,
    /// Whether it is.
    pub met: Option<bool>,
    /// What the figure counts.
    #[serde(skip)]
    pub unit: Unit,
    /// What it was measured beside.
    #[serde(skip)]
    pub peer: String,
    /// What helps to judge it: times of one operation, the price of a trap.
    #[serde(skip)]
    pub detail: String,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A ratio to the peer's.
    Times,
    /// Of something, for each operation.
    Each,
    /// Kibibytes.
    KiB,
}

/// What a figure should be; programs get it as text, `<= 1.1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, unit: Unit, spread: Spread) -> Self {
        Self {
            name: name.into(),
            value: spread.median,
            low: spread.low,
            high: spread.high,
            target: None,
            met: None,
            unit,
            peer: String::new(),
            detail: String::new(),
        }
    }

    pub(crate) fn target(mut self, target: Target) -> Self {
        self.met = Some(target.is_met(self.value));
        self.target = Some(target);
        self
    }

    pub(crate) fn peer(mut self, peer: impl Into<String>) -> Self {
        self.peer = peer.into();
        self
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The columns of [`Row::HEADER`].
    #[must_use]
    pub fn cells(&self) -> [String; 7] {
        let digits = |number| figure(number, self.unit);
        let range = match self.low == self.high {
            true => "exact".to_owned(),
            false => format!("{}..{}", digits(self.low), digits(self.high)),
        };
        let met = match self.met {
            Some(true) => "yes",
            Some(false) => "MISSED",
            None => "",
        };
        [
            self.name.clone(),
            digits(self.value),
            range,
            self.peer.clone(),
            self.target.map_or_else(String::new, |t| t.to_string()),
            met.to_owned(),
            self.detail.clone(),
        ]
    }

    /// What [`Row::cells`] are.
    pub const HEADER: [&'static str; 7] =
        ["name", "value", "range", "peer", "target", "met", "detail"];
}

fn figure(number: f64, unit: Unit) -> String {
    match unit {
        Unit::Times if number >= 100.0 => format!("{number:.0} x"),
        Unit::Times if number >= 10.0 => format!("{number:.1} x"),
        Unit::Times if number >= 0.01 => format!("{number:.3} x"),
        Unit::Times => format!("{number:.6} x"),
        Unit::Each => format!("{number:.3}"),
        Unit::KiB => format!("{number:.1} KiB"),
    }
}

/// Time for people, from nanoseconds.
pub(crate) fn time(ns: f64) -> String {
    match ns {
        _ if ns >= 1e6 => format!("{:.2} ms", ns / 1e6),
        _ if ns >= 1e4 => format!("{:.1} us", ns / 1e3),
        _ if ns >= 1e3 => format!("{:.2} us", ns / 1e3),
        _ => format!("{ns:.1} ns"),
    }
}

/// Rows as a table for docs/performance.md, below the conditions that they were measured in.
#[must_use]
pub fn markdown(rows: &[Row], before: &Conditions, after: &Conditions) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = format!(
        "{}, {} processors, Linux {}; load {} before and {} after.\n\n",
        before.processor, before.processors, before.kernel, before.load, after.load
    );
    text += &line(&Row::HEADER.map(str::to_owned));
    text += &line(&Row::HEADER.map(|_| "---".to_owned()));
    for row in rows {
        text += &line(&row.cells());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let spread = Spread {
            median: 0.5,
            low: 0.25,
            high: 0.75,
        };
        Row::new("suite case", Unit::Times, spread).peer("the other")
    }

    #[test]
    fn programs_get_six_fields() {
        let met = serde_json::to_value(row().target(Target::AtMost(1.1))).unwrap();
        let expected = serde_json::json!({
            "name": "suite case", "value": 0.5, "low": 0.25, "high": 0.75,
            "target": "<= 1.1", "met": true,
        });
        assert_eq!(met, expected);
        let without = serde_json::to_value(row()).unwrap();
        assert!(without["target"].is_null() && without["met"].is_null());
    }

    #[test]
    fn a_target_is_met_or_missed_by_the_median() {
        let met = |target| row().target(target).met;
        assert_eq!(met(Target::AtMost(0.5)), Some(true));
        assert_eq!(met(Target::AtMost(0.49)), Some(false));
        assert_eq!(met(Target::AtLeast(0.5)), Some(true));
        assert_eq!(met(Target::AtLeast(0.51)), Some(false));
    }

    #[test]
    fn people_get_a_table_with_the_load_above() {
        let conditions = Conditions {
            processor: "a processor".to_owned(),
            processors: 2,
            kernel: "6.18".to_owned(),
            load: "0.50".to_owned(),
        };
        let missed = row().target(Target::AtLeast(2.0));
        let text = markdown(&[missed], &conditions, &conditions);
        assert!(text.contains("load 0.50 before"), "{text}");
        let line = "| suite case | 0.500 x | 0.250 x..0.750 x | the other | >= 2 | MISSED |  |";
        assert!(text.contains(line), "{text}");
    }
}
