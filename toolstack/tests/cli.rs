//! `vmsg` as a person types it on a machine without Xen: what it says, and its exit status.

use std::process::{Command, Output};

fn vmsg(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmsg"))
        .args(args)
        .output()
        .unwrap()
}

/// Exit status, and standard error.
fn outcome(args: &[&str]) -> (Option<i32>, String) {
    let output = vmsg(args);
    let words = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), words)
}

#[test]
fn help_names_every_command() {
    let output = vmsg(&["--help"]);
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for command in [
        "demo", "backend", "frontend", "attach", "detach", "resize", "hosted", "bench",
    ] {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
        assert!(vmsg(&[command, "--help"]).status.success(), "{command}");
    }
}

#[test]
fn wrong_usage_is_status_2() {
    for args in [
        &[][..],
        &["no-such-command"],
        &["attach"],
        &["attach", "guest"],
        &["detach", "guest", "one"],
        &["--platform", "vmware", "backend"],
        &["frontend", "blk", "copy", "0"],
        &["hosted"],
        &["bench", "no_such_benchmark"],
    ] {
        let (code, words) = outcome(args);
        assert_eq!(code, Some(2), "{args:?}: {words}");
    }
}

#[test]
fn no_xen_and_no_platform_is_status_2_and_says_what_to_do() {
    for args in [
        &["backend"][..],
        &["frontend", "list"],
        &["attach", "guest", "type=blk,path=/x"],
        &["detach", "guest", "0"],
    ] {
        let (code, words) = outcome(args);
        assert_eq!(code, Some(2), "{args:?}: {words}");
        for word in ["vmsg: ", "/dev/xen/evtchn", "vmsg hosted DIR", "vmsg demo"] {
            assert!(words.contains(word), "{args:?}: {words}");
        }
    }
}

#[test]
fn programs_are_told_of_the_end_in_json_whatever_is_logged() {
    for filter in ["info", "off"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmsg"));
        command.args([
            "--log",
            "json",
            "--platform",
            "hosted:no/such/machine",
            "backend",
        ]);
        let output = command.env("RUST_LOG", filter).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let words = String::from_utf8(output.stderr).unwrap();
        let last: serde_json::Value = serde_json::from_str(words.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "ERROR");
        let message = last["fields"]["message"].as_str().unwrap();
        assert!(message.contains("no/such/machine"), "{message}");
    }
}

#[test]
fn the_platform_that_was_named_and_is_not_there_is_status_1() {
    let (code, words) = outcome(&["--platform", "xen", "backend"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("/dev/xen"), "{words}");
    let (code, words) = outcome(&["--platform", "hosted:no/such/machine", "backend"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("no/such/machine"), "{words}");
    assert!(words.contains("is its broker running"), "{words}");
}

#[test]
fn a_command_that_makes_its_own_machine_takes_no_platform() {
    let dir = tempfile::tempdir().unwrap();
    let machine = dir.path().join("machine");
    let machine = machine.to_str().unwrap();
    for args in [
        &["--platform", "xen", "demo"][..],
        &["demo", "--platform", "hosted:somewhere"],
        &["--platform", "hosted:somewhere", "hosted", machine],
    ] {
        let (code, words) = outcome(args);
        assert_eq!(code, Some(2), "{args:?}: {words}");
        assert!(words.contains("takes no --platform"), "{words}");
    }
}

#[test]
fn a_machine_has_up_to_511_guests_and_says_so() {
    let help = vmsg(&["hosted", "--help"]).stdout;
    let most = hosted::MAX_GUESTS.to_string();
    assert!(String::from_utf8(help).unwrap().contains(&most));
    let dir = tempfile::tempdir().unwrap();
    let machine = dir.path().join("machine");
    let (code, words) = outcome(&["hosted", machine.to_str().unwrap(), "--guests=512"]);
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("511"), "{words}");
    assert!(!machine.exists(), "early");
}

#[test]
fn what_programs_read_of_a_demo_is_json_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    std::fs::write(&disk, [7; 64 << 10]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vmsg"))
        .args(["--log=json", "demo", "--json", "--disk"])
        .arg(&disk)
        .env("RUST_LOG", "info")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verified"], true);
    // No progress bar either: this is no terminal.
    let logs = String::from_utf8(output.stderr).unwrap();
    let messages: Vec<String> = logs
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect(line);
            line["fields"]["message"].to_string()
        })
        .collect();
    assert!(
        messages
            .iter()
            .any(|message| message.contains("backend is ready")),
        "{messages:?}"
    );
}

#[test]
fn the_unit_starts_what_there_is() {
    let unit = include_str!("../systemd/vmsg-backend.service");
    let command = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .unwrap();
    let mut args: Vec<&str> = command.split_whitespace().skip(1).collect();
    args.push("--help");
    let output = vmsg(&args);
    assert!(output.status.success(), "{output:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.starts_with("Serve devices to guests"), "{help}");
}

#[test]
fn bench_writes_an_array_of_figures_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("figures.json");
    let output = vmsg(&[
        "bench",
        "--quick",
        "--json",
        file.to_str().unwrap(),
        "notify",
    ]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{words}");
    assert!(words.starts_with("notify (1 of 1)\n"), "{words}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.starts_with("name"), "{table}");

    let text = std::fs::read_to_string(file).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = rows.as_array().unwrap();
    // Four depths: sends of the guest, sends of the backend, grant calls.
    assert_eq!(rows.len(), 12);
    for row in rows {
        let row = row.as_object().unwrap();
        let keys: Vec<_> = row.keys().map(String::as_str).collect();
        assert_eq!(keys, ["high", "low", "met", "name", "target", "value"]);
        // Counted, not timed: true on any machine.
        assert_eq!(row["met"], true, "{row:?}");
        assert!(table.contains(row["name"].as_str().unwrap()), "{table}");
    }
}
