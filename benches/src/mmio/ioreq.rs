//! One slot of a Xen ioreq page: how an access that was trapped reaches a device model in another
//! domain (Xen's public header `hvm/ioreq.h`, `struct ioreq`).
//!
//! The hypervisor fills the slot, makes it READY and sends an event; the server makes it
//! INPROCESS, does the access, makes it RESP_READY and sends an event back; then the guest's
//! processor goes on.

use std::sync::atomic::Ordering;

use anyhow::bail;
use guest_memory::{Access, Area, GuestRange, LeasedRange, RangeError};
use xen_types::EvtchnPort;

/// Offsets in the slot.
const ADDR: u64 = 0;
const DATA: u64 = 8;
const SIZE: u64 = 20;
const PORT: u64 = 24;
/// Bits 0 to 3 state, bit 5 direction, bits 8 to 15 type.
const STATE: u64 = 30;
const SLOT_BYTES: u64 = 32;

const STATE_BITS: u16 = 0xf;
const DIR_READ: u16 = 1 << 5;
const TYPE_BITS: u16 = 0xff << 8;
/// IOREQ_TYPE_COPY: memory-mapped I/O.
const TYPE_COPY: u16 = 1 << 8;
/// IOREQ_TYPE_INVALIDATE: the guest gave memory back; wants an answer as all others do.
const TYPE_INVALIDATE: u16 = 8 << 8;

const NONE: u16 = 0;
const READY: u16 = 1;
const INPROCESS: u16 = 2;
const RESP_READY: u16 = 3;

/// An access as it was trapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) addr: u64,
    /// Bytes: 1, 2 or 4.
    pub(crate) size: u32,
    /// The value of a write; `None` for a read.
    pub(crate) write: Option<u32>,
}

/// What a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Access(Request),
    /// To forget what it mapped of the guest and does not use.
    Invalidate,
}

/// The slot of one processor.
#[derive(Clone, Debug)]
pub(crate) struct Slot(LeasedRange);

impl Slot {
    /// The first slot of a page.
    pub(crate) fn new(page: &Area) -> Result<Self, RangeError> {
        Ok(Self(page.lease().window(0, SLOT_BYTES, Access::Write)?))
    }

    /// The guest's end of the processor's event channel, which the server binds to.
    pub(crate) fn port(&self) -> Result<EvtchnPort, RangeError> {
        let port = self.0.range().read_array(PORT)?;
        Ok(EvtchnPort(u32::from_le_bytes(port)))
    }

    /// The hypervisor's side: publishes a request.
    pub(crate) fn begin(&self, request: Request) -> anyhow::Result<()> {
        let slot = self.0.range();
        slot.write(ADDR, &request.addr.to_le_bytes())?;
        slot.write(SIZE, &request.size.to_le_bytes())?;
        let data = u64::from(request.write.unwrap_or_default());
        slot.write(DATA, &data.to_le_bytes())?;
        let direction = match request.write {
            Some(_) => 0,
            None => DIR_READ,
        };
        slot.store_u16(STATE, READY | direction | TYPE_COPY, Ordering::Release)?;
        Ok(())
    }

    /// The hypervisor's side: the answer, once it is there.
    pub(crate) fn end(&self) -> anyhow::Result<Option<u32>> {
        let slot = self.0.range();
        if state(slot)? & STATE_BITS != RESP_READY {
            return Ok(None);
        }
        let data = slot.read_array(DATA)?;
        slot.store_u16(STATE, NONE, Ordering::Relaxed)?;
        Ok(Some(u32::from_le_bytes(data)))
    }

    /// The server's side: takes a request, if there is one.
    pub(crate) fn take(&self) -> anyhow::Result<Option<Asked>> {
        let slot = self.0.range();
        let state = state(slot)?;
        match state & STATE_BITS {
            READY => {}
            NONE | RESP_READY => return Ok(None),
            other => bail!("the ioreq slot is in state {other}"),
        }
        let rest = state & !STATE_BITS;
        slot.store_u16(STATE, INPROCESS | rest, Ordering::Relaxed)?;
        match state & TYPE_BITS {
            TYPE_COPY => {}
            TYPE_INVALIDATE => return Ok(Some(Asked::Invalidate)),
            _ => bail!("the ioreq slot holds a request of another kind: {state:#x}"),
        }
        let data = u32::from_le_bytes(slot.read_array(DATA)?);
        Ok(Some(Asked::Access(Request {
            addr: u64::from_le_bytes(slot.read_array(ADDR)?),
            size: u32::from_le_bytes(slot.read_array(SIZE)?),
            write: (state & DIR_READ == 0).then_some(data),
        })))
    }

    /// The server's side: the access is done; `data` is what a read found.
    pub(crate) fn respond(&self, data: u32) -> anyhow::Result<()> {
        let slot = self.0.range();
        slot.write(DATA, &u64::from(data).to_le_bytes())?;
        let rest = state(slot)? & !STATE_BITS;
        slot.store_u16(STATE, RESP_READY | rest, Ordering::Release)?;
        Ok(())
    }
}

fn state(slot: GuestRange<'_>) -> Result<u16, RangeError> {
    slot.load_u16(STATE, Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_through_its_states_once() {
        let page = Area::anonymous(4096).unwrap();
        let slot = Slot::new(&page).unwrap();
        assert_eq!(slot.take().unwrap(), None);
        let read = Request {
            addr: 0x1234_5678_9abc,
            size: 2,
            write: None,
        };
        slot.begin(read).unwrap();
        assert_eq!(slot.end().unwrap(), None);
        assert_eq!(slot.take().unwrap(), Some(Asked::Access(read)));
        // In process: neither a request nor an answer.
        assert!(slot.take().is_err());
        assert_eq!(slot.end().unwrap(), None);
        slot.respond(0xffff_fffe).unwrap();
        assert_eq!(slot.end().unwrap(), Some(0xffff_fffe));
        assert_eq!(slot.end().unwrap(), None);

        let write = Request {
            write: Some(7),
            ..read
        };
        slot.begin(write).unwrap();
        assert_eq!(slot.take().unwrap(), Some(Asked::Access(write)));
        slot.respond(0).unwrap();
        assert_eq!(slot.end().unwrap(), Some(0));

        // As Xen makes it of its own.
        let own = READY | DIR_READ | TYPE_INVALIDATE;
        slot.0
            .range()
            .store_u16(STATE, own, Ordering::Release)
            .unwrap();
        assert_eq!(slot.take().unwrap(), Some(Asked::Invalidate));
        slot.respond(0).unwrap();
        assert_eq!(slot.end().unwrap(), Some(0));
    }
}
