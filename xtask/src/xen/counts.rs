//! What each domain asks of the hypervisor for one read: out of what the scenario `figures-counts` traced.
//!
//! Each load is traced with two numbers of reads. The difference is what the additional reads cost: bring-up and the
//! trace's own ends are in both.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The scenario.
pub(super) const SCENARIO: &str = "figures-counts";

/// A path to the disk as the scenario names it, and how many reads its longer trace holds more: `raw-disk` reads a tenth of
/// its number before it measures.
const PATHS: [(&str, &str, u64); 2] = [("bus", "ours", 1000), ("raw", "blkback", 1100)];
const DEPTHS: [u64; 2] = [1, 32];
/// The numbers of reads of the two traces.
const READS: [u64; 2] = [500, 1500];
const COLUMNS: [&str; 5] = [
    "event_channel_op",
    "sched_op",
    "grant-map",
    "grant-unmap",
    "grant-copy",
];

/// Calls, by domain and what was called. All that is not dom0 is the guest.
type Calls = BTreeMap<(bool, String), u64>;

/// In Markdown, calls a read, of the traces in a folder.
pub(super) fn table(results: &Path) -> Result<String> {
    table_of(|name| {
        let file = results.join(name);
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    })
}

fn table_of(read: impl Fn(&str) -> Result<String>) -> Result<String> {
    let mut text =
        String::from("\nCalls to the hypervisor for one read\n\n| | in flight | domain |");
    for column in COLUMNS {
        write!(text, " {column} |")?;
    }
    writeln!(
        text,
        "\n| --- | ---: | --- |{}",
        " ---: |".repeat(COLUMNS.len())
    )?;
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
                write!(text, "| {title} | {depth} | {domain} |")?;
                for column in COLUMNS {
                    let key = (is_dom0, column.to_owned());
                    let [few, many] = [&few, &many].map(|calls| calls.get(&key).copied());
                    let calls = many.unwrap_or(0).saturating_sub(few.unwrap_or(0));
                    let thousandths = calls * 1000 / more;
                    write!(text, " {}.{:03} |", thousandths / 1000, thousandths % 1000)?;
                }
                writeln!(text)?;
            }
        }
    }
    text.push_str(&store_requests(&read("xenstore-requests")?)?);
    Ok(text)
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

    #[test]
    fn a_table_holds_what_the_additional_reads_cost() {
        // One call for each of the reads in flight together, and what is the same in both traces.
        let table = table_of(|name| {
            let sends = match name {
                "xenstore-requests" => return Ok("40 13 34\n".into()),
                "bus-1-1500.hypercalls" | "bus-32-1500.hypercalls" => 1070,
                "raw-1-1500.hypercalls" | "raw-32-1500.hypercalls" => 103,
                _ => 70,
            };
            Ok(format!(
                "d0 event_channel_op {sends} 0\nd4 sched_op 5 0\nd32767 exit 1 0\n"
            ))
        })
        .expect("a table");
        assert!(
            table.contains("| ours | 1 | dom0 | 1.000 | 0.000 |"),
            "{table}"
        );
        assert!(
            table.contains("guest 40 and its kernel 13, backend 34"),
            "{table}"
        );
        assert!(
            table.contains("| blkback | 32 | dom0 | 0.030 | 0.000 |"),
            "{table}"
        );
        assert!(
            table.contains("| ours | 1 | guest | 0.000 | 0.000 |"),
            "{table}"
        );
    }
}
