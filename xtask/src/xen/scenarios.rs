//! What scenarios there are: the folders of tests/xen/scenarios, as the first lines of their dom0.sh describe them.

use std::fs;

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// A scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its folder's name.
    pub(crate) name: String,
    /// What it shows: the first line.
    pub(crate) about: String,
    /// Whether CI runs it: the second line is `# ci`.
    pub(crate) ci: bool,
}

/// All of them, by name.
pub(super) fn all(workspace: &Workspace) -> Result<Vec<Scenario>> {
    let folder = workspace.root.join("tests/xen/scenarios");
    let mut scenarios = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let script = entry.path().join("dom0.sh");
        let text = fs::read_to_string(&script)
            .with_context(|| format!("cannot read {}", script.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        scenarios
            .push(parse(name, &text).with_context(|| {
                format!("the first line of {} is no comment", script.display())
            })?);
    }
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scenarios)
}

fn parse(name: String, text: &str) -> Option<Scenario> {
    let mut lines = text.lines();
    let about = lines.next()?.strip_prefix("# ")?.to_owned();
    let ci = lines.next() == Some("# ci");
    Some(Scenario { name, about, ci })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_describe_a_scenario() {
        let scenario = parse("main".into(), "# A disk\n# ci\n\nfail\n").expect("a scenario");
        assert_eq!((scenario.about.as_str(), scenario.ci), ("A disk", true));
        assert!(!parse("main".into(), "# A disk\n\n# ci\n").expect("one").ci);
        assert!(parse("main".into(), "fail\n").is_none());
    }
}
