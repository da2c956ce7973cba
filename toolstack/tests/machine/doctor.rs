//! `vmsg doctor`: its exit status, and what it tells programs.

use std::process::Command;

use xen_types::DomId;

use crate::rig::{GUEST, Machine};

#[test]
fn a_hosted_machine_is_healthy_for_dom0_and_for_a_guest() {
    let machine = Machine::start(1);
    for domid in [DomId::DOM0, GUEST] {
        let report = machine.vmsg(domid, &["doctor", "--json"]).json();
        assert_eq!(report["ok"], true, "{report}");
        let found = report["checks"][1]["found"].as_str().unwrap();
        assert_eq!(found, format!("answers; this is domain {domid}"));
    }
    let none = machine.dom0(&["doctor"]);
    assert!(
        none.succeeded()
            .stdout
            .contains("-> vmsg --platform hosted:")
    );
    let _backend = machine.start_backend();
    let text = machine.dom0(&["doctor"]);
    assert!(text.succeeded().stdout.starts_with("ok    platform"));
    assert!(text.stdout.contains("serves 0 buses"), "{text:?}");
    assert!(!text.stdout.contains('\x1b'), "coloured into a pipe");
}

#[test]
fn a_guest_is_told_of_its_own_buses_and_nothing_of_a_backend() {
    let machine = Machine::start(1);
    let checks = || {
        let report = machine.vmsg(GUEST, &["doctor", "--json"]).json();
        report["checks"].as_array().unwrap().clone()
    };
    let names = |checks: &[serde_json::Value]| -> Vec<_> {
        let name = |check: &serde_json::Value| check["check"].as_str().unwrap().to_owned();
        checks.iter().map(name).collect()
    };
    for bus in ["--bus=0", "--bus=5"] {
        machine.dom0(&["attach", "1", bus, "type=rng"]).succeeded();
    }
    let before = checks();
    assert_eq!(names(&before), ["platform", "xenstore", "bus", "bus"]);
    let advice = format!(
        "vmsg --platform hosted:{},0 backend",
        machine.dir().display()
    );
    for bus in &before[2..] {
        assert_eq!(bus["verdict"], "warn");
        assert_eq!(bus["advice"], advice);
    }
    let _backend = machine.start_backend();
    for bus in [0, 5] {
        let state = format!("/local/domain/0/backend/virtio-msg/1/{bus}/state");
        machine.wait_for(&state, |state| state == Some("2"));
    }
    let after = checks();
    assert!(
        after.iter().all(|check| check["verdict"] == "ok"),
        "{after:?}"
    );
    assert!(
        after[3]["found"]
            .as_str()
            .unwrap()
            .starts_with("bus 5 of domain 0")
    );
    // A bus that was used and left is as well as one that never was.
    machine.vmsg(GUEST, &["frontend", "list"]).succeeded();
    let left = checks();
    let all_ok = left.iter().all(|check| check["verdict"] == "ok");
    assert!(all_ok, "{left:?}");
}

#[test]
fn a_machine_that_does_not_run_fails_with_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vmsg"))
        .args(["doctor", "--json", "--platform"])
        .arg(format!("hosted:{}", dir.path().display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let advice = report["checks"][0]["advice"].as_str().unwrap();
    assert!(advice.contains("vmsg hosted DIR"), "{advice}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors, "vmsg: 1 of 1 checks failed\n");
}

#[test]
fn a_machine_without_xen_is_pointed_at_the_demo() {
    if std::path::Path::new("/dev/xen").exists() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_vmsg"))
        .arg("doctor")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("FAIL  platform") && text.contains("vmsg demo"),
        "{text}"
    );
}
