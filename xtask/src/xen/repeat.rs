//! Whether the figures of two runs agree.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::figures::Measured;

/// In hundredths of a percent.
const TOLERANCE: u64 = 100;
/// Instructions that do not count beside it: of a look at the clock, the smallest figure, they are several percent.
const FEW: u64 = 10;

/// The figures of an earlier run.
pub(super) fn read(path: &Path) -> Result<Vec<Measured>> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} holds no figures", path.display()))
}

/// The comparison.
#[derive(Debug, Default)]
pub(super) struct Compared {
    figures: usize,
    /// Figures that only one of the runs has.
    alone: usize,
    /// Hundredths of a percent, and which figure: those beyond the tolerance and the largest.
    differences: Vec<(u64, String)>,
}

/// Compares what both have.
pub(super) fn compare(earlier: &[Measured], now: &[Measured]) -> Compared {
    let mut compared = Compared::default();
    for (guest, who, key, one, other) in pairs(earlier, now) {
        compared.figures += 1;
        let difference = one.abs_diff(other).saturating_sub(FEW);
        let difference = (difference * 10_000).div_ceil(one.min(other).max(1));
        let name = format!("{guest} {who} {key}: {one}, {other}");
        compared.differences.push((difference, name));
    }
    let all = |runs: &[Measured]| -> usize {
        let figures = runs.iter().flat_map(|boot| boot.figures.values());
        figures.map(|figures| figures.len()).sum()
    };
    compared.alone = all(earlier) + all(now) - 2 * compared.figures;
    compared.differences.sort_by(|one, other| other.cmp(one));
    let beyond = compared
        .differences
        .iter()
        .filter(|(size, _)| *size > TOLERANCE);
    let shown = beyond.count().max(1);
    compared.differences.truncate(shown);
    compared
}

fn pairs<'a>(
    earlier: &'a [Measured],
    now: &'a [Measured],
) -> impl Iterator<Item = (&'a str, &'a str, &'a str, u64, u64)> {
    now.iter().flat_map(move |boot| {
        let earlier = earlier.iter().find(|other| other.guest == boot.guest);
        boot.figures.iter().flat_map(move |(who, figures)| {
            figures.iter().filter_map(move |(key, now)| {
                let earlier = earlier?.figures.get(who)?.get(key)?;
                Some((&*boot.guest, &**who, &**key, *earlier, *now))
            })
        })
    })
}

impl Compared {
    /// They agree.
    pub(super) fn is_well(&self) -> bool {
        self.figures > 0 && self.differences.iter().all(|(size, _)| *size <= TOLERANCE)
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_well() {
            "agree"
        } else {
            "DO NOT AGREE"
        };
        write!(
            f,
            "{} figures of two runs {verdict} within 1 % ({} stand in one run alone); the largest differences:",
            self.figures, self.alone
        )?;
        for (size, name) in &self.differences {
            write!(f, "\n{}.{:02} % {name}", size / 100, size % 100)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn run(figures: &[(&str, u64)]) -> Vec<Measured> {
        let figures = figures
            .iter()
            .map(|(key, value)| ((*key).to_owned(), *value));
        vec![Measured {
            guest: "pv".into(),
            figures: BTreeMap::from([("native".into(), figures.collect())]),
        }]
    }

    #[test]
    fn a_figure_may_differ_by_a_hundredth_and_a_few_instructions() {
        let agree = compare(
            &run(&[("a", 10_000), ("b", 5)]),
            &run(&[("a", 10_110), ("b", 15)]),
        );
        assert!(agree.is_well(), "{agree}");
        assert_eq!(
            agree.to_string(),
            "2 figures of two runs agree within 1 % (0 stand in one run alone); the largest differences:\n1.00 % pv native a: 10000, 10110"
        );
        let differ = compare(
            &run(&[("a", 10_000), ("b", 5)]),
            &run(&[("a", 10_112), ("b", 16)]),
        );
        assert!(!differ.is_well(), "{differ}");
        assert_eq!(differ.differences.len(), 2);
    }

    #[test]
    fn nothing_in_common_is_no_agreement() {
        assert!(!compare(&run(&[("a", 1)]), &run(&[("b", 1)])).is_well());
    }
}
