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
    for command in ["demo", "backend", "frontend", "attach", "detach", "hosted"] {
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
fn the_platform_that_was_named_and_is_not_there_is_status_1() {
    let (code, words) = outcome(&["--platform", "xen", "backend"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("/dev/xen"), "{words}");
    let (code, words) = outcome(&["--platform", "hosted:no/such/machine", "backend"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("no/such/machine"), "{words}");
    assert!(words.contains("is its broker running"), "{words}");
}
