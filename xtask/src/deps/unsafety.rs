//! Unsafe code stays where it can be read: every other crate forbids it in its first lines, for good.

use std::fs;

use anyhow::{Context, Result};

use crate::workspace::Package;

/// `foreign-drivers` implements an unsafe trait, and no program uses it; `tests` and `benches` play
/// hostile peers and count allocations.
const MAY_BE_UNSAFE: [&str; 5] = [
    "guest-memory",
    "xen-hal",
    "foreign-drivers",
    "tests",
    "benches",
];

const PROMISE: &str = "#![forbid(unsafe_code)]";

pub(super) fn breaches(members: &[&Package]) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    for package in members
        .iter()
        .filter(|package| !MAY_BE_UNSAFE.contains(&package.name.as_str()))
    {
        let roots = package.targets.iter().filter(|target| {
            target
                .kind
                .iter()
                .any(|kind| kind == "lib" || kind == "bin")
        });
        for root in roots {
            let path = root.src_path.display();
            let text = fs::read_to_string(&root.src_path)
                .with_context(|| format!("cannot read {path}"))?;
            if !promises(&text) {
                breaches.push(format!("{path} does not say {PROMISE}"));
            }
        }
    }
    Ok(breaches)
}

fn promises(text: &str) -> bool {
    text.lines().any(|line| line.trim() == PROMISE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commented_out_promise_is_none() {
        assert!(promises("//! A crate.\n\n#![forbid(unsafe_code)]\n"));
        assert!(!promises("//! A crate.\n// #![forbid(unsafe_code)]\n"));
        assert!(!promises("#![deny(unsafe_code)]\n"));
    }
}
