//! docs/dependencies.md has a row for each library of the root Cargo.toml, with its version and licence, and no other row.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::workspace::Workspace;

pub(super) fn breaches(workspace: &Workspace) -> Result<Vec<String>> {
    let read = |name: &str| {
        fs::read_to_string(workspace.root.join(name)).with_context(|| format!("cannot read {name}"))
    };
    let wanted = libraries(&read("Cargo.toml")?)?;
    let document = read("docs/dependencies.md")?;
    let rows = rows(&document);

    let mut breaches = differences(&wanted, &rows);
    let libraries = workspace.libraries();
    for (name, row) in &rows {
        // Another package may bring an older version of the same library, with another licence.
        let licences: Vec<&str> = libraries
            .iter()
            .filter(|package| package.name == *name)
            .filter_map(|package| package.license.as_deref())
            .collect();
        if !licences.is_empty() && !licences.contains(&row.licence) {
            breaches.push(format!(
                "docs/dependencies.md: the licence of {name} is {}, not {}",
                licences.join(" or "),
                row.licence
            ));
        }
    }
    let used: BTreeSet<&str> = workspace
        .members()
        .iter()
        .flat_map(|package| &package.dependencies)
        .map(|dependency| dependency.name.as_str())
        .collect();
    let unused = wanted.keys().filter(|name| !used.contains(name.as_str()));
    breaches.extend(unused.map(|name| format!("Cargo.toml: no crate uses {name}")));
    Ok(breaches)
}

/// What a row says of a library.
struct Row<'a> {
    version: &'a str,
    licence: &'a str,
}

/// Name and version of each `[workspace.dependencies]` that comes from the registry.
fn libraries(manifest: &str) -> Result<BTreeMap<String, String>> {
    let manifest: Table = manifest.parse().context("Cargo.toml")?;
    let table = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("dependencies"))
        .and_then(Value::as_table)
        .context("Cargo.toml has no [workspace.dependencies]")?;
    let version = |value: &Value| {
        value
            .as_str()
            .or_else(|| value.get("version")?.as_str())
            .map(str::to_owned)
    };
    Ok(table
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), version(value)?)))
        .collect())
}

/// The rows of the table, which look like "| `name` | version | licence | why |".
fn rows(document: &str) -> BTreeMap<&str, Row<'_>> {
    document.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<(&str, Row<'_>)> {
    let mut cells = line.strip_prefix("| `")?.split(" | ");
    let name = cells.next()?.strip_suffix('`')?;
    let (version, licence) = (cells.next()?, cells.next()?);
    Some((name, Row { version, licence }))
}

fn differences(wanted: &BTreeMap<String, String>, rows: &BTreeMap<&str, Row<'_>>) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, version) in wanted {
        match rows.get(name.as_str()) {
            None => differences.push(format!("docs/dependencies.md has no row for {name}")),
            Some(row) if row.version != version => {
                differences.push(format!(
                    "docs/dependencies.md: {name} is {version} in Cargo.toml, not {}",
                    row.version
                ));
            }
            Some(_) => {}
        }
    }
    let gone = rows.keys().filter(|name| !wanted.contains_key(**name));
    differences.extend(gone.map(|name| {
        format!("docs/dependencies.md has a row for {name}, which is not in Cargo.toml")
    }));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        [workspace.dependencies]
        backend = { path = "backend" }
        slab = "0.4.12"
        clap = { version = "4.6.7", features = ["derive"] }
    "#;

    fn found(document: &str) -> Vec<String> {
        differences(&libraries(MANIFEST).expect("a manifest"), &rows(document))
    }

    #[test]
    fn a_row_each_is_in_order() {
        assert_eq!(
            found("| `slab` | 0.4.12 | MIT | table |\n| `clap` | 4.6.7 | MIT | command line |\n"),
            [""; 0]
        );
    }

    #[test]
    fn a_missing_a_stale_and_an_old_row_are_named() {
        assert_eq!(
            found("| `slab` | 0.4.11 | MIT | table |\n| `nix` | 0.31 | MIT | calls |\n"),
            [
                "docs/dependencies.md has no row for clap",
                "docs/dependencies.md: slab is 0.4.12 in Cargo.toml, not 0.4.11",
                "docs/dependencies.md has a row for nix, which is not in Cargo.toml",
            ]
        );
    }
}
