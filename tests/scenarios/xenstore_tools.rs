//! Debian's XenStore tools (package `xenstore-utils`, with its libxenstore) on the hosted store,
//! unchanged: as dom0, and as a guest that may do little.
//!
//! Skipped, loudly, where they are not installed.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use tests::Machine;
use xen_hal::hosted::layout;
use xen_types::DomId;
use xenstore::{Client, StoreError, Tree as _};

const GUEST: DomId = DomId(1);

/// The tools, and a machine with one guest; `None` where there are no tools.
struct Tools {
    machine: Machine,
}

impl Tools {
    fn find() -> Option<Self> {
        if Command::new("xenstore-exists")
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!(
                "SKIPPED: xenstore-ls and its like are not here. Do: apt-get install xenstore-utils"
            );
            return None;
        }
        let machine = Machine::start();
        assert_eq!(machine.create_domain("guest1"), GUEST);
        Some(Self { machine })
    }

    fn command(&self, domid: DomId, tool: &str, args: &[&str]) -> Command {
        let mut command = Command::new(format!("xenstore-{tool}"));
        command
            .args(args)
            .env(
                "XENSTORED_PATH",
                layout::store_socket(self.machine.dir(), domid),
            )
            .stdin(Stdio::null());
        command
    }

    fn run(&self, domid: DomId, tool: &str, args: &[&str]) -> Output {
        self.command(domid, tool, args).output().unwrap()
    }

    /// Standard output of a tool that must succeed.
    #[track_caller]
    fn says(&self, domid: DomId, tool: &str, args: &[&str]) -> String {
        let output = self.run(domid, tool, args);
        assert!(output.status.success(), "{tool} {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn dom0(&self, tool: &str, args: &[&str]) -> String {
        self.says(DomId::DOM0, tool, args)
    }

    /// Standard error of a tool that must fail.
    #[track_caller]
    fn refused(&self, domid: DomId, tool: &str, args: &[&str]) -> String {
        let output = self.run(domid, tool, args);
        assert_eq!(output.status.code(), Some(1), "{tool} {args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn store(&self, domid: DomId) -> Client {
        self.machine.store(domid)
    }
}

#[test]
fn what_is_written_can_be_read_listed_removed_and_missed() {
    let Some(tools) = Tools::find() else { return };
    tools.dom0("write", &["/a/b", "1", "/a/c", "2"]);
    assert_eq!(tools.dom0("read", &["/a/b", "/a/c"]), "1\n2\n");
    assert_eq!(tools.dom0("read", &["-p", "/a/b"]), "/a/b: 1\n");
    assert_eq!(tools.dom0("list", &["/a"]), "b\nc\n");
    tools.dom0("exists", &["/a/b"]);
    tools.dom0("rm", &["/a/b"]);
    tools.refused(DomId::DOM0, "exists", &["/a/b"]);
    assert!(
        tools
            .refused(DomId::DOM0, "read", &["/a/b"])
            .contains("/a/b")
    );
    // -t: removes what is empty above, too.
    tools.dom0("rm", &["-t", "/a/c"]);
    tools.refused(DomId::DOM0, "exists", &["/a"]);
}

#[test]
fn permissions_are_set_and_shown() {
    let Some(tools) = Tools::find() else { return };
    tools.dom0("write", &["/p/q", "1"]);
    tools.dom0("chmod", &["/p/q", "n0", "r1", "b2"]);
    assert_eq!(
        tools.dom0("ls", &["-fp", "/p"]),
        "/p/q = \"1\"   (n0,r1,b2)\n"
    );
    assert_eq!(
        tools.dom0("ls", &["-p", "/p"]).split_whitespace().last(),
        Some("(n0,r1,b2)")
    );
    tools.dom0("write", &["/p/q/r", "2"]);
    assert_eq!(
        tools.dom0("ls", &["-fp", "/p/q"]),
        "/p/q/r = \"2\"   (n0,r1,b2)\n",
        "inherited"
    );
    tools.dom0("chmod", &["-r", "/p", "w0", "r1"]);
    assert_eq!(
        tools.dom0("ls", &["-fp", "/p"]),
        "/p/q = \"1\"   (w0,r1)\n/p/q/r = \"2\"   (w0,r1)\n"
    );
    tools.dom0("chmod", &["-u", "/p/q/r", "b0"]);
    assert_eq!(
        tools.dom0("ls", &["-fp", "/p"]),
        "/p/q = \"1\"   (b0)\n/p/q/r = \"2\"   (b0)\n",
        "-u walks up"
    );
}

/// With the permissions that libxl gives, in the form that the tool prints on Xen.
#[test]
fn a_guests_directory_looks_as_on_xen() {
    let Some(tools) = Tools::find() else { return };
    assert_eq!(
        tools.dom0("ls", &["-fp", "/local/domain/1/control"]),
        "/local/domain/1/control/platform-feature-multiprocessor-suspend = \"1\"   (n0,r1)\n\
         /local/domain/1/control/shutdown = \"\"   (n1)\n\
         /local/domain/1/control/feature-poweroff = \"\"   (n1)\n\
         /local/domain/1/control/feature-reboot = \"\"   (n1)\n\
         /local/domain/1/control/feature-suspend = \"\"   (n1)\n\
         /local/domain/1/control/sysrq = \"\"   (n1)\n"
    );
}

#[test]
fn every_byte_of_a_value_survives() {
    let Some(tools) = Tools::find() else { return };
    tools.dom0("write", &["/bin", r"\x00\x01\x7f\xff\\\n"]);
    let value = tools.store(DomId::DOM0).read("/bin").unwrap();
    assert_eq!(value, b"\0\x01\x7f\xff\\\n");
    assert_eq!(
        tools.dom0("read", &["/bin"]),
        "\\000\\001\\x7f\\xff\\\\\\n\n"
    );
    let raw = tools.run(DomId::DOM0, "read", &["-R", "/bin"]);
    assert_eq!(raw.stdout, value);
    let all: Vec<u8> = (0..=255).collect();
    tools.store(DomId::DOM0).write("/bin", &all).unwrap();
    assert_eq!(tools.run(DomId::DOM0, "read", &["-R", "/bin"]).stdout, all);
}

/// More names than fit into a message: libxenstore asks for them in parts.
#[test]
fn a_store_of_thousands_of_nodes_is_shown_whole() {
    let Some(tools) = Tools::find() else { return };
    let mut store = tools.store(DomId::DOM0);
    let mut expected = Vec::new();
    for number in 0..3000 {
        let path = format!("/many/with-a-long-name-{number}");
        store.write(&path, number.to_string()).unwrap();
        expected.push(format!("{path} = \"{number}\""));
    }
    let shown = tools.dom0("ls", &["-f"]);
    let shown: Vec<&str> = shown
        .lines()
        .filter(|line| line.starts_with("/many/"))
        .collect();
    assert_eq!(shown, expected);
    assert_eq!(tools.dom0("list", &["/many"]).lines().count(), 3000);
    tools.dom0("rm", &["/many"]);
    tools.refused(DomId::DOM0, "exists", &["/many"]);
}

/// A running `xenstore-watch`, ended with the test.
struct Watching {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watching {
    fn start(tools: &Tools, domid: DomId, paths: &[&str]) -> Self {
        let mut child = tools
            .command(domid, "watch", paths)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "it ended");
        line.trim_end().to_owned()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watches_fire_for_nodes_and_for_domains_that_come_and_go() {
    let Some(tools) = Tools::find() else { return };
    let paths = ["/a", "@introduceDomain", "@releaseDomain"];
    let mut watch = Watching::start(&tools, DomId::DOM0, &paths);
    for path in paths {
        assert_eq!(watch.line(), path, "each watch fires when it is set");
    }
    tools.dom0("write", &["/a/b", "1"]);
    assert_eq!(watch.line(), "/a/b");
    tools.dom0("rm", &["/a"]);
    assert_eq!(watch.line(), "/a");
    let guest = tools.machine.create_domain("guest2");
    assert_eq!(watch.line(), "@introduceDomain");
    tools.machine.hypervisor().destroy_domain(guest).unwrap();
    assert_eq!(watch.line(), "@releaseDomain");
}

#[test]
fn a_guest_reads_its_own_and_is_refused_the_rest() {
    let Some(tools) = Tools::find() else { return };
    let other = tools.machine.create_domain("guest2");
    // Relative paths are those of the guest's own directory.
    assert_eq!(tools.says(GUEST, "read", &["domid"]), "1\n");
    tools.says(GUEST, "write", &["data/mine", "1"]);
    assert_eq!(
        tools.dom0("ls", &["-fp", "/local/domain/1/data"]),
        "/local/domain/1/data/mine = \"1\"   (n1)\n"
    );
    tools.says(GUEST, "chmod", &["data/mine", "n1", "r2"]);
    let mine = "/local/domain/1/data/mine";
    assert_eq!(tools.says(other, "read", &[mine]), "1\n");
    tools.refused(other, "write", &[mine, "2"]);

    let theirs = format!("/local/domain/{other}");
    let refusal = tools.refused(GUEST, "ls", &[&theirs]);
    assert!(refusal.contains("Permission denied"), "{refusal}");
    let refusal = tools.refused(GUEST, "chmod", &["name", "n1"]);
    assert!(refusal.contains("Permission denied"), "{refusal}");
    let name = format!("{theirs}/name");
    for (tool, args) in [
        ("read", &[&*name][..]),
        ("list", &[&theirs]),
        ("exists", &[&name]),
        ("write", &["name", "root"]),
        ("rm", &["name"]),
        ("rm", &[&theirs]),
    ] {
        tools.refused(GUEST, tool, args);
    }
    // The tools keep the reason for themselves; this is what they were answered.
    let mut store = tools.store(GUEST);
    for refusal in [
        store.read(&name).map(drop),
        store.directory(&theirs).map(drop),
        store.write("name", "root"),
        store.rm("name"),
    ] {
        let code = match refusal {
            Err(StoreError::Denied { code, .. }) => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code.to_string(), "EACCES");
    }
    assert_eq!(tools.dom0("read", &["/local/domain/1/name"]), "guest1\n");
}

/// The same probes as were made in a guest on Xen 4.17, with the same answers.
#[test]
fn a_guest_may_write_where_xen_lets_it() {
    let Some(tools) = Tools::find() else { return };
    for directory in ["data", "drivers", "attr", "feature", "error"] {
        tools.says(GUEST, "write", &[&format!("{directory}/probe"), "1"]);
    }
    for path in [
        "probe",
        "device/probe",
        "control/probe",
        "/tool/probe",
        "/local/domain/0/probe",
    ] {
        tools.refused(GUEST, "write", &[path, "1"]);
    }
}

/// The rule since XSA-115: who was not given the right sees no domain come or go.
#[test]
fn a_guest_sees_domains_go_only_if_dom0_lets_it() {
    let Some(tools) = Tools::find() else { return };
    let mut watch = Watching::start(&tools, GUEST, &["@releaseDomain", "data"]);
    assert_eq!(watch.line(), "@releaseDomain");
    assert_eq!(watch.line(), "data");
    let come_and_go = || {
        let domid = tools.machine.create_domain("short");
        tools.machine.hypervisor().destroy_domain(domid).unwrap();
    };
    come_and_go();
    tools.dom0("write", &["/local/domain/1/data/x", "1"]);
    assert_eq!(watch.line(), "data/x", "nothing of the domain before it");
    tools.dom0("chmod", &["@releaseDomain", "n0", "r1"]);
    assert_eq!(
        watch.line(),
        "@releaseDomain",
        "the change of the right itself"
    );
    come_and_go();
    assert_eq!(watch.line(), "@releaseDomain");
}
