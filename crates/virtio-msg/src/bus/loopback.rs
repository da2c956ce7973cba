//! [`Loopback`]: two ends of a bus in one thread, with a bounded number of slots each way.

use super::{Bus, BusInfo, Full};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

type Lane = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One of two connected ends.
#[derive(Debug)]
pub struct Loopback {
    info: BusInfo,
    slots: usize,
    out: Lane,
    inward: Lane,
}

impl Loopback {
    /// Two ends; what one sends, the other receives. Each way holds `slots` frames.
    #[must_use]
    pub fn pair(info: BusInfo, slots: usize) -> (Loopback, Loopback) {
        let (there, back) = (Lane::default(), Lane::default());
        let end = |out: &Lane, inward: &Lane| Loopback {
            info,
            slots,
            out: out.clone(),
            inward: inward.clone(),
        };
        (end(&there, &back), end(&back, &there))
    }
}

impl Bus for Loopback {
    fn info(&self) -> BusInfo {
        self.info
    }

    fn try_send(&mut self, frame: &[u8]) -> Result<(), Full> {
        let mut lane = self.out.borrow_mut();
        if lane.len() >= self.slots {
            return Err(Full);
        }
        lane.push_back(frame.to_vec());
        Ok(())
    }

    fn try_recv(&mut self, buf: &mut [u8]) -> Option<usize> {
        let frame = self.inward.borrow_mut().pop_front()?;
        let len = frame.len().min(buf.len());
        if let (Some(into), Some(from)) = (buf.get_mut(..len), frame.get(..len)) {
            into.copy_from_slice(from);
        }
        Some(len)
    }

    fn flush(&mut self) {}
}
