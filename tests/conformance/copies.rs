//! The backend copies no payload: what it does for a request does not grow with the bytes that the
//! request moves. Only the kernel's own copy between file and guest pages does.
//!
//! Debian's valgrind counts the instructions that the backend and its threads execute outside of
//! the kernel, which no load of the machine changes. One that copies takes at least one for every
//! 64 bytes, the widest that a processor moves at once.

use std::io::{self, Write as _};
use std::process::Command;

/// Bytes of a short request, and of a long one: of one segment both.
const SHORT: u64 = 512;
const LONG: u64 = 64 << 10;
/// What a copy of the difference takes at least.
const COPY: u64 = (LONG - SHORT) / 64;
/// Requests of a run.
const REQUESTS: u64 = 40;

#[test]
fn no_payload_is_copied_by_the_backend() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        // Also when the test passes: the harness keeps what is printed in the usual way.
        let why =
            "SKIPPED, no instruction was counted: valgrind is missing: apt-get install valgrind";
        writeln!(io::stderr(), "copies: {why}").expect("standard error");
        return;
    }
    for kind in ["read", "write"] {
        let [short, long] = [SHORT, LONG].map(|bytes| instructions(kind, bytes));
        assert!(short > COPY, "{kind}: {short} instructions are no request");
        let growth = long.saturating_sub(short);
        assert!(
            growth < COPY,
            "{kind}: {short} instructions for {SHORT} bytes, {growth} more for {LONG}"
        );
    }
}

/// Instructions of the backend for one request.
fn instructions(kind: &str, bytes: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=request_probe::measured::*")
        .arg("--toggle-collect=*Job>::run")
        .arg(env!("CARGO_BIN_EXE_request-probe"))
        .args([REQUESTS.to_string(), kind.to_owned(), bytes.to_string()])
        .output()
        .expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{kind} of {bytes}: {said}");
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.unwrap_or_else(|| panic!("valgrind says no number: {said}"));
    let number: u64 = number.trim().parse().expect("a number of instructions");
    number / REQUESTS
}
