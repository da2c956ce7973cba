//! `/dev/xen/evtchn`: event channels behind one descriptor.
//!
//! A read gives the ports that have an event and masks them; writing ports unmasks them.
//! BIND_INTERDOMAIN and BIND_UNBOUND_PORT return our port as their result. The kernel queues a port
//! once, then masks it; what it has queued of a port that is closed stays queued.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use xen_types::{DomId, EvtchnPort};

use super::sys::{self, BindInterdomain, BindUnbound, Port};
use crate::OpenError;

/// Ports taken from the kernel by one read.
const PORTS_PER_READ: usize = 256;
/// Ports given to the kernel by one write; a session unmasks its only one.
const PORTS_PER_WRITE: usize = 16;

#[derive(Debug)]
pub(crate) struct Evtchn {
    file: File,
    /// Ports that are bound.
    bound: AtomicUsize,
    /// Ports that were closed since the kernel's queue was last found empty.
    closed: AtomicUsize,
}

impl Evtchn {
    pub(crate) fn open() -> Result<Self, OpenError> {
        super::open_device(super::EVTCHN, "xen-evtchn").map(Self::new)
    }

    fn new(file: File) -> Self {
        Self {
            file,
            bound: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
        }
    }

    pub(crate) fn bind_interdomain(
        &self,
        peer: DomId,
        remote: EvtchnPort,
    ) -> io::Result<EvtchnPort> {
        let mut call = BindInterdomain {
            remote_domain: peer.0.into(),
            remote_port: remote.0,
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode.
        let port = unsafe { sys::ioctl(&self.file, sys::EVTCHN_BIND_INTERDOMAIN, argument) }?;
        self.bound.fetch_add(1, Ordering::Relaxed);
        Ok(EvtchnPort(port))
    }

    pub(crate) fn alloc_unbound(&self, peer: DomId) -> io::Result<EvtchnPort> {
        let mut call = BindUnbound {
            remote_domain: peer.0.into(),
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode.
        let port = unsafe { sys::ioctl(&self.file, sys::EVTCHN_BIND_UNBOUND_PORT, argument) }?;
        self.bound.fetch_add(1, Ordering::Relaxed);
        Ok(EvtchnPort(port))
    }

    pub(crate) fn notify(&self, port: EvtchnPort) -> io::Result<()> {
        self.with_port(sys::EVTCHN_NOTIFY, port)
    }

    pub(crate) fn unbind(&self, port: EvtchnPort) -> io::Result<()> {
        self.with_port(sys::EVTCHN_UNBIND, port)?;
        self.closed.fetch_add(1, Ordering::Relaxed);
        self.bound.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn with_port(&self, opcode: u32, port: EvtchnPort) -> io::Result<()> {
        let mut call = Port { port: port.0 };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of NOTIFY and of UNBIND, which are the two opcodes passed here.
        unsafe { sys::ioctl(&self.file, opcode, argument) }?;
        Ok(())
    }

    /// Appends the ports that have an event. `&mut`: nothing is unmasked or closed meanwhile, so no
    /// port is queued twice.
    pub(crate) fn pending(&mut self, out: &mut Vec<EvtchnPort>) -> io::Result<()> {
        let (bound, closed) = (self.bound.get_mut(), self.closed.get_mut());
        let mut buffer = [0; PORTS_PER_READ * size_of::<u32>()];
        // No more can be queued: with the last of them the queue is empty, without another read.
        let mut left = *bound + *closed;
        while left > 0 {
            match (&self.file).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => {
                    let (ports, _) = buffer.get(..len).unwrap_or_default().as_chunks();
                    left = left.saturating_sub(ports.len());
                    out.extend(
                        ports
                            .iter()
                            .map(|port| EvtchnPort(u32::from_ne_bytes(*port))),
                    );
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        *closed = 0;
        Ok(())
    }

    pub(crate) fn unmask(&self, ports: &[EvtchnPort]) -> io::Result<()> {
        // On the path of a request: no allocation.
        let mut buffer = [0; PORTS_PER_WRITE * size_of::<u32>()];
        for ports in ports.chunks(PORTS_PER_WRITE) {
            let (slots, _) = buffer.as_chunks_mut();
            for (slot, port) in slots.iter_mut().zip(ports) {
                *slot = port.0.to_ne_bytes();
            }
            let bytes = buffer
                .get(..ports.len() * size_of::<u32>())
                .unwrap_or_default();
            (&self.file).write_all(bytes)?;
        }
        Ok(())
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A device that holds `queued`, each to be read on its own, and the ports that a look finds.
    fn look(queued: &[u32], bound: usize, closed: usize) -> (Evtchn, Vec<u32>) {
        let (kernel, device) = UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        for port in queued {
            kernel.send(&port.to_ne_bytes()).unwrap();
        }
        let mut evtchn = Evtchn::new(File::from(OwnedFd::from(device)));
        *evtchn.bound.get_mut() = bound;
        *evtchn.closed.get_mut() = closed;
        let mut found = Vec::new();
        evtchn.pending(&mut found).unwrap();
        (evtchn, found.into_iter().map(|port| port.0).collect())
    }

    #[test]
    fn the_queue_is_read_until_nothing_can_be_in_it() {
        // What is behind the last port that can be queued is never asked for.
        assert_eq!(look(&[7, 8], 1, 0).1, [7]);
        assert_eq!(look(&[7, 8], 2, 0).1, [7, 8]);
        assert_eq!(look(&[7, 8], 3, 0).1, [7, 8]);
        assert_eq!(look(&[], 3, 0).1, [0; 0]);
    }

    #[test]
    fn a_port_that_was_closed_may_be_queued_until_the_queue_was_empty() {
        let (mut evtchn, found) = look(&[7, 7], 1, 1);
        assert_eq!(found, [7, 7]);
        assert_eq!((*evtchn.bound.get_mut(), *evtchn.closed.get_mut()), (1, 0));
    }
}
