//! What each domain asks of the hypervisor for one read: out of what the scenario `figures-counts` traced.
//!
//! Each load is traced with two numbers of reads. The difference is what the additional reads cost: bring-up and the
//! trace's own ends are in both.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The scenario.
pub(super) const SCENARIO: &str = "figures-counts";

/// The row of this project.
const OURS: &str = "ours";
/// A path to the disk as the scenario names it, and how many reads its longer trace holds more: `raw-disk` reads a tenth of
/// its number before it measures.
const PATHS: [(&str, &str, u64); 2] = [("bus", OURS, 1000), ("raw", "blkback", 1100)];
const DEPTHS: [u64; 2] = [1, 32];
/// The numbers of reads of the two traces.
const READS: [u64; 2] = [500, 1500];
const SENDS: &str = "event_channel_op";
const SLEEPS: &str = "sched_op";
const COLUMNS: [&str; 5] = [SENDS, SLEEPS, "grant-map", "grant-unmap", "grant-copy"];

/// What tests/scenarios/per_io.rs asserts of the hosted platform, for each side.
pub(super) const HOSTED: &str = "one event each way for all reads in flight, no grant operation";
/// How far the trace may be from it, in thousandths of a call: what the machine does besides is in it.
const NOISE_OF_SENDS: u64 = 20;
const NOISE_OF_GRANTS: u64 = 5;

/// Calls, by domain and what was called. All that is not dom0 is the guest.
type Calls = BTreeMap<(bool, String), u64>;

/// Calls a read, of what the scenario traced.
#[derive(Debug)]
pub(super) struct Counts {
    rows: Vec<Row>,
    store_requests: String,
}

/// A domain's calls under a load, in thousandths of a call.
#[derive(Debug)]
struct Row {
    title: &'static str,
    depth: u64,
    domain: &'static str,
    calls: [u64; COLUMNS.len()],
}

/// Of the traces in a folder.
pub(super) fn read(results: &Path) -> Result<Counts> {
    read_by(|name| {
        let file = results.join(name);
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    })
}

fn read_by(read: impl Fn(&str) -> Result<String>) -> Result<Counts> {
    let mut rows = Vec::new();
    for (path, title, more) in PATHS {
        for depth in DEPTHS {
            let [few, many] = READS.map(|reads| {
                let name = format!("{path}-{depth}-{reads}.hypercalls");
                let calls = parse(&read(&name)?);
                ensure!(!calls.is_empty(), "{name} holds nothing");
                Ok(calls)
            });
            let (few, many) = (few?, many?);
            for (is_dom0, domain) in [(true, "dom0"), (false, "guest")] {
                let calls = COLUMNS.map(|column| {
                    let key = (is_dom0, column.to_owned());
                    let [few, many] = [&few, &many].map(|calls| calls.get(&key).copied());
                    many.unwrap_or(0).saturating_sub(few.unwrap_or(0)) * 1000 / more
                });
                rows.push(Row {
                    title,
                    depth,
                    domain,
                    calls,
                });
            }
        }
    }
    Ok(Counts {
        rows,
        store_requests: store_requests(&read("xenstore-requests")?)?,
    })
}

impl Counts {
    /// In Markdown.
    pub(super) fn table(&self) -> String {
        let mut text =
            String::from("\n**Calls to the hypervisor for one read**\n\n| | in flight | domain |");
        for column in COLUMNS {
            text += &format!(" {column} |");
        }
        text += &format!(
            "\n| --- | ---: | --- |{}\n",
            " ---: |".repeat(COLUMNS.len())
        );
        for row in &self.rows {
            text += &format!("| {} | {} | {} |", row.title, row.depth, row.domain);
            for calls in row.calls {
                text += &format!(" {} |", thousandths(calls));
            }
            text += "\n";
        }
        text + &self.store_requests
    }

    /// Where a read of ours asks other things of Xen than of the hosted platform.
    pub(super) fn differences(&self) -> Vec<String> {
        let ours = self.rows.iter().filter(|row| row.title == OURS);
        let calls = ours.flat_map(|row| {
            COLUMNS
                .into_iter()
                .zip(row.calls)
                .map(move |call| (row, call))
        });
        calls
            .filter(|(row, (column, calls))| {
                let sends = 1000 / row.depth;
                match *column {
                    SENDS => calls.abs_diff(sends) > NOISE_OF_SENDS + sends / 50,
                    // A process of the hosted platform sleeps in its own kernel.
                    SLEEPS => false,
                    _ => *calls > NOISE_OF_GRANTS,
                }
            })
            .map(|(row, (column, calls))| {
                let calls = thousandths(calls);
                format!(
                    "{}, {} in flight: {calls} {column} a read",
                    row.domain, row.depth
                )
            })
            .collect()
    }
}

/// A number that was counted for a thousand.
pub(super) fn thousandths(count: u64) -> String {
    format!("{}.{:03}", count / 1000, count % 1000)
}

/// One line: requests of the guest, of its kernel meanwhile, and of the backend.
fn store_requests(line: &str) -> Result<String> {
    let counts: Vec<&str> = line.split_whitespace().collect();
    let [guest, kernel, backend] = counts[..] else {
        bail!(
            "xenstore-requests holds '{}', which is no three numbers",
            line.trim()
        );
    };
    Ok(format!(
        "\nXenStore requests until both are connected, with a ring of four pages: guest {guest} and its kernel {kernel}, backend {backend}\n"
    ))
}

/// Lines of `hypercalls`: domain, what, calls, references.
fn parse(text: &str) -> Calls {
    let mut calls = Calls::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(domain), Some(what), Some(count)) = (words.next(), words.next(), words.next())
            && let Ok(count) = count.parse::<u64>()
        {
            *calls.entry((domain == "d0", what.to_owned())).or_default() += count;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both traces hold 70 sends of other things; `sends` says what the longer one of a load holds.
    fn counts(sends: impl Fn(&str) -> u64) -> Counts {
        read_by(|name| {
            if name == "xenstore-requests" {
                return Ok("40 13 34\n".into());
            }
            let sends = if name.contains("-1500.") { sends(name) } else { 70 };
            Ok(format!(
                "d0 event_channel_op {sends} 0\nd4 event_channel_op {sends} 0\nd4 sched_op 5 0\nd32767 exit 1 0\n"
            ))
        })
        .expect("counts")
    }

    #[test]
    fn a_table_holds_what_the_additional_reads_cost() {
        // One call for each read, or for each of the reads in flight together.
        let counts = counts(|name| match name {
            "bus-1-1500.hypercalls" => 1070,
            _ => 103,
        });
        let table = counts.table();
        for line in [
            "| ours | 1 | dom0 | 1.000 | 0.000 |",
            "| ours | 32 | guest | 0.033 | 0.000 |",
            "| blkback | 32 | dom0 | 0.030 | 0.000 |",
            "guest 40 and its kernel 13, backend 34",
        ] {
            assert!(table.contains(line), "{line}: {table}");
        }
        assert!(counts.differences().is_empty(), "{counts:?}");
    }

    #[test]
    fn a_second_event_for_a_read_is_a_difference_from_the_hosted_platform() {
        let counts = counts(|name| match name {
            "bus-1-1500.hypercalls" => 2070,
            _ => 132,
        });
        let twice = |depth, calls| {
            ["dom0", "guest"].map(|domain| {
                format!("{domain}, {depth} in flight: {calls} event_channel_op a read")
            })
        };
        assert_eq!(
            counts.differences(),
            [twice(1, "2.000"), twice(32, "0.062")].concat()
        );
    }
}
