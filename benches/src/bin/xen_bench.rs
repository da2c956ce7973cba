//! The steps of [`benches::xen`] as a program, for the laboratory of tests/xen. The answer on standard
//! output: seconds, and what all operations together asked of the other side.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use benches::xen::{self, Reads};
use xen_types::DomId;

const USAGE: &str = "\
usage: xen-bench serve-mmio DOMID DISK     in dom0: DISK as a virtio-mmio disk of a PVH guest, until a signal
       xen-bench mmio-bring-up COUNT       in that guest, whose kernel was started with memmap=4M$180M
       xen-bench mmio-read BYTES STRIDE DEPTH COUNT
       xen-bench connect COUNT             in any guest: its bus 0, from XenStore to the list of devices
       xen-bench bring-up COUNT            device 0 of that bus, with one queue
       xen-bench message COUNT             a message and its answer";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xen-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> anyhow::Result<()> {
    let cost = match arguments {
        ["serve-mmio", guest, disk] => {
            return xen::serve_mmio(DomId(number(guest)?), Path::new(disk));
        }
        ["mmio-bring-up", count] => xen::mmio_bring_ups(number(count)?)?,
        ["mmio-read", bytes, stride, depth, count] => xen::mmio_reads(Reads {
            bytes: number(bytes)?,
            stride: number(stride)?,
            depth: number(depth)?,
            count: number(count)?,
        })?,
        ["connect", count] => xen::bus_connections(number(count)?)?,
        ["bring-up", count] => xen::bus_bring_ups(number(count)?)?,
        ["message", count] => xen::bus_messages(number(count)?)?,
        _ => bail!("{USAGE}"),
    };
    println!("{} {}", cost.time.as_secs_f64(), cost.asked);
    Ok(())
}

fn number<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    text: &str,
) -> anyhow::Result<T> {
    text.parse().with_context(|| format!("'{text}'"))
}
