//! What to make of the facts. The numbers are those of the binding, sections 2, 4 and 10, and of
//! the measurements that it cites.

use std::io;

use backend::{EngineChoice, Gauges};
use xen_bus::areas::PAGES_PER_TURN;
use xen_bus::keys::DEFAULT_MAX_AREA_PAGES;
use xen_hal::PlatformSpec;
use xen_types::DomId;

use super::facts::{Device, Process, Store, Xen};
use super::{Check, Verdict};
use crate::driver_domain::{DEFAULT_QUOTA, Usage};

/// Pages that a user-space frontend grants for a bus: an area of 512, its directory, a ring of
/// order 2 (section 4).
const PAGES_PER_BUS: u64 = 512 + 1 + 4;
/// Entries of Xen's maptrack table at its default of 1,024 frames.
const MAPTRACK_ENTRIES: u64 = 1024 * 256;
/// Descriptors of a bus with one disk: lock, disk, completions.
const DESCRIPTORS_PER_BUS: u64 = 3;
/// Descriptors that a service should have; what a login shell gets at the least.
const DESCRIPTORS: u64 = 1024;
/// References of a domain at Xen's default of 64 frames, which hold 512 each.
const GRANT_REFERENCES: u64 = 64 * 512;

/// What this domain can be, which decides what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It serves devices.
    Dom0,
    /// It serves devices too, and this is what it uses of its quota for them.
    DriverDomain(Usage),
    /// It uses devices.
    Guest,
}

impl Role {
    pub(super) fn of(is_control_domain: bool, store: Option<&Store>) -> Self {
        match store {
            _ if is_control_domain => Self::Dom0,
            Some(store) if store.own == DomId::DOM0 => Self::Dom0,
            Some(Store {
                serving: Some(usage),
                ..
            }) => Self::DriverDomain(*usage),
            _ => Self::Guest,
        }
    }
}

/// The checks of a Xen domain, or of a machine that is none.
pub(super) fn xen(
    xen: &Xen,
    process: &Process,
    store: &Result<Store, String>,
    role: Role,
) -> Vec<Check> {
    if !xen.present {
        return vec![fail(
            "platform",
            "this machine is no Xen domain: there is no /dev/xen, and /sys/hypervisor/type is not xen",
            "`vmsg demo` shows the bus at work without Xen; `vmsg hosted DIR` runs a machine for the other commands",
        )];
    }
    let mut checks = vec![platform(xen, role), user(process)];
    let (backend, frontend) = match role {
        Role::Dom0 | Role::DriverDomain(_) => {
            (Need::Yes, Need::No("only a frontend would need it here"))
        }
        Role::Guest => (Need::No("only a driver domain needs it"), Need::Yes),
    };
    checks.push(device("evtchn", &xen.evtchn, Need::Yes));
    checks.push(device("gntdev", &xen.gntdev, backend));
    checks.push(device("gntalloc", &xen.gntalloc, frontend));
    // Dom0 has the daemon's socket as well.
    let xenbus = match role {
        Role::Dom0 => Need::No("dom0 uses the socket of xenstored"),
        Role::DriverDomain(_) | Role::Guest => Need::Yes,
    };
    checks.push(device("xenbus", &xen.xenbus, xenbus));
    checks.push(xenstore(store, role));
    checks.extend(xen.gntalloc_limit.map(gntalloc_limit));
    checks.extend(xen.gntdev_limit.map(gntdev_limit));
    if role == Role::Guest {
        checks.push(grant_frames());
    } else {
        checks.push(maptrack(xen));
        checks.push(descriptors(process));
    }
    checks.extend(quota(role));
    if role != Role::Guest {
        let is_pv_domain = !matches!(xen.guest_type.as_deref(), Some("PVH" | "HVM"));
        checks.push(engine(&EngineChoice::of_this_machine(is_pv_domain)));
    }
    checks
}

/// The checks of a hosted machine.
pub(super) fn hosted(
    spec: &PlatformSpec,
    broker: &Result<(), String>,
    store: &Result<Store, String>,
    process: &Process,
) -> Vec<Check> {
    let mut checks = Vec::new();
    match broker {
        Ok(()) => checks.push(ok("platform", format!("{spec}: the broker answers"))),
        Err(error) => {
            checks.push(fail(
                "platform",
                error,
                "`vmsg hosted DIR` runs such a machine; it must go on running",
            ));
            return checks;
        }
    }
    checks.push(match store {
        Ok(store) => ok("xenstore", format!("answers; this is domain {}", store.own)),
        Err(error) => fail("xenstore", error, "is the machine being shut down?"),
    });
    let role = Role::of(false, store.as_ref().ok());
    if role != Role::Guest {
        checks.push(descriptors(process));
        checks.extend(quota(role));
        checks.push(engine(&EngineChoice::of_this_machine(false)));
    }
    checks
}

/// Whether a backend runs in this domain, as it answers for itself.
pub(super) fn backend(
    spec: &PlatformSpec,
    own: DomId,
    gauges: &io::Result<Option<Gauges>>,
) -> Check {
    match gauges {
        Ok(Some(gauges)) => ok(
            "backend",
            format!(
                "process {} serves {} buses",
                gauges.pid,
                gauges.instances.len()
            ),
        ),
        Ok(None) => {
            let start = match spec {
                PlatformSpec::Xen => "vmsg backend".to_owned(),
                PlatformSpec::Hosted { .. } => typed(spec, own, "backend"),
            };
            warn("backend", "none runs in this domain", start)
        }
        Err(error) => warn(
            "backend",
            format!("it does not answer: {error}"),
            "`vmsg list` shows whether the guests are connected all the same",
        ),
    }
}

/// Whether a device is needed, or why not.
#[derive(Clone, Copy)]
enum Need {
    Yes,
    No(&'static str),
}

fn platform(xen: &Xen, role: Role) -> Check {
    let kind = xen.guest_type.as_deref().unwrap_or("PV?");
    let role = match role {
        Role::Dom0 => "dom0",
        Role::DriverDomain(_) => "driver domain",
        Role::Guest => "guest",
    };
    ok("platform", format!("Xen {}, {kind} {role}", xen.version))
}

fn user(process: &Process) -> Check {
    if process.is_root {
        ok("user", "root")
    } else {
        fail(
            "user",
            "not root: the devices of /dev/xen and XenStore are root's",
            "sudo vmsg doctor",
        )
    }
}

fn device(name: &'static str, device: &Device, need: Need) -> Check {
    let node = format!("/dev/xen/{name}");
    match (device, need) {
        (Device::Usable, _) => ok(name, format!("{node} can be opened")),
        (Device::Missing { .. }, Need::No(why)) => ok(name, format!("{node} is missing; {why}")),
        (Device::Missing { module_loaded }, Need::Yes) => fail(
            name,
            format!("{node} is missing"),
            if name == "xenbus" {
                "the kernel needs CONFIG_XEN and its XenStore device; mount devtmpfs on /dev".into()
            } else if *module_loaded {
                format!(
                    "the module xen-{name} is there, its node is not: mount devtmpfs on /dev, or start udev"
                )
            } else {
                format!("modprobe xen-{name}")
            },
        ),
        (Device::Denied, _) => fail(name, format!("no permission to open {node}"), "run as root"),
        (Device::Broken(error), _) => fail(
            name,
            format!("{node}: {error}"),
            "dmesg | grep -i xen may say why",
        ),
    }
}

fn xenstore(store: &Result<Store, String>, role: Role) -> Check {
    match (store, role) {
        (Ok(store), _) => ok("xenstore", format!("answers; this is domain {}", store.own)),
        (Err(error), Role::Dom0) => {
            fail("xenstore", error, "systemctl start xenstored xen-init-dom0")
        }
        (Err(error), Role::DriverDomain(_) | Role::Guest) => fail(
            "xenstore",
            error,
            "in dom0: `xl list` and `xenstore-ls /local/domain` should show this domain",
        ),
    }
}

fn gntalloc_limit(limit: u64) -> Check {
    let buses = limit / PAGES_PER_BUS;
    let found = format!(
        "gntalloc grants {limit} pages in all: {buses} buses of a user-space frontend ({PAGES_PER_BUS} pages each)"
    );
    let advice = "echo 4096 > /sys/module/xen_gntalloc/parameters/limit";
    if buses == 0 {
        warn("grants", found, advice)
    } else {
        ok("grants", found)
    }
}

fn gntdev_limit(limit: u64) -> Check {
    let found = format!("gntdev maps {limit} pages in one call");
    if limit < u64::from(PAGES_PER_TURN) {
        fail(
            "mappings",
            format!("{found}: the backend maps up to {PAGES_PER_TURN}"),
            "echo 65536 > /sys/module/xen_gntdev/parameters/limit",
        )
    } else {
        ok("mappings", found)
    }
}

/// Xen does not tell a domain what it was given, so this is what the default comes to.
fn maptrack(xen: &Xen) -> Check {
    let is_pv = !matches!(xen.guest_type.as_deref(), Some("PVH" | "HVM"));
    // A PV kernel maps each page twice, and of the 131,072 pages that this makes, 114,688 could be
    // mapped (measured in steps of 16,384).
    let pages = if is_pv {
        MAPTRACK_ENTRIES / 2 / 8 * 7
    } else {
        MAPTRACK_ENTRIES
    };
    let mib = pages * 4 / 1024;
    let buses = pages / u64::from(DEFAULT_MAX_AREA_PAGES);
    ok(
        "maptrack",
        format!(
            "at Xen's default this domain maps {mib} MiB of all guests together: {buses} buses that use their full share; gnttab_max_maptrack_frames= on Xen's command line raises it"
        ),
    )
}

/// A domain is not told this limit either.
fn grant_frames() -> Check {
    ok(
        "frames",
        format!(
            "at Xen's default this domain grants {GRANT_REFERENCES} pages to all others together: {} buses of a user-space frontend; gnttab_max_frames= on Xen's command line or max_grant_frames= in xl.cfg raises it",
            GRANT_REFERENCES / PAGES_PER_BUS
        ),
    )
}

/// What serving needs in XenStore; dom0 has no quota there, and a guest needs little.
fn quota(role: Role) -> Option<Check> {
    let Role::DriverDomain(usage) = role else {
        return None;
    };
    let Usage {
        nodes,
        watches,
        transactions,
    } = DEFAULT_QUOTA;
    let found = format!(
        "what this domain serves needs up to {} nodes, {} watches and {} transaction in XenStore; by default it has {nodes}, {watches} and {transactions}",
        usage.nodes, usage.watches, usage.transactions
    );
    Some(match usage.beyond(&DEFAULT_QUOTA) {
        None => ok("quota", found),
        Some((what, needed, _)) => warn(
            "quota",
            found,
            format!(
                "in dom0: xenstore-control quota set {what} {}",
                needed.next_power_of_two()
            ),
        ),
    })
}

fn descriptors(process: &Process) -> Check {
    let Some(limit) = process.descriptors else {
        return ok("descriptors", "file descriptors are not limited");
    };
    let found = format!(
        "{limit} file descriptors: a backend serves some {} buses with one disk",
        limit / DESCRIPTORS_PER_BUS
    );
    if limit < DESCRIPTORS {
        warn(
            "descriptors",
            found,
            "ulimit -n 65536, or LimitNOFILE=65536 in the unit of the service",
        )
    } else {
        ok("descriptors", found)
    }
}

fn engine(choice: &EngineChoice) -> Check {
    let found = format!("cached data at once (RWF_NOWAIT), what waits by {choice}");
    ok("engine", found)
}

/// What to type for a command of a domain.
pub(super) fn typed(spec: &PlatformSpec, domid: DomId, command: &str) -> String {
    match spec {
        PlatformSpec::Xen => format!("in domain {domid}: vmsg {command}"),
        PlatformSpec::Hosted { dir, .. } => {
            let dir = dir.clone();
            let there = PlatformSpec::Hosted { dir, domid };
            format!("vmsg --platform {there} {command}")
        }
    }
}

pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Check {
    Check {
        check,
        verdict: Verdict::Ok,
        found: found.into(),
        advice: None,
    }
}

pub(super) fn warn(
    check: &'static str,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Check {
    Check {
        check,
        verdict: Verdict::Warn,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        check,
        verdict: Verdict::Fail,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Process = Process {
        is_root: true,
        descriptors: Some(1024),
    };

    fn dom0() -> Xen {
        Xen {
            present: true,
            version: "4.17.7".into(),
            guest_type: Some("PV".into()),
            is_control_domain: true,
            evtchn: Device::Usable,
            gntdev: Device::Usable,
            gntalloc: Device::Missing {
                module_loaded: false,
            },
            xenbus: Device::Usable,
            gntalloc_limit: None,
            gntdev_limit: Some(65_536),
        }
    }

    fn guest() -> Xen {
        Xen {
            guest_type: Some("PVH".into()),
            is_control_domain: false,
            gntdev: Device::Missing {
                module_loaded: false,
            },
            gntalloc: Device::Usable,
            gntalloc_limit: Some(1024),
            gntdev_limit: None,
            ..dom0()
        }
    }

    fn judge(facts: &Xen) -> Vec<Check> {
        let own = DomId(u16::from(!facts.is_control_domain));
        judge_as(facts, Store { own, serving: None })
    }

    fn judge_as(facts: &Xen, store: Store) -> Vec<Check> {
        let role = Role::of(facts.is_control_domain, Some(&store));
        xen(facts, &ROOT, &Ok(store), role)
    }

    fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.check == name).unwrap()
    }

    #[track_caller]
    fn assert_fails(facts: &Xen, name: &str, advice: &str) {
        let checks = judge(facts);
        let failed: Vec<&str> = checks
            .iter()
            .filter(|check| check.verdict == Verdict::Fail)
            .map(|check| check.check)
            .collect();
        assert_eq!(failed, [name]);
        let given = find(&checks, name).advice.as_deref().unwrap();
        assert!(given.contains(advice), "{given}");
    }

    #[test]
    fn a_healthy_dom0_and_a_healthy_guest_pass() {
        for facts in [dom0(), guest()] {
            let checks = judge(&facts);
            let all_ok = checks.iter().all(|check| check.verdict == Verdict::Ok);
            assert!(all_ok, "{checks:#?}");
        }
        assert_eq!(
            find(&judge(&dom0()), "platform").found,
            "Xen 4.17.7, PV dom0"
        );
        assert_eq!(
            find(&judge(&guest()), "platform").found,
            "Xen 4.17.7, PVH guest"
        );
    }

    #[test]
    fn a_driver_domain_needs_what_maps_and_room_in_its_quota() {
        let serving = |buses| Store {
            own: DomId(1),
            serving: Some(Usage::of(buses, buses)),
        };
        let without = judge_as(&guest(), serving(2));
        assert_eq!(
            find(&without, "platform").found,
            "Xen 4.17.7, PVH driver domain"
        );
        assert_eq!(find(&without, "gntdev").verdict, Verdict::Fail);
        let facts = Xen {
            gntdev: Device::Usable,
            gntalloc: Device::Missing {
                module_loaded: false,
            },
            ..guest()
        };
        let checks = judge_as(&facts, serving(2));
        let all_ok = checks.iter().all(|check| check.verdict == Verdict::Ok);
        assert!(all_ok, "{checks:#?}");
        let check = find(&checks, "quota");
        assert!(check.found.contains("44 nodes, 4 watches"), "{check:?}");
        let checks = judge_as(&facts, serving(46));
        let check = find(&checks, "quota");
        assert_eq!(check.verdict, Verdict::Warn);
        let advice = "in dom0: xenstore-control quota set nodes 1024";
        assert_eq!(check.advice.as_deref(), Some(advice));
    }

    #[test]
    fn a_machine_without_xen_is_shown_the_demo() {
        let facts = Xen {
            present: false,
            ..dom0()
        };
        let checks = xen(&facts, &ROOT, &Err("no".into()), Role::Guest);
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].verdict, Verdict::Fail);
        assert!(checks[0].advice.as_ref().unwrap().contains("vmsg demo"));
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_type() {
        let module_loaded = false;
        let missing = Device::Missing { module_loaded };
        let facts = Xen {
            gntdev: missing.clone(),
            ..dom0()
        };
        assert_fails(&facts, "gntdev", "modprobe xen-gntdev");
        let facts = Xen {
            gntalloc: missing.clone(),
            ..guest()
        };
        assert_fails(&facts, "gntalloc", "modprobe xen-gntalloc");
        for facts in [dom0(), guest()] {
            let evtchn = missing.clone();
            assert_fails(&Xen { evtchn, ..facts }, "evtchn", "modprobe xen-evtchn");
        }
        let module_loaded = true;
        let facts = Xen {
            evtchn: Device::Missing { module_loaded },
            ..dom0()
        };
        assert_fails(&facts, "evtchn", "devtmpfs");
        let facts = Xen {
            gntdev: Device::Denied,
            ..dom0()
        };
        assert_fails(&facts, "gntdev", "root");
        let facts = Xen {
            gntdev_limit: Some(u64::from(PAGES_PER_TURN) - 1),
            ..dom0()
        };
        assert_fails(&facts, "mappings", "echo 65536");
    }

    #[test]
    fn a_store_that_does_not_answer_fails_with_the_reason() {
        let store = Err("cannot connect".to_owned());
        let checks = xen(&dom0(), &ROOT, &store, Role::Dom0);
        let check = find(&checks, "xenstore");
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(check.found, "cannot connect");
        assert!(check.advice.as_ref().unwrap().contains("xenstored"));
    }

    #[test]
    fn limits_are_told_in_buses() {
        let grants = |limit| gntalloc_limit(limit).verdict;
        assert_eq!(grants(PAGES_PER_BUS - 1), Verdict::Warn);
        assert_eq!(grants(PAGES_PER_BUS), Verdict::Ok);
        let pv = find(&judge(&dom0()), "maptrack").found.clone();
        assert!(pv.contains("448 MiB") && pv.contains("28 buses"), "{pv}");
        let few = Process {
            is_root: true,
            descriptors: Some(256),
        };
        assert_eq!(descriptors(&few).verdict, Verdict::Warn);
        assert_eq!(descriptors(&ROOT).verdict, Verdict::Ok);
    }

    #[test]
    fn a_backend_that_does_not_run_is_no_failure() {
        let check = backend(&PlatformSpec::Xen, DomId::DOM0, &Ok(None));
        assert_eq!(check.verdict, Verdict::Warn);
        assert_eq!(check.advice.as_deref(), Some("vmsg backend"));
        let hangs = backend(
            &PlatformSpec::Xen,
            DomId::DOM0,
            &Err(io::ErrorKind::WouldBlock.into()),
        );
        assert!(hangs.found.contains("does not answer"));
        let gauges = Gauges {
            pid: 42,
            ..Gauges::default()
        };
        assert_eq!(
            backend(&PlatformSpec::Xen, DomId::DOM0, &Ok(Some(gauges))).found,
            "process 42 serves 0 buses"
        );
    }

    #[test]
    fn a_user_who_may_not_is_told_so() {
        let nobody = Process {
            is_root: false,
            ..ROOT
        };
        assert_eq!(user(&nobody).verdict, Verdict::Fail);
        let store = Ok(Store {
            own: DomId::DOM0,
            serving: None,
        });
        let spec = "hosted:dir".parse().unwrap();
        let checks = hosted(&spec, &Ok(()), &store, &nobody);
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok));
    }

    #[test]
    fn a_hosted_machine_without_its_broker_fails_at_once() {
        let spec = "hosted:dir".parse().unwrap();
        let checks = hosted(&spec, &Err("nobody".into()), &Err("nobody".into()), &ROOT);
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].verdict, Verdict::Fail);
        assert!(checks[0].advice.as_ref().unwrap().contains("vmsg hosted"));
    }
}
