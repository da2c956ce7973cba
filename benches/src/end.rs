//! One side of a message ring with its event channel, used as a frontend's or a backend's link
//! uses it: sleep only after everything was published, look at the ring only after the event was
//! acknowledged (binding section 4).

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use xen_bus::ring::MessageRing;
use xen_hal::EventChannels;
use xen_types::EvtchnPort;

#[derive(Debug)]
pub(crate) struct End {
    pub(crate) ring: MessageRing,
    pub(crate) channels: EventChannels,
    pub(crate) port: EvtchnPort,
    ports: Vec<EvtchnPort>,
}

impl End {
    pub(crate) fn new(ring: MessageRing, channels: EventChannels, port: EvtchnPort) -> Self {
        Self {
            ring,
            channels,
            port,
            ports: Vec::new(),
        }
    }

    /// Sleeps until there is a frame; its length.
    pub(crate) fn receive(&mut self, frame: &mut [u8]) -> anyhow::Result<usize> {
        loop {
            if let Some(len) = self.ring.try_recv(frame)? {
                return Ok(len);
            }
            let sleep = self.ring.prepare_sleep(false)?;
            if sleep.notify {
                self.channels.notify(self.port)?;
            }
            if sleep.may_wait {
                wait_readable(&self.channels)?;
                self.channels.pending(&mut self.ports)?;
                self.channels.unmask(&self.ports)?;
                self.ports.clear();
                self.ring.note_event()?;
            }
        }
    }

    /// Shows the peer what was sent, now.
    pub(crate) fn publish(&mut self) -> anyhow::Result<()> {
        if self.ring.flush() {
            self.channels.notify(self.port)?;
        }
        Ok(())
    }
}

pub(crate) fn wait_readable(fd: &impl AsFd) -> anyhow::Result<()> {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    Ok(())
}
