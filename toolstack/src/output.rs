//! Standard output: data, and nothing else. Logs, progress and advice go to standard error.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write as _};

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

/// Prints text and a line feed. A reader that has seen enough, as of `vmsg list | head -1`, is no
/// error.
pub(crate) fn print(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a JSON document for programs.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(serde_json::to_string_pretty(value)?)?)
}

/// Columns without lines between them, as `xl list` prints, so that awk can read them.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| printable(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Whether a stream may be coloured: it is a terminal, and nobody objects (no-color.org).
pub(crate) fn may_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What others wrote into XenStore must not command the terminal; an empty cell shows as `-`, so
/// that columns can be counted.
fn printable(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    text.chars()
        .map(|char| if char.is_control() { '?' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_their_header_without_blanks_at_the_end() {
        let rows = vec![
            ["1".to_owned(), "a name".to_owned()],
            ["12".to_owned(), String::new()],
        ];
        assert_eq!(table(["ID", "NAME"], rows), "ID  NAME\n1   a name\n12  -");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let rows = vec![["a\u{1b}[2Jb\nc".to_owned()]];
        assert_eq!(table(["X"], rows), "X\na?[2Jb?c");
    }
}
