//! `vmsg bench`: the benchmark suite, and what it found as a table, as JSON or for the documentation.

use std::fs::{self, File, Permissions};
use std::io::{self, IsTerminal as _, Write as _, stderr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use benches::{Conditions, Interrupted, Progress, Row};
use clap::builder::PossibleValuesParser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use tempfile::NamedTempFile;

use crate::{output, progress};

/// Measure the bus beside its peers, on this machine, without Xen.
///
/// Each figure is a ratio to a peer that did the same work by turns in the same process, or a
/// count that the platform kept. Takes some minutes; --quick less than one. A target that is
/// missed is no failure. docs/performance.md says what the figures mean.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The benchmarks [default: all].
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(benches::NAMES))]
    names: Vec<String>,
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Write the figures for programs into FILE; `-` is standard output, instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the table as docs/performance.md has it.
    #[arg(long)]
    markdown: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&stop))?;
    }
    // Made first: a name that cannot be written is better known before than after.
    let to_stdout = options
        .json
        .as_ref()
        .is_some_and(|path| path.as_os_str() == "-");
    let json = match &options.json {
        Some(path) if !to_stdout => {
            let json = JsonFile::open(path).with_context(|| path.display().to_string())?;
            Some((json, path))
        }
        _ => None,
    };
    let wanted = benches::Options {
        quick: options.quick,
        names: options.names.clone(),
        vmsg: Some(std::env::current_exe()?),
    };
    let before = Conditions::now();
    let rows = measure(&wanted, &stop).map_err(|error| match stop.load(Ordering::Relaxed) {
        // What an interruption broke is not worth a message of its own.
        true => Interrupted.into(),
        false => error,
    })?;
    let after = Conditions::now();
    if let Some((json, path)) = json {
        json.write(&rows)
            .with_context(|| path.display().to_string())?;
    }
    if to_stdout {
        output::print_json(&rows)
    } else if options.markdown {
        let table = benches::markdown(&rows, &before, &after);
        Ok(output::print(table.trim_end())?)
    } else {
        let cells = rows.iter().map(Row::cells).collect();
        Ok(output::print(output::table(Row::HEADER, cells))?)
    }
}

/// Measures, and shows how far it is: by a bar on a terminal, line by line elsewhere.
fn measure(options: &benches::Options, stop: &AtomicBool) -> anyhow::Result<Vec<Row>> {
    let wanted = benches::NAMES.iter().filter(|name| options.want(name));
    let total = wanted.count();
    let bar = progress::steps(total as u64);
    let visible = stderr().is_terminal();
    let measured = benches::run(options, stop, &mut |event| match event {
        Progress::Begin(name) => {
            bar.set_message(name);
            bar.inc(1);
            if !visible {
                eprintln!("{name} ({} of {total})", bar.position());
            }
        }
        Progress::Measured(_) if visible => bar.tick(),
        Progress::Measured(row) => eprintln!("  {}", row.cells().join("  ").trim_end()),
        Progress::Skipped(why) => bar.suspend(|| eprintln!("SKIPPED: {why}")),
    });
    bar.finish_and_clear();
    measured
}

/// Where the figures go: what was there stays until there are new ones.
enum JsonFile {
    /// A file beside it, which takes its name at the end.
    Beside(NamedTempFile, PathBuf),
    /// A pipe or a device, which nothing can take the name of.
    Special(File),
}

impl JsonFile {
    fn open(path: &Path) -> io::Result<Self> {
        let mut path = path.to_owned();
        if fs::exists(&path)? {
            let there = File::options().write(true).open(&path)?;
            if !there.metadata()?.is_file() {
                return Ok(Self::Special(there));
            }
            // Of a symbolic link, what it leads to is replaced.
            path = path.canonicalize()?;
        }
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".vmsg-bench-")
            // As of any new file, less what the umask takes.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)?;
        Ok(Self::Beside(file, path))
    }

    fn write(self, rows: &[Row]) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(rows)?;
        text.push(b'\n');
        match self {
            Self::Beside(mut file, path) => {
                file.write_all(&text)?;
                file.persist(path)?;
            }
            Self::Special(mut file) => file.write_all(&text)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_result_stays_until_there_is_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        fs::write(&path, "old").unwrap();
        drop(JsonFile::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        JsonFile::open(&path).unwrap().write(&[]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[]\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_said_before_anything_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        assert!(JsonFile::open(dir.path()).is_err());
        assert!(JsonFile::open(&dir.path().join("missing/result.json")).is_err());
    }

    #[test]
    fn a_device_is_written_and_not_replaced() {
        let null = Path::new("/dev/null");
        assert!(matches!(JsonFile::open(null), Ok(JsonFile::Special(_))));
    }
}
