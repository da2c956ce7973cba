//! Tables of single steps of the bus, and of virtio-mmio before an ioreq server, out of what the scenario `figures` reported.

use std::fmt::Write as _;

use anyhow::Result;

use super::counts::thousandths;
use super::figures::{Measured, TSC_MODES, hundredths, thousands};
use super::plan::Guest;

/// A step of the bus as the scenario names it. It reports `STEP` and, for a thousand of it, `STEP-asked`.
const STEPS: [(&str, &str); 3] = [
    (
        "connect",
        "connection: XenStore, ring, memory, list of devices",
    ),
    ("bring-up", "bring-up of a disk with one queue: messages"),
    ("message", "one message and its answer"),
];

/// What virtio-mmio is put beside: ours, its own, and what of its cost ours may be, in hundredths.
struct Beside {
    about: &'static str,
    ours: &'static str,
    mmio: &'static str,
    target: Option<u64>,
}

const BESIDE: [Beside; 4] = [
    Beside {
        about: "bring-up of one queue",
        ours: "bring-up",
        mmio: "mmio-bring-up",
        target: Some(15),
    },
    Beside {
        about: "4 KiB read, one in flight",
        ours: "cache-4k-qd1",
        mmio: "mmio-4k-qd1",
        target: Some(40),
    },
    Beside {
        about: "4 KiB read, 32 in flight",
        ours: "cache-4k-qd32",
        mmio: "mmio-4k-qd32",
        target: None,
    },
    Beside {
        about: "1 MiB read, one in flight",
        ours: "cache-1m-qd1",
        mmio: "mmio-1m-qd1",
        target: None,
    },
];

/// In Markdown, thousands of instructions a step; virtio-mmio for guests that have it.
pub(super) fn tables(guest: Guest, measured: &Measured) -> Result<String> {
    let mut text = format!(
        "\n**Single steps, {} guest**\n\n| TSC | step | instructions | events sent |\n| --- | --- | ---: | ---: |\n",
        guest.name()
    );
    for tsc in TSC_MODES {
        for (step, about) in STEPS {
            let cost = thousands(measured.figure(tsc, step)?);
            let sent = thousandths(measured.figure(tsc, &asked(step))?);
            writeln!(text, "| {tsc} | {about} | {cost} | {sent} |")?;
        }
    }
    if guest == Guest::Pvh {
        text.push_str(&mmio(measured)?);
    }
    Ok(text)
}

fn mmio(measured: &Measured) -> Result<String> {
    let mut text = String::from(
        "\n**virtio-mmio before an ioreq server, pvh guest, page cache**\n\n\
         | TSC | | ours | virtio-mmio | its traps | ours / virtio-mmio | target |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for tsc in TSC_MODES {
        for row in &BESIDE {
            let ours = measured.figure(tsc, row.ours)?;
            let mmio = measured.figure(tsc, row.mmio)?;
            let traps = thousandths(measured.figure(tsc, &asked(row.mmio))?);
            let ratio = (ours * 100).div_ceil(mmio.max(1));
            let target = row.target.map_or_else(String::new, |target| {
                let verdict = if ratio <= target { "met" } else { "missed" };
                format!("{}: {verdict}", hundredths(target))
            });
            writeln!(
                text,
                "| {tsc} | {} | {} | {} | {traps} | {} | {target} |",
                row.about,
                thousands(ours),
                thousands(mmio),
                hundredths(ratio),
            )?;
        }
    }
    Ok(text)
}

fn asked(step: &str) -> String {
    format!("{step}-asked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_a_pvh_guest_has_virtio_mmio_and_a_ratio_is_never_rounded_to_a_hit() {
        let mut figures = BTreeMap::new();
        for (step, _) in STEPS {
            figures.insert(step.to_owned(), 40_001);
            figures.insert(asked(step), 6_500);
        }
        for row in &BESIDE {
            figures.insert(row.ours.to_owned(), 40_001);
            figures.insert(row.mmio.to_owned(), 100_000);
            figures.insert(asked(row.mmio), 3_000);
        }
        let measured = Measured {
            guest: "pvh".into(),
            figures: TSC_MODES
                .map(|tsc| (tsc.to_owned(), figures.clone()))
                .into(),
        };
        let text = tables(Guest::Pvh, &measured).expect("tables");
        assert!(
            text.contains("one message and its answer | 40.0 | 6.500 |"),
            "{text}"
        );
        assert!(
            text.contains("| native | 4 KiB read, one in flight | 40.0 | 100.0 | 3.000 | 0.41 | 0.40: missed |"),
            "{text}"
        );
        let text = tables(Guest::Pv, &measured).expect("tables");
        assert!(!text.contains("virtio-mmio"), "{text}");
    }
}
