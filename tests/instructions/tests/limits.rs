//! Instructions per chain and per message: figures that no load of the machine changes.
//!
//! Debian's valgrind counts a program of its own, `instruction-probe`, which must be optimised:
//! `cargo xtask counts` runs these tests so. Elsewhere they say that they counted nothing.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::Command;

use instructions::BATCH;

/// Rounds of the shorter of two runs; the longer has twice as many. What both have, such as
/// buffers that find their size, drops out.
const ROUNDS: u64 = 20;

// Each limit is what was measured (Rust 1.95, x86-64; said beside it) and 5 % for other compilers.

/// A chain of one segment, the device's whole part in it, in batches of 32. Measured: 65.
const ONE_SEGMENT: u64 = 68;
/// A chain of three. Measured: 143.
const THREE_SEGMENTS: u64 = 150;
/// A chain of three in an indirect table. Measured: 362.
const INDIRECT: u64 = 380;
/// Each look-up in another area than the one before, of 64: one segment. Measured: 169.
const ONE_SEGMENT_FAR: u64 = 177;
/// The same, three segments. Measured: 464.
const THREE_SEGMENTS_FAR: u64 = 487;
/// One segment, kept until the chain is complete and looked up then. Measured: 105.
const ONE_COLLECTED: u64 = 110;
/// The same, three segments. Measured: 237.
const THREE_COLLECTED: u64 = 249;
/// The same, in an indirect table. Measured: 454.
const INDIRECT_COLLECTED: u64 = 477;
/// A message of 64 bytes, sent and received, in batches of 32. Measured: 172.
const SHORT_MESSAGE: u64 = 181;
/// A message of 264 bytes. Measured: 255.
const LONG_MESSAGE: u64 = 268;
/// A read of 4 KiB from the page cache, the block device's whole part in it but the kernel's, in
/// batches of 32. Measured: 739.
const READ: u64 = 775;
/// A read alone, the driver's whole part in it outside of the kernel. Measured: 2,838.
const LONE_READ: u64 = 2_980;
/// A read, 32 in flight. Measured: 1,077.
const READ_OF_MANY: u64 = 1_131;

#[test]
fn a_chain_costs_so_many_instructions() {
    at_most(ONE_SEGMENT, &["chain", "1", "direct", "1", "16"]);
    at_most(THREE_SEGMENTS, &["chain", "3", "direct", "1", "16"]);
    at_most(INDIRECT, &["chain", "3", "indirect", "1", "16"]);
}

#[test]
fn a_chain_that_is_collected_first_costs_so_many_instructions() {
    at_most(ONE_COLLECTED, &["collected", "1", "direct", "1", "16"]);
    at_most(THREE_COLLECTED, &["collected", "3", "direct", "1", "16"]);
    at_most(
        INDIRECT_COLLECTED,
        &["collected", "3", "indirect", "1", "16"],
    );
}

#[test]
fn a_chain_costs_the_same_whatever_the_guest_has_granted() {
    at_most(ONE_SEGMENT, &["chain", "1", "direct", "1", "16384"]);
    at_most(THREE_SEGMENTS, &["chain", "3", "direct", "1", "16384"]);
}

#[test]
fn a_change_of_area_costs_a_look_up_and_no_search() {
    at_most(ONE_SEGMENT_FAR, &["chain", "1", "direct", "64", "256"]);
    at_most(THREE_SEGMENTS_FAR, &["chain", "3", "direct", "64", "256"]);
}

#[test]
fn a_message_costs_so_many_instructions() {
    at_most(SHORT_MESSAGE, &["message", "64"]);
    at_most(LONG_MESSAGE, &["message", "264"]);
}

#[test]
fn a_block_read_costs_so_many_instructions() {
    at_most(READ, &["read"]);
}

#[test]
fn a_read_costs_its_driver_so_many_instructions() {
    at_most(LONE_READ, &["drive", "1"]);
    at_most(READ_OF_MANY, &["drive", "32"]);
}

/// The instructions of one chain, message or read are within the limit.
fn at_most(limit: u64, what: &[&str]) {
    if cfg!(debug_assertions) {
        return skip("not optimised: cargo xtask counts");
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip("valgrind is missing: apt-get install valgrind");
    }
    let [shorter, longer] = [ROUNDS, 2 * ROUNDS].map(|rounds| count(rounds, what));
    let units = ROUNDS * u64::from(BATCH);
    let each = (longer - shorter).div_ceil(units);
    say(&format!(
        "{}: {each} instructions, at most {limit}",
        what.join(" ")
    ));
    assert!(each > 0, "nothing was counted: {what:?}");
    assert!(
        each <= limit,
        "{what:?}: {each} instructions, at most {limit}"
    );
}

/// Instructions in so many rounds of what the program has in its module `measured`.
fn count(rounds: u64, what: &[&str]) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=instruction_probe::measured::*")
        .arg("--toggle-collect=instruction_probe::drive::measured::*")
        .arg(env!("CARGO_BIN_EXE_instruction-probe"))
        .arg(rounds.to_string())
        .args(what)
        .output()
        .expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what:?}: {said}");
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.unwrap_or_else(|| panic!("valgrind says no number: {said}"));
    number.trim().parse().expect("a number of instructions")
}

fn skip(why: &str) {
    say(&format!("SKIPPED, no instruction was counted: {why}"));
}

/// Also when the test passes: the harness keeps what is printed in the usual way.
fn say(line: &str) {
    writeln!(io::stderr(), "instructions: {line}").expect("standard error");
}
