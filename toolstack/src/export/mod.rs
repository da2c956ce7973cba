//! `vmsg frontend blk export`: serves a disk of the guest to NBD clients on this machine.

mod client;
mod schedule;
mod server;
mod socket;

use std::os::unix::net::UnixStream;

use frontend_shim::{Disk, Frontend};
use signal_hook::low_level;

use server::Server;
use socket::Socket;

use crate::interrupt::SIGNALS;

pub(crate) use socket::Address;

/// Serves until Ctrl-C, or until the device goes.
pub(crate) fn serve(
    frontend: &mut Frontend,
    disk: &mut Disk,
    address: &Address,
) -> anyhow::Result<()> {
    let stop = stop_signals()?;
    let socket = Socket::listen(address)?;
    crate::output::print(format_args!("ready: {address}"))?;
    eprintln!("Now, in another terminal: qemu-img info '{address}'");
    Server::new(frontend, disk).run(socket.listener(), &stop)
}

/// Readable after SIGINT or SIGTERM.
fn stop_signals() -> std::io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    for signal in SIGNALS {
        low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(receiver)
}
