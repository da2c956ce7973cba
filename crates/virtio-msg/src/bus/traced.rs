//! [`Traced`]: a bus that remembers the frames that passed this end.

use super::{Bus, BusInfo, Full};
use alloc::vec::Vec;

/// Which way a frame went, seen from this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Sent.
    Out,
    /// Received.
    In,
}

/// A bus and the frames that passed it.
#[derive(Debug)]
pub struct Traced<B> {
    inner: B,
    frames: Vec<(Way, Vec<u8>)>,
}

impl<B: Bus> Traced<B> {
    /// Traces `inner` from now on.
    pub fn new(inner: B) -> Self {
        Traced {
            inner,
            frames: Vec::new(),
        }
    }

    /// Takes what passed since the last call.
    pub fn take(&mut self) -> Vec<(Way, Vec<u8>)> {
        core::mem::take(&mut self.frames)
    }
}

impl<B: Bus> Bus for Traced<B> {
    fn info(&self) -> BusInfo {
        self.inner.info()
    }

    fn try_send(&mut self, frame: &[u8]) -> Result<(), Full> {
        self.inner.try_send(frame)?;
        self.frames.push((Way::Out, frame.to_vec()));
        Ok(())
    }

    fn try_recv(&mut self, buf: &mut [u8]) -> Option<usize> {
        let len = self.inner.try_recv(buf)?;
        self.frames
            .push((Way::In, buf.get(..len).unwrap_or_default().to_vec()));
        Some(len)
    }

    fn flush(&mut self) {
        self.inner.flush();
    }
}
