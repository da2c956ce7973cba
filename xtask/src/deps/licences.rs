//! Every package of the build has a licence that `deny.toml` allows.
//!
//! cargo-deny checks the same list, and more; this check is for machines that do not have it.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::workspace::Workspace;

#[derive(Deserialize)]
struct Deny {
    licenses: Allowed,
}

#[derive(Deserialize)]
struct Allowed {
    allow: Vec<String>,
}

pub(super) fn breaches(workspace: &Workspace) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(workspace.root.join("deny.toml")).context("cannot read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("deny.toml")?;

    let mut breaches = Vec::new();
    for package in workspace.members().into_iter().chain(workspace.libraries()) {
        let Some(licence) = &package.license else {
            breaches.push(format!(
                "{} {} names no licence",
                package.name, package.version
            ));
            continue;
        };
        if !satisfied(licence, &deny.licenses.allow)? {
            breaches.push(format!(
                "licence of {} {}: {licence} (deny.toml has the allowed ones)",
                package.name, package.version
            ));
        }
    }
    Ok(breaches)
}

/// Whether the allowed licences suffice for the expression, which may be as loose as the registry takes it ("MIT/Apache-2.0").
fn satisfied(expression: &str, allowed: &[String]) -> Result<bool> {
    let parsed = Expression::parse_mode(expression, ParseMode::LAX)
        .with_context(|| format!("not a licence: {expression}"))?;
    Ok(parsed.evaluate(|required| allowed.contains(&required.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(expression: &str) -> bool {
        satisfied(
            expression,
            &["MIT".into(), "Apache-2.0".into(), "BSD-3-Clause".into()],
        )
        .expect(expression)
    }

    #[test]
    fn one_side_of_or_suffices_and_and_needs_both() {
        assert!(allowed("MIT OR GPL-2.0-only"));
        assert!(allowed("(GPL-3.0-only OR Apache-2.0) AND BSD-3-Clause"));
        assert!(!allowed("MIT AND GPL-2.0-only"));
    }

    #[test]
    fn the_old_slash_means_or() {
        assert!(allowed("MIT/Apache-2.0"));
        assert!(!allowed("GPL-2.0/LGPL-2.1"));
    }

    #[test]
    fn an_exception_is_part_of_the_licence() {
        assert!(!allowed("Apache-2.0 WITH LLVM-exception"));
        assert!(allowed("Apache-2.0 WITH LLVM-exception OR MIT"));
    }
}
