//! The tables of the published document, by the comment in front of each, and the forms of a cell.

/// The document.
pub(crate) const TEXT: &str = include_str!("../../../../docs/xen-bus-binding.md");

/// The rows of the table behind `<!-- checked: name -->`, cell by cell, without backticks.
pub(crate) fn table(name: &str) -> Vec<Vec<String>> {
    let marker = format!("<!-- checked: {name} -->\n");
    let (_, rest) = TEXT
        .split_once(&marker)
        .unwrap_or_else(|| panic!("the document has no table of {name}"));
    let rows: Vec<_> = rest
        .lines()
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect();
    assert!(!rows.is_empty(), "the table of {name} is empty");
    rows
}

pub(crate) fn row_of<'a>(rows: &'a [Vec<String>], column: usize, name: &str) -> &'a [String] {
    rows.iter()
        .find(|row| row[column] == name)
        .unwrap_or_else(|| panic!("no row of {name}"))
}

pub(crate) fn ring_row(field: &str) -> u64 {
    number(&row_of(&table("ring"), 1, field)[0])
}

pub(crate) fn slots() -> Vec<(u32, u32, u32)> {
    let row = |row: Vec<String>| {
        let numbers: Vec<_> = row.iter().map(|cell| number32(cell)).collect();
        let sizes = (0..).zip(numbers[1..].to_vec());
        sizes.map(move |(order, slots)| (numbers[0], order, slots))
    };
    table("slots").into_iter().flat_map(row).collect()
}

/// (new, old, at, NEED)
pub(crate) fn need_vectors() -> Vec<(u32, u32, u32, bool)> {
    let row = |row: &Vec<String>| {
        let need = match row[3].as_str() {
            "1" => true,
            "0" => false,
            other => panic!("{other}"),
        };
        (
            number32(&row[0]),
            number32(&row[1]),
            number32(&row[2]),
            need,
        )
    };
    table("need").iter().map(row).collect()
}

pub(crate) fn number(text: &str) -> u64 {
    let digits = text.replace([',', '_'], "");
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    }
    .unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

pub(crate) fn number32(text: &str) -> u32 {
    number(text).try_into().unwrap()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .collect();
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
        .collect()
}
