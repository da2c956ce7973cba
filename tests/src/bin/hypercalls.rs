//! Counts what each domain asked of the hypervisor, out of an xentrace file of a machine with one processor.
//!
//!     hypercalls FILE
//!
//! A line each: domain, what, how often, and for grant operations how many references. What: a hypercall by its name; in
//! guests with hardware virtualisation every other exit, too. The trace must hold the classes SCHED, PV and HVM
//! (xentrace -e 0x002af000); what it lost is an error. The format is that of Xen's public trace.h.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;

/// Events: records were lost; the processor goes to another domain; a hypercall, also as part of a multicall, of a guest
/// without and with hardware virtualisation; an exit of one with, 32 bits wide and 64.
const LOST: u32 = 0x0001_f001;
const SWITCH: u32 = 0x0002_800a;
const HYPERCALL: [u32; 2] = [0x0020_100d, 0x0020_200e];
const VMMCALL: u32 = 0x0008_2012;
const EXIT: [u32; 2] = [0x0008_1002, 0x0008_1102];

/// Exit reasons of AMD's virtualisation: a hypercall, which is counted by its name, and what else a guest in I/O does.
const EXIT_VMMCALL: u32 = 0x81;
const EXITS: [(u32, &str); 5] = [
    (0x60, "exit-interrupt"),
    (0x64, "exit-interrupt-window"),
    (0x78, "exit-halt"),
    (0x7c, "exit-msr"),
    (0x400, "exit-page-fault"),
];

const GRANT_TABLE_OP: u32 = 20;
const NAMES: [(u32, &str); 8] = [
    (1, "mmu_update"),
    (12, "memory_op"),
    (20, "grant_table_op"),
    (24, "vcpu_op"),
    (26, "mmuext_op"),
    (29, "sched_op"),
    (32, "event_channel_op"),
    (41, "dm_op"),
];
const GRANT_OPS: [(u32, &str); 3] = [(0, "grant-map"), (1, "grant-unmap"), (5, "grant-copy")];

/// How often, and how many references.
type Counts = BTreeMap<(u32, String), (u64, u64)>;

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: hypercalls FILE");
        return ExitCode::FAILURE;
    };
    let counted = std::fs::read(&path)
        .map_err(|error| error.to_string())
        .and_then(|trace| count(&trace));
    match counted {
        Ok(counts) => {
            for ((domain, what), (calls, refs)) in counts {
                println!("d{domain} {what} {calls} {refs}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hypercalls: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(trace: &[u8]) -> Result<Counts, String> {
    let mut words = trace
        .as_chunks()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word));
    let mut counts = Counts::new();
    let mut domain = None;
    while let Some(header) = words.next() {
        let (event, extra, timed) = (header & 0x0fff_ffff, header >> 28 & 7, header >> 31 == 1);
        if timed {
            words.nth(1);
        }
        let mut data = [0; 7];
        for (word, from) in data.iter_mut().zip(words.by_ref().take(extra as usize)) {
            *word = from;
        }
        if event == LOST {
            return Err(format!("{} records were lost", data[0]));
        }
        if event == SWITCH {
            domain = Some(data[2]);
        }
        // Before the first switch nobody knows.
        let Some(domain) = domain else {
            continue;
        };
        let mut add = |what: &str, refs: u32| {
            let entry = counts.entry((domain, what.to_owned())).or_default();
            *entry = (entry.0 + 1, entry.1 + u64::from(refs));
        };
        if HYPERCALL.contains(&event) || event == VMMCALL {
            let call = data[0] & 0xf_ffff;
            if call == GRANT_TABLE_OP && event != VMMCALL {
                add(&name(&GRANT_OPS, data[1], "grant-op"), data[2]);
            } else {
                add(&name(&NAMES, call, "hypercall"), 0);
            }
        } else if EXIT.contains(&event) && data[0] != EXIT_VMMCALL {
            add(&name(&EXITS, data[0], "exit"), 0);
        }
    }
    Ok(counts)
}

fn name(names: &[(u32, &str)], number: u32, kind: &str) -> String {
    let known = names.iter().find(|(known, _)| *known == number);
    known.map_or_else(
        || format!("{kind}-{number}"),
        |(_, name)| (*name).to_owned(),
    )
}
