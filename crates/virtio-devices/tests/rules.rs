//! Each rule of the fact sheet's section 8 (rings and block device) has a test that bears its
//! number: `r07_…`, or `…_r32_…` where the name begins with what the test needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

///
const RULES: u32 = 40;

/// Where the tests of rings and devices are.
const PLACES: [&str; 2] = ["", "../virtqueue"];

/// Counts the tests of each rule in a source file.
fn count(source: &str, found: &mut BTreeMap<u32, usize>) {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        match line.strip_prefix("fn ") {
            Some(name) if is_test => {
                for rule in rules_of(name) {
                    *found.entry(rule).or_default() += 1;
                }
                is_test = false;
            }
            Some(_) => is_test = false,
            None => is_test |= line == "#[test]",
        }
    }
}

fn rules_of(function: &str) -> impl Iterator<Item = u32> {
    let name = function.split('(').next().unwrap_or_default();
    name.split('_').filter_map(|word| {
        let digits = word.strip_prefix('r')?;
        (digits.len() == 2).then(|| digits.parse().ok()).flatten()
    })
}

fn walk(folder: &Path, found: &mut BTreeMap<u32, usize>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            count(&fs::read_to_string(&path).unwrap(), found);
        }
    }
}

#[test]
fn every_rule_has_a_test_that_bears_its_number() {
    let mut found = BTreeMap::new();
    for place in PLACES {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
        for folder in ["src", "tests"] {
            walk(&root.join(folder), &mut found);
        }
    }
    let missing: Vec<_> = (1..=RULES).filter(|n| !found.contains_key(n)).collect();
    assert!(missing.is_empty(), "no test for R-{missing:02?}");
    let unknown: Vec<_> = found.keys().filter(|n| !(1..=RULES).contains(*n)).collect();
    assert!(unknown.is_empty(), "no such rules: R-{unknown:02?}");
}

#[test]
fn only_tests_are_counted_and_only_by_whole_words() {
    let mut found = BTreeMap::new();
    let source = "
        fn r01_a_helper() {}
        #[test]
        #[ignore = \"why\"]
        fn r23_r24_both() {}
        #[test]
        fn disk_r32_(rig: Rig) {}
        #[test]
        fn r133_bar12_r5() {}
    ";
    count(source, &mut found);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), [23, 24, 32]);
}
