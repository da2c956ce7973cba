//! docs/security.md says of each row what the row itself says: its `//!` has a paragraph for each
//! column, and the line that the user sees is the constant `LINE` that its tests look for. A row
//! whose tests see to it that nothing is said has a paragraph for that. So the document cannot say
//! what is not tested, and no row is missing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The classes of bugs that hurt Xen's own backends, and what stands for those that have no row.
const CLASSES: [(&str, &str); 13] = [
    ("double fetch", ""),
    ("index and length arithmetic", ""),
    ("grant mappings: errors ignored, leaks", ""),
    ("use after free on rapid reconnection", ""),
    ("unbounded memory or log for a guest", ""),
    ("event storms", ""),
    ("locking and dead-locks in error paths", ""),
    ("information leaks", ""),
    ("a malicious backend", "the rows against a hostile backend"),
    ("XenStore", ""),
    ("malformed payload handed to the host", ""),
    (
        "races in the hypervisor",
        "out of scope; grants of version 1 alone are used",
    ),
    ("a fix that opens the next hole", "every row stays"),
];
/// Files that are no rows.
const OTHERS: [&str; 1] = ["main"];

fn hostile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("hostile")
}

/// The source of every row, by its name.
fn sources() -> BTreeMap<String, String> {
    let entries = fs::read_dir(hostile()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let rows = paths.filter(|path| path.extension().is_some_and(|name| name == "rs"));
    rows.map(|path| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    })
    .filter(|(name, _)| !OTHERS.contains(&name.as_str()))
    .collect()
}

/// The paragraph of the row's `//!` that begins with `title`, in one line.
fn paragraph(name: &str, source: &str, title: &str) -> String {
    let docs: Vec<&str> = source
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.trim_start_matches("//!").trim())
        .collect();
    let text = docs
        .split(|line| line.is_empty())
        .map(|lines| lines.join(" "))
        .find_map(|text| text.strip_prefix(title).map(|text| text.trim().to_owned()));
    text.unwrap_or_else(|| panic!("{name}.rs has no paragraph {title:?}"))
}

/// The text of the constant that the tests look for.
fn line(source: &str) -> Option<String> {
    let (_, rest) = source.split_once("const LINE: &str =")?;
    let (_, rest) = rest.split_once('"')?;
    let (text, _) = rest.split_once("\";")?;
    Some(format!("`{text}`"))
}

/// The row of the document.
fn row(name: &str, source: &str) -> String {
    let seen = line(source).unwrap_or_else(|| {
        let silent = ["assert_quiet()", "withstands("];
        assert!(
            silent.iter().any(|check| source.contains(check)),
            "{name}.rs"
        );
        paragraph(name, source, "Line:")
    });
    let cell = |title| paragraph(name, source, title);
    format!(
        "| [{name}](../tests/hostile/{name}.rs) | {} | {} | {seen} | {} |",
        cell("Attack:"),
        cell("Outcome:"),
        cell("Class:")
    )
}

#[test]
fn the_document_has_exactly_the_rows_that_are_tested() {
    let sources = sources().into_iter();
    let rows = sources.map(|(name, source)| row(&name, &source));
    assert_table("rows", &rows.collect::<Vec<_>>());
}

#[test]
fn the_document_says_which_rows_cover_a_class() {
    let sources = sources();
    let rows = (1..).zip(CLASSES).map(|(number, (class, instead))| {
        let covers = |(name, source): (&String, &String)| {
            let classes = paragraph(name, source, "Class:");
            let mut numbers = classes.split(", ").filter_map(|part| part.split_once(" ("));
            let number = number.to_string();
            let covered = numbers.any(|(found, _)| found == number);
            covered.then(|| format!("[{name}](../tests/hostile/{name}.rs)"))
        };
        let rows: Vec<_> = sources.iter().filter_map(covers).collect();
        assert_eq!(rows.is_empty(), !instead.is_empty(), "class {number}");
        let rows = format!("{}{instead}", rows.join(", "));
        format!("| {number} | {class} | {rows} |")
    });
    assert_table("classes", &rows.collect::<Vec<_>>());
}

/// The table between the marks `name` of the document has these rows.
#[track_caller]
fn assert_table(name: &str, expected: &[String]) {
    let document = fs::read_to_string(hostile().join("../../docs/security.md")).unwrap();
    let begin = format!("<!-- {name}: begin -->");
    let (_, rest) = document.split_once(&begin).expect(&begin);
    let end = format!("<!-- {name}: end -->");
    let (table, _) = rest.split_once(&end).expect(&end);
    // Behind the header and the rule under it.
    let found: Vec<&str> = table.trim().lines().skip(2).collect();
    assert!(
        found == expected,
        "docs/security.md has not these {name} between its marks:\n{}",
        expected.join("\n")
    );
}

#[test]
fn every_row_is_run() {
    let main = fs::read_to_string(hostile().join("main.rs")).unwrap();
    for (name, source) in sources() {
        assert!(main.contains(&format!("\nmod {name};")), "{name}.rs");
        assert!(source.contains("#[test]"), "{name}.rs");
    }
}

#[test]
fn the_document_links_to_files_that_exist() {
    let docs = hostile().join("../../docs");
    let document = fs::read_to_string(docs.join("security.md")).unwrap();
    let links = document.split("](").skip(1);
    for link in links.filter_map(|rest| rest.split(')').next()) {
        let path = link.split('#').next().unwrap_or_default();
        assert!(path.is_empty() || docs.join(path).exists(), "{link}");
    }
}
