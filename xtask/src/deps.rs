//! `cargo xtask deps`: the rules about who may depend on what.

mod arrows;
mod documented;
mod licences;
mod unsafety;

use std::process::ExitCode;

use anyhow::Result;

use crate::workspace::Workspace;

/// Prints the arrows and every breach of a rule.
pub(crate) fn check(workspace: &Workspace) -> Result<ExitCode> {
    let members = workspace.members();
    print!("{}", arrows::table(&members));

    let mut breaches = arrows::breaches(&members);
    breaches.extend(unsafety::breaches(&members)?);
    breaches.extend(licences::breaches(workspace)?);
    breaches.extend(documented::breaches(workspace)?);

    if breaches.is_empty() {
        println!("\narrows, unsafe, licences and docs/dependencies.md: all in order");
        return Ok(ExitCode::SUCCESS);
    }
    for breach in &breaches {
        eprintln!("error: {breach}");
    }
    Ok(ExitCode::FAILURE)
}
