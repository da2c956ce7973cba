//! `vmsg frontend blk export`: serves a disk of the guest to NBD clients on this machine.

mod client;
mod schedule;
mod server;
mod socket;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use frontend_shim::{Disk, Frontend};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use server::Server;
use socket::Socket;

pub(crate) use socket::Address;

/// Exit status of a second Ctrl-C.
const INTERRUPTED: i32 = 130;

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

/// Readable after SIGINT or SIGTERM. A second one ends the process at once: the first may wait for
/// a backend that does not let go.
fn stop_signals() -> std::io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    let before = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, INTERRUPTED, before.clone())?;
        flag::register(signal, before.clone())?;
        low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(receiver)
}
