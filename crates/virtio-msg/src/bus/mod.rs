//! [`Bus`]: something that carries frames between two ends, and three carriers for tests (virtio-msg section 4).
//!
//! A carrier never waits and knows no message. The carrier of the product is the binding's ring; here are
//! [`Loopback`] (two ends in one thread), [`Traced`] (remembers what passed) and [`Faulty`] (loses, repeats and
//! reorders by a seed).

mod faulty;
mod loopback;
mod traced;

pub use faulty::{FaultRates, Faulty};
pub use loopback::Loopback;
pub use traced::{Traced, Way};

use crate::wire::MaxMessageSize;
use thiserror::Error;

/// The parameters of a bus instance, known before its first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusInfo {
    /// Of the transport.
    pub revision: u32,
    /// The largest frame, both directions.
    pub max_message_size: MaxMessageSize,
    /// Transport feature bits.
    pub features: u64,
}

/// Parameters that this transport cannot work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnsupportedBus {
    /// Only revision 1 is known.
    #[error("bus has revision {0}, this transport knows revision 1")]
    Revision(u32),
    /// No transport feature is known, and one that is on may change what messages mean.
    #[error("bus has transport features {0:#x}, this transport knows none")]
    Features(u64),
}

/// No room; the frame was not taken. Normal: try again when the peer has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the bus has no room")]
pub struct Full;

/// One end of something that carries frames both ways, whole and in order. Nothing here waits.
pub trait Bus {
    /// The parameters of the instance.
    fn info(&self) -> BusInfo;

    /// Gives one frame to the carrier.
    fn try_send(&mut self, frame: &[u8]) -> Result<(), Full>;

    /// Copies the next frame to the start of `buf`, which holds at least the maximum message size; gives the bytes
    /// received, padding included.
    fn try_recv(&mut self, buf: &mut [u8]) -> Option<usize>;

    /// Makes what was sent visible to the peer, if the carrier works in batches.
    fn flush(&mut self);
}

impl BusInfo {
    /// Whether this transport can work with the bus; to be asked before the first frame.
    pub fn check(&self) -> Result<(), UnsupportedBus> {
        if self.revision != 1 {
            return Err(UnsupportedBus::Revision(self.revision));
        }
        if self.features != 0 {
            return Err(UnsupportedBus::Features(self.features));
        }
        Ok(())
    }
}
