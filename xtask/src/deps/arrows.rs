//! The dependency arrows of ARCHITECTURE.md: which crate of the workspace may use which.
//!
//! Only normal dependencies count; tests may look at anything.

use crate::workspace::Package;

/// What a crate may use of the workspace.
enum May {
    Use(&'static [&'static str]),
    UseAllBut(&'static [&'static str]),
}

/// From the bottom up.
const ARROWS: &[(&str, May)] = &[
    ("xen-types", May::Use(&[])),
    ("guest-memory", May::Use(&[])),
    ("virtio-msg", May::Use(&[])),
    ("nbd", May::Use(&[])),
    ("xenstore", May::Use(&["xen-types"])),
    ("xen-hal", May::Use(&["guest-memory", "xen-types"])),
    ("virtqueue", May::Use(&["guest-memory"])),
    (
        "virtio-devices",
        May::Use(&["guest-memory", "virtio-msg", "virtqueue"]),
    ),
    (
        "xen-bus",
        May::Use(&["guest-memory", "virtio-msg", "xen-types"]),
    ),
    ("hosted", May::Use(&["xen-hal", "xen-types", "xenstore"])),
    (
        "backend",
        May::Use(&[
            "guest-memory",
            "virtio-devices",
            "virtio-msg",
            "virtqueue",
            "xen-bus",
            "xen-hal",
            "xen-types",
            "xenstore",
        ]),
    ),
    (
        "frontend-shim",
        May::Use(&[
            "guest-memory",
            "virtio-msg",
            "virtqueue",
            "xen-bus",
            "xen-hal",
            "xen-types",
            "xenstore",
        ]),
    ),
    (
        "foreign-drivers",
        May::Use(&["frontend-shim", "guest-memory", "virtio-msg"]),
    ),
    (
        "instructions",
        May::Use(&[
            "frontend-shim",
            "guest-memory",
            "tests",
            "virtio-devices",
            "virtqueue",
            "xen-bus",
            "xen-types",
        ]),
    ),
    ("benches", May::UseAllBut(&["vmsg"])),
    (
        "vmsg",
        May::Use(&[
            "backend",
            "benches",
            "frontend-shim",
            "hosted",
            "nbd",
            "xen-bus",
            "xen-hal",
            "xen-types",
            "xenstore",
        ]),
    ),
    ("tests", May::UseAllBut(&[])),
    ("xtask", May::Use(&[])),
];

/// A line for each crate: what it uses of the workspace.
pub(super) fn table(members: &[&Package]) -> String {
    let mut table = format!("{:<16}uses\n", "crate");
    for package in members {
        let used = used(package, members);
        let used = if used.is_empty() {
            "-".into()
        } else {
            used.join(" ")
        };
        table += &format!("{:<16}{used}\n", package.name);
    }
    table
}

pub(super) fn breaches(members: &[&Package]) -> Vec<String> {
    let mut breaches = Vec::new();
    for package in members {
        let Some((_, may)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            breaches.push(format!(
                "{}: a new crate; say in xtask/src/deps/arrows.rs what it may use",
                package.name
            ));
            continue;
        };
        for used in used(package, members) {
            let allowed = match may {
                May::Use(list) => list.contains(&used),
                May::UseAllBut(list) => !list.contains(&used),
            };
            if !allowed {
                breaches.push(format!(
                    "wrong arrow: {} must not use {used} (ARCHITECTURE.md)",
                    package.name
                ));
            }
        }
    }
    breaches
}

/// The members that `package` uses when it is built.
fn used<'a>(package: &'a Package, members: &[&Package]) -> Vec<&'a str> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
        .map(|dependency| dependency.name.as_str())
        .filter(|name| members.iter().any(|member| member.name == *name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, uses: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.into(),
            version: "0.1.0".into(),
            license: None,
            source: None,
            dependencies: uses
                .iter()
                .map(|(name, kind)| Dependency {
                    name: (*name).into(),
                    kind: kind.map(Into::into),
                })
                .collect(),
            targets: Vec::new(),
        }
    }

    #[test]
    fn an_arrow_upwards_is_named() {
        let low = package("xen-types", &[("xen-hal", None)]);
        let high = package("xen-hal", &[("xen-types", None), ("libc", None)]);
        assert_eq!(
            breaches(&[&low, &high]),
            ["wrong arrow: xen-types must not use xen-hal (ARCHITECTURE.md)"]
        );
    }

    #[test]
    fn a_build_dependency_is_an_arrow_and_a_dev_dependency_is_none() {
        let build = package("xenstore", &[("hosted", Some("build"))]);
        let dev = package("virtqueue", &[("hosted", Some("dev"))]);
        let hosted = package("hosted", &[]);
        assert_eq!(
            breaches(&[&build, &dev, &hosted]),
            ["wrong arrow: xenstore must not use hosted (ARCHITECTURE.md)"]
        );
    }

    #[test]
    fn a_crate_without_a_rule_is_reported() {
        let unknown = package("helpers", &[]);
        assert_eq!(breaches(&[&unknown]).len(), 1);
    }

    #[test]
    fn benches_may_use_all_but_the_toolstack() {
        let benches = package("benches", &[("backend", None), ("vmsg", None)]);
        let (backend, vmsg) = (package("backend", &[]), package("vmsg", &[]));
        assert_eq!(
            breaches(&[&benches, &backend, &vmsg]),
            ["wrong arrow: benches must not use vmsg (ARCHITECTURE.md)"]
        );
    }
}
