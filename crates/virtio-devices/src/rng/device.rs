//! The entropy device.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use guest_memory::{Access, AddressSpace, Cursor};
use virtqueue::{Chain, DeviceQueue};

use super::rate::Rate;
use crate::features;
use crate::model::{DeviceDescription, DeviceEvent, DeviceModel, Progress, VENDOR_ID};
use crate::queue::Queues;
use crate::ranges::{Ranges, take};

/// Device type number of an entropy device.
const DEVICE_ID: u32 = 4;

/// Linux keeps one buffer in the queue.
const QUEUE_SIZE_MAX: u16 = 16;

/// Most bytes of one request, and of one [`PERIOD`]: some 150 µs of the host's generator, for
/// which no thread is worth waking.
pub(super) const BYTES_MAX: usize = 64 * 1024;

/// With [`BYTES_MAX`] 1.25 MiB/s: far more than seeding takes, and under 1 % of a CPU.
const PERIOD: Duration = Duration::from_millis(50);

/// Bytes drawn at a time: a buffer on the stack, as guest memory is never a slice.
const PIECE: usize = 1024;

/// A virtio entropy device.
#[derive(Debug)]
pub struct Rng {
    queues: Queues,
    chain: Chain,
    source: Source,
}

/// Why an entropy device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RngError {
    /// The host gives no random bytes.
    #[error("the host's random number generator does not work: {0}")]
    Entropy(getrandom::Error),
    /// The host has no descriptor left for the device.
    #[error("no timer descriptor for the device: {0}")]
    Timer(io::Error),
}

impl Rng {
    /// Makes a device. Soon after the host has started this may wait for its generator, once.
    ///
    /// # Errors
    ///
    /// The host has no random bytes or no descriptor.
    pub fn open() -> Result<Self, RngError> {
        getrandom::fill(&mut [0; 1]).map_err(RngError::Entropy)?;
        Self::with_period(PERIOD).map_err(RngError::Timer)
    }

    pub(super) fn with_period(period: Duration) -> io::Result<Self> {
        Ok(Self {
            queues: Queues::new(1, None),
            chain: Chain::new(),
            source: Source {
                rate: Rate::new(BYTES_MAX, period)?,
                complained: false,
            },
        })
    }
}

impl DeviceModel for Rng {
    fn describe(&self) -> DeviceDescription {
        DeviceDescription {
            device_id: DEVICE_ID,
            vendor_id: VENDOR_ID,
            features: features::ALWAYS,
            config: Vec::new(),
            queue_max: vec![QUEUE_SIZE_MAX],
        }
    }

    fn start_queue(&mut self, index: u16, queue: DeviceQueue, features: u128) {
        self.queues.start(index, queue, features);
    }

    fn stop_queue(&mut self, index: u16) {
        self.queues.stop(index);
    }

    fn kick(&mut self, index: u16) {
        self.queues.kick(index);
    }

    fn poll(
        &mut self,
        space: &dyn AddressSpace,
        budget: usize,
        out: &mut Vec<DeviceEvent>,
    ) -> Progress {
        self.source.rate.refill();
        self.queues.resume();
        for queue in self.queues.iter_mut() {
            queue.begin_turn(space);
            let mut looks = 0;
            while looks < budget && queue.is_ready() && self.source.may_give() {
                looks += 1;
                if queue.pop(space, &mut self.chain, out, |_, _| {}) {
                    let head = self.chain.head();
                    let written = self
                        .source
                        .fill(queue.loan(head).unwrap_or(space), &self.chain);
                    queue.give_back(head, written, out);
                }
            }
            queue.publish(out);
        }
        self.queues.settle(space, out);
        self.queues.report_stopped(out);
        // With nothing left to give the timer comes first: polling again would only spin.
        if self.source.may_give() && self.queues.any_ready() {
            Progress::More
        } else {
            Progress::Idle
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.source.rate.wake_fd())
    }
}

/// The host's generator, as far as a guest may draw from it.
#[derive(Debug)]
struct Source {
    rate: Rate,
    complained: bool,
}

impl Source {
    fn may_give(&self) -> bool {
        self.rate.left() > 0
    }

    /// Fills the chain's writable elements from the front, as far as the rate allows; answers how
    /// many bytes it wrote.
    fn fill(&mut self, space: &dyn AddressSpace, chain: &Chain) -> u32 {
        let mut memory = Cursor::new(space);
        let mut ranges = Ranges::default();
        for segment in chain.writable() {
            ranges.add(&mut memory, Access::Write, *segment);
        }
        let (Ok((_, writable)), None) = (ranges.split(), chain.refusal()) else {
            return 0;
        };
        let mut piece = [0; PIECE];
        let mut written = 0;
        for range in take(writable, self.rate.left() as u64) {
            let mut at = 0;
            while at < range.len() {
                let (random, _) = piece.split_at_mut(PIECE.min(range.len() - at));
                if let Err(error) = getrandom::fill(random) {
                    self.complain(&error);
                    return written;
                }
                if range.write(at as u64, random).is_err() {
                    return written;
                }
                at += random.len();
                written += u32::try_from(random.len()).unwrap_or_default();
                self.rate.spend(random.len());
            }
        }
        written
    }

    fn complain(&mut self, error: &getrandom::Error) {
        if !self.complained {
            self.complained = true;
            tracing::error!(%error, "the host's random number generator fails");
        }
    }
}
