//! The log as `vmsg backend` writes it for people, without the time, kept to be looked at.

use std::io::{self, Write};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// Stands for anything in a line that is looked for.
pub(crate) const ANY: &str = "…";

/// What this thread logs, from level INFO up.
pub(crate) struct Log {
    text: Text,
    _guard: DefaultGuard,
}

/// The lines, also after the log has ended.
#[derive(Clone, Default)]
pub(crate) struct Text(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn start() -> Self {
        let text = Text::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(text.clone())
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .finish();
        Self {
            text,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }
}

impl Deref for Log {
    type Target = Text;

    fn deref(&self) -> &Text {
        &self.text
    }
}

impl Text {
    /// Every line so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// Bytes of memory that the lines take.
    pub(crate) fn held(&self) -> i64 {
        i64::try_from(self.0.lock().unwrap().capacity()).unwrap()
    }

    /// The last line that looks like `wanted`.
    #[track_caller]
    pub(crate) fn line(&self, wanted: &str) -> String {
        let lines = self.lines();
        let found = lines.iter().rfind(|line| looks_like(line, wanted));
        found
            .unwrap_or_else(|| panic!("no line {wanted:?} in {lines:#?}"))
            .clone()
    }

    /// Nothing is said that somebody should look after.
    #[track_caller]
    pub(crate) fn assert_quiet(&self) {
        let mut lines = self.lines();
        lines.retain(|line| !line.starts_with("INFO"));
        assert_eq!(lines, [""; 0]);
    }
}

/// Whether the whole line is `wanted`, in which [`ANY`] stands for anything.
fn looks_like(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split(ANY);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Text {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn a_line_is_found_by_its_parts_in_order() {
    for (wanted, found) in [
        ("a b c", true),
        ("a b", false),
        ("b c", false),
        ("a … c", true),
        ("… c", true),
        ("a …", true),
        ("…", true),
        ("a … b … c", false),
        ("…b…", true),
        ("c … a", false),
    ] {
        assert_eq!(looks_like("a b c", wanted), found, "{wanted:?}");
    }
}
