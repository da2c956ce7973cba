//! What is measured. Each benchmark is a function that adds rows to a [`Context`].

mod blk;
mod bringup;
mod chain;
mod hostile;
mod msg;
mod notify;
mod policy;
mod scale;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use crate::cpu;
use crate::mmio::Mmio;
use crate::report::{Row, Target, Unit, time};
use crate::rounds::{Pair, Rounds, Side, Spread, Watch};

/// A benchmark: its name, and what it does.
type Bench = (&'static str, fn(&mut Context<'_>) -> anyhow::Result<()>);

/// All of them, in the order of the table.
const SUITE: &[Bench] = &[
    ("msg_rtt", msg::round_trip),
    ("msg_stream", msg::stream),
    ("vq_chain", chain::run),
    ("bringup", bringup::run),
    ("blk_null", blk::null),
    ("blk_read4k", blk::read),
    ("blk_write4k", blk::write),
    ("blk_seq", blk::sequential),
    ("map_policy", policy::run),
    ("notify", notify::run),
    ("scale", scale::run),
    ("hostile", hostile::run),
];

/// The names of all benchmarks.
pub const NAMES: [&str; SUITE.len()] = {
    let mut names = [""; SUITE.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = SUITE[at].0;
        at += 1;
    }
    names
};

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Fewer and shorter rounds: less than a minute in all, instead of less than ten.
    pub quick: bool,
    /// The benchmarks, by name; empty for all.
    pub names: Vec<String>,
    /// The executable `vmsg`, for what is to be measured of a process alone.
    pub vmsg: Option<PathBuf>,
}

impl Options {
    /// Whether the benchmark `name` is to be run, which it is once however often it is named.
    #[must_use]
    pub fn want(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }
}

/// What happens while it runs.
#[derive(Clone, Debug)]
pub enum Progress {
    /// A benchmark begins.
    Begin(&'static str),
    /// It measured something.
    Measured(Row),
    /// It could not measure something; why, and what to do about it.
    Skipped(String),
}

/// Runs the benchmarks, each on a thread that is kept to one processor; all rows.
///
/// # Errors
/// A name that no benchmark has, a failure of either side, or [`crate::Interrupted`] after `stop`
/// was set. Nothing is left behind.
pub fn run(
    options: &Options,
    stop: &AtomicBool,
    tell: &mut (dyn FnMut(Progress) + Send),
) -> anyhow::Result<Vec<Row>> {
    if let Some(unknown) = options
        .names
        .iter()
        .find(|name| !NAMES.contains(&name.as_str()))
    {
        return Err(anyhow!(
            "no benchmark is named {unknown}; there are: {}",
            NAMES.join(", ")
        ));
    }
    let cores = cpu::allowed()?;
    let core = *cores.last().context("no processor")?;
    let rounds = match options.quick {
        true => Rounds {
            count: 7,
            turn: Duration::from_millis(20),
            stop,
        },
        false => Rounds {
            count: 15,
            turn: Duration::from_millis(100),
            stop,
        },
    };
    let mut context = Context {
        rounds,
        quick: options.quick,
        vmsg: options.vmsg.clone(),
        other_core: cores.iter().rev().nth(1).copied(),
        rows: Vec::new(),
        tell,
    };
    for (name, bench) in SUITE {
        if !options.want(name) {
            continue;
        }
        (context.tell)(Progress::Begin(name));
        let context = &mut context;
        let done = thread::scope(|scope| {
            let thread = scope.spawn(move || {
                cpu::pin(core)?;
                bench(context)
            });
            thread.join()
        });
        done.map_err(|_| anyhow!("it panicked"))
            .flatten()
            .with_context(|| format!("benchmark {name}"))?;
    }
    Ok(context.rows)
}

/// What a benchmark has.
struct Context<'a> {
    rounds: Rounds<'a>,
    quick: bool,
    vmsg: Option<PathBuf>,
    /// Another processor than the one that the benchmark's thread is kept to.
    other_core: Option<usize>,
    rows: Vec<Row>,
    tell: &'a mut (dyn FnMut(Progress) + Send),
}

impl Context<'_> {
    fn add(&mut self, row: Row) {
        (self.tell)(Progress::Measured(row.clone()));
        self.rows.push(row);
    }

    /// Adds to the detail of the last row.
    fn note(&mut self, what: &str) {
        if let Some(row) = self.rows.last_mut() {
            row.detail = format!("{}; {what}", row.detail);
        }
    }

    /// What a trap costs the peer, for the detail of the rows that were measured beside it.
    fn trap(&self, mmio: &mut Mmio) -> anyhow::Result<String> {
        let trap = self.rounds.alone(&mut |count| {
            let watch = Watch::start();
            for _ in 0..count {
                mmio.trap()?;
            }
            Ok(watch.took())
        })?;
        Ok(format!("one emulated trap {}", time(trap.median)))
    }

    /// Bytes of a disk image: enough that no processor's cache holds it.
    fn image_bytes(&self) -> u64 {
        match self.quick {
            true => 128 << 20,
            false => 512 << 20,
        }
    }

    fn skip(&mut self, why: String) {
        (self.tell)(Progress::Skipped(why));
    }

    /// Measures our time in units of the peer's.
    fn time(
        &mut self,
        name: impl Into<String>,
        peer: &str,
        target: Option<Target>,
        ours: &mut Side<'_>,
        theirs: &mut Side<'_>,
    ) -> anyhow::Result<Pair> {
        let pair = self.rounds.pair(ours, theirs)?;
        self.add(ratio(name, pair.time, pair.wall, &pair, peer, target));
        Ok(pair)
    }

    /// Measures our operations per second in units of the peer's.
    fn rate(
        &mut self,
        name: impl Into<String>,
        peer: &str,
        target: Option<Target>,
        ours: &mut Side<'_>,
        theirs: &mut Side<'_>,
    ) -> anyhow::Result<Pair> {
        let pair = self.rounds.pair(ours, theirs)?;
        let wall = pair.wall.map(Spread::inverse);
        self.add(ratio(name, pair.time.inverse(), wall, &pair, peer, target));
        Ok(pair)
    }
}

fn ratio(
    name: impl Into<String>,
    spread: Spread,
    wall: Option<Spread>,
    pair: &Pair,
    peer: &str,
    target: Option<Target>,
) -> Row {
    let (ours, theirs) = (time(pair.ours.median), time(pair.peer.median));
    let mut detail = format!("{ours}, peer {theirs}");
    if let Some(wall) = wall {
        detail += &format!(", wall {:.2} x", wall.median);
    }
    let row = Row::new(name, Unit::Times, spread)
        .peer(peer)
        .detail(detail);
    match target {
        Some(target) => row.target(target),
        None => row,
    }
}
