//! System calls per request, of both processes as they are, counted by strace: figures that no
//! load of the machine changes.
//!
//! Everything is kept to one processor, where neither side looks for events without sleeping: then
//! requests that are in flight together are also served together, however long anything takes.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::Command;

use tests::{Bus, LIMIT, Machine, Process, Toolstack, keep_to_one_processor, make_disk, vmsg};
use xen_types::DomId;

/// Bytes of the disk, all of them in the page cache.
const BYTES: usize = 1 << 20;
/// Batches of the shorter of two runs, and of the longer: what both have, such as the bring-up,
/// drops out.
const BATCHES: [u64; 2] = [50, 250];
/// What a bring-up does more often in one run than in another: less than a call for four batches.
const NOISE: u64 = (BATCHES[1] - BATCHES[0]) / 4;

/// Depths that are served in one turn.
const DEPTHS: [u64; 4] = [1, 8, 32, 64];
/// What a batch costs either side beside its reads: it sleeps, takes the event, and sends one.
const EACH_BATCH: u64 = 3;
/// Depths from which on those are few beside the reads.
const DEEP: [u64; 2] = [64, 128];
/// The most there for 100 reads.
const EACH_100_READS: u64 = 105;

#[test]
fn a_cached_read_is_one_system_call_and_a_batch_three_more() {
    for depth in DEPTHS {
        let Some([backend, guest]) = counted(depth) else {
            return;
        };
        assert_at_most(depth + EACH_BATCH, &backend, "backend", depth);
        assert_at_most(EACH_BATCH, &guest, "guest", depth);
    }
}

#[test]
fn a_cached_read_in_a_deep_queue_costs_the_backend_little_more_than_one_system_call() {
    for depth in DEEP {
        let Some([backend, _]) = counted(depth) else {
            return;
        };
        assert_at_most(depth * EACH_100_READS / 100, &backend, "backend", depth);
    }
}

/// System calls by name.
type Calls = BTreeMap<String, u64>;

/// So many for a batch, by what the longer run has more than the shorter.
#[track_caller]
fn assert_at_most(most: u64, runs: &[Calls; 2], side: &str, depth: u64) {
    let more = |name: &String| {
        let [shorter, longer] = [0, 1].map(|run: usize| runs[run].get(name).copied());
        longer.unwrap_or(0).saturating_sub(shorter.unwrap_or(0))
    };
    let names = runs[1].keys().map(|name| (name, more(name)));
    let names: Vec<_> = names.filter(|(_, more)| *more > 0).collect();
    let all: u64 = names.iter().map(|(_, more)| more).sum();
    let batches = BATCHES[1] - BATCHES[0];
    assert!(all + NOISE >= batches, "nothing was counted: {names:?}");
    assert!(
        all <= most * batches + NOISE,
        "{side}: {all} calls for {batches} batches of {depth}, at most {most} each: {names:?}"
    );
}

/// What both sides call in the two runs; nothing where nobody can count.
fn counted(depth: u64) -> Option<[[Calls; 2]; 2]> {
    if Command::new("strace").arg("-V").output().is_err() {
        let why = "SKIPPED, no system call was counted: strace is missing: apt-get install strace";
        // Also when the test passes: the harness keeps what is printed in the usual way.
        writeln!(io::stderr(), "system_calls: {why}").expect("standard error");
        return None;
    }
    keep_to_one_processor();
    let [shorter, longer] = BATCHES.map(|batches| run(depth, batches));
    let ([backend, guest], [longer_backend, longer_guest]) = (shorter, longer);
    Some([[backend, longer_backend], [guest, longer_guest]])
}

/// A guest reads so many batches; what the backend called from its start to its end, and the guest.
fn run(depth: u64, batches: u64) -> [Calls; 2] {
    let machine = Machine::start();
    let mut toolstack = Toolstack::new(machine.store(DomId::DOM0));
    let bus = Bus::of(machine.create_domain("guest"));
    let image = machine.file("disk.img");
    make_disk(&image, BYTES);
    toolstack.make_bus(bus);
    toolstack.make_device(bus, 0, &format!("type=blk,path={}", image.display()));
    let mut backend = Process::start(&mut strace(&vmsg(&machine, DomId::DOM0, &["backend"])));
    let (depth, requests) = (depth.to_string(), (depth * batches).to_string());
    let load = [
        ["frontend", "blk", "bench", "0"].as_slice(),
        &["--iodepth", &depth, "--requests", &requests],
    ];
    let mut guest = Process::start(&mut strace(&vmsg(&machine, bus.guest, &load.concat())));
    let guest = calls(&guest.end_within(LIMIT).succeeded().stdout);
    [calls(&backend.stop().succeeded().stdout), guest]
}

/// The same program below strace, which is its child and ends after it: what it has counted stands
/// at the end of what the program prints.
fn strace(program: &Command) -> Command {
    let mut command = Command::new("strace");
    command
        .args(["-D", "-f", "-c", "-o", "/dev/stdout"])
        .arg(program.get_program())
        .args(program.get_args())
        .env_remove("RUST_LOG");
    command
}

/// Reads the table: share, seconds, microseconds, calls, perhaps errors, name.
fn calls(table: &str) -> Calls {
    let rows = table.lines().map(|line| line.split_whitespace());
    let rows = rows.filter_map(|mut row| {
        let share: f64 = row.next()?.parse().ok()?;
        let calls = row.nth(2)?.parse().ok()?;
        let name = row.last().filter(|name| *name != "total")?;
        share.is_finite().then(|| (name.to_owned(), calls))
    });
    let rows = Calls::from_iter(rows);
    assert!(!rows.is_empty(), "strace counted nothing: {table}");
    rows
}
