//! `/dev/xen/evtchn`: event channels behind one descriptor.
//!
//! A read gives the ports that have an event and masks them; writing ports unmasks them.
//! BIND_INTERDOMAIN and BIND_UNBOUND_PORT return our port as their result.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;

use xen_types::{DomId, EvtchnPort};

use super::sys::{self, BindInterdomain, BindUnbound, Port};
use crate::OpenError;

/// Ports taken from the kernel by one read.
const PORTS_PER_READ: usize = 256;
/// Ports given to the kernel by one write; a session unmasks its only one.
const PORTS_PER_WRITE: usize = 16;

#[derive(Debug)]
pub(crate) struct Evtchn(File);

impl Evtchn {
    pub(crate) fn open() -> Result<Self, OpenError> {
        super::open_device(super::EVTCHN, "xen-evtchn").map(Self)
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
        let port = unsafe { sys::ioctl(&self.0, sys::EVTCHN_BIND_INTERDOMAIN, argument) }?;
        Ok(EvtchnPort(port))
    }

    pub(crate) fn alloc_unbound(&self, peer: DomId) -> io::Result<EvtchnPort> {
        let mut call = BindUnbound {
            remote_domain: peer.0.into(),
        };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of this opcode.
        let port = unsafe { sys::ioctl(&self.0, sys::EVTCHN_BIND_UNBOUND_PORT, argument) }?;
        Ok(EvtchnPort(port))
    }

    pub(crate) fn notify(&self, port: EvtchnPort) -> io::Result<()> {
        self.with_port(sys::EVTCHN_NOTIFY, port)
    }

    pub(crate) fn unbind(&self, port: EvtchnPort) -> io::Result<()> {
        self.with_port(sys::EVTCHN_UNBIND, port)
    }

    fn with_port(&self, opcode: u32, port: EvtchnPort) -> io::Result<()> {
        let mut call = Port { port: port.0 };
        let argument = ptr::from_mut(&mut call);
        // SAFETY: the structure of NOTIFY and of UNBIND, which are the two opcodes passed here.
        unsafe { sys::ioctl(&self.0, opcode, argument) }?;
        Ok(())
    }

    pub(crate) fn pending(&self, out: &mut Vec<EvtchnPort>) -> io::Result<()> {
        let mut buffer = [0; PORTS_PER_READ * size_of::<u32>()];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => {
                    let (ports, _) = buffer.get(..len).unwrap_or_default().as_chunks();
                    out.extend(
                        ports
                            .iter()
                            .map(|port| EvtchnPort(u32::from_ne_bytes(*port))),
                    );
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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
            (&self.0).write_all(bytes)?;
        }
        Ok(())
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
