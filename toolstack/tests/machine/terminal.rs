//! What only a person at a terminal gets: colours, unless NO_COLOR is set, and progress bars.
//!
//! `script` of util-linux, which every Debian has, is the terminal.

use std::process::{Command, Stdio};

use xen_types::DomId;

use crate::rig::{GUEST, Machine};

/// What the terminal of a command shows.
fn shown(command: &Command, environment: &[(&str, &str)]) -> String {
    let words = [command.get_program()]
        .into_iter()
        .chain(command.get_args());
    let line: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let output = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &line.join(" "),
            "/dev/null",
        ])
        .env_remove("RUST_LOG")
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_whose_owner_wants_them() {
    let machine = Machine::start(1);
    let doctor = machine.command(DomId::DOM0, &["doctor"]);
    let green = "\x1b[32mok";
    assert!(shown(&doctor, &[]).contains(green));
    assert!(shown(&doctor, &[("NO_COLOR", "")]).contains(green));
    assert!(!shown(&doctor, &[("NO_COLOR", "1")]).contains('\x1b'));
}

#[test]
fn progress_is_for_terminals() {
    let machine = Machine::start(1);
    let _backend = machine.start_backend();
    let disk = machine.disk("disk.img", &[0; 64 << 10]);
    let config = format!("type=blk,path={}", disk.display());
    machine.dom0(&["attach", "guest1", &config]).succeeded();
    let copy = machine.file("copy.img");
    let copy = ["frontend", "blk", "copy", "0", copy.to_str().unwrap()];
    let seen = shown(&machine.command(GUEST, &copy), &[]);
    let (bar, figures) = seen.rsplit_once("\x1b[2K").expect("a bar that goes");
    assert!(
        bar.contains("reading") && bar.contains("[====="),
        "{seen:?}"
    );
    assert!(figures.starts_with("65536 bytes in "), "{seen:?}");
    let piped = machine.vmsg(GUEST, &copy);
    assert_eq!(piped.succeeded().stderr, "");
}
