//! `vmsg frontend rng`: random bytes from an entropy device of the bus.

use std::io::{self, ErrorKind, Write};

use frontend_shim::{Frontend, RNG_REQUEST, Rng};
use xen_hal::PlatformSpec;

use crate::frontend::{connect, leave};
use crate::interrupt::Interrupt;

/// Bytes of a line in hexadecimal.
const HEX_LINE: usize = 32;

/// Use an entropy device.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Write random bytes of a device to standard output.
    #[command(after_help = "Examples:
  vmsg frontend rng read 1 --hex
  vmsg frontend rng read 1 --bytes 512 >/dev/urandom    into the pool of this domain's kernel")]
    Read {
        /// Device number.
        #[arg(value_name = "DEV")]
        device: u16,
        /// How many.
        #[arg(long, value_name = "N", default_value_t = 32)]
        bytes: u64,
        /// In hexadecimal, for people.
        #[arg(long)]
        hex: bool,
        /// The bus.
        #[arg(long, value_name = "HANDLE", default_value_t = 0)]
        bus: u32,
    },
}

pub(crate) fn run(spec: &PlatformSpec, command: &Command) -> anyhow::Result<()> {
    let Command::Read {
        device,
        bytes,
        hex,
        bus,
    } = *command;
    let mut frontend = connect(spec, bus, false)?;
    let result = on_rng(&mut frontend, device, bytes, hex);
    // In order also after a failure: the backend is to let go of this process's memory.
    let left = leave(frontend);
    result?;
    left
}

/// Brings a device up, reads from it, and resets it, also after a failure or Ctrl-C.
fn on_rng(frontend: &mut Frontend, device: u16, bytes: u64, hex: bool) -> anyhow::Result<()> {
    let interrupt = Interrupt::catch()?;
    let mut rng = Rng::open(frontend, device)?;
    let result = read(frontend, &mut rng, bytes, hex, &interrupt);
    let closed = rng.close(frontend);
    result?;
    Ok(closed?)
}

fn read(
    frontend: &mut Frontend,
    rng: &mut Rng,
    mut left: u64,
    hex: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let mut buffer = [0; RNG_REQUEST];
    while left > 0 {
        interrupt.check()?;
        let wanted = usize::try_from(left).map_or(RNG_REQUEST, |left| left.min(RNG_REQUEST));
        // A device may give less than it is asked for: a line in hexadecimal stays a line.
        let mut len = 0;
        while len < wanted {
            len += rng.read(frontend, &mut buffer[len..wanted])?;
        }
        let data = &buffer[..len];
        let written = if hex {
            write_hex(&mut out, data)
        } else {
            out.write_all(data)
        };
        match written.and_then(|()| out.flush()) {
            // A reader that has seen enough, as `head -c`, is no error.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
        left -= len as u64;
    }
    Ok(())
}

fn write_hex(out: &mut impl Write, data: &[u8]) -> io::Result<()> {
    for line in data.chunks(HEX_LINE) {
        for byte in line {
            write!(out, "{byte:02x}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
