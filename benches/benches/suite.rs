//! `cargo bench`: the suite as `vmsg bench --quick --markdown` runs it; `cargo bench -- NAME...`
//! runs some of it.

use std::sync::atomic::AtomicBool;

use benches::{Conditions, NAMES, Options, Progress};

fn main() -> anyhow::Result<()> {
    // cargo adds --bench.
    let names = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let options = Options {
        quick: true,
        names: names.collect(),
        vmsg: None,
    };
    let before = Conditions::now();
    let rows = benches::run(
        &options,
        &AtomicBool::new(false),
        &mut |event| match event {
            Progress::Begin(name) => eprintln!("{name} of {}", NAMES.len()),
            Progress::Measured(row) => eprintln!("  {}", row.cells().join("  ")),
            Progress::Skipped(why) => eprintln!("  SKIPPED: {why}"),
        },
    )?;
    print!("{}", benches::markdown(&rows, &before, &Conditions::now()));
    Ok(())
}
