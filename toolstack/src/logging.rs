//! Logs on standard error, for people or for programs.

use std::fmt;

use tracing_subscriber::EnvFilter;

use crate::output;

/// How logs look.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// A line a person can read.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

/// Says why the program ends, whatever `RUST_LOG` is: to people behind the program's name, to
/// programs as one record more.
pub(crate) fn last_words(format: Format, error: &anyhow::Error) {
    match format {
        Format::Human => eprintln!("vmsg: {error:#}"),
        Format::Json => {
            let unfiltered = tracing_subscriber::fmt()
                .json()
                .with_writer(std::io::stderr)
                .finish();
            tracing::subscriber::with_default(unfiltered, || tracing::error!("{error:#}"));
        }
    }
}

/// Starts logging; `RUST_LOG` says how much, or else `level`.
pub(crate) fn start(format: Format, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        Format::Json => builder.json().init(),
        Format::Human => {
            let colour = output::may_colour(&std::io::stderr());
            builder.with_ansi(colour).with_target(false).init();
        }
    }
}
