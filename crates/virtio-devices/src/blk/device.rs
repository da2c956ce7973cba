//! The block device: its queues, whose turn it is, and what the loop is told.

use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use guest_memory::{AddressSpace, Cursor};
use virtqueue::{Chain, DeviceQueue};

use super::config::BlkConfig;
use super::error::BlkError;
use super::image::{self, Geometry};
use super::offer::{self, CAPACITY, F_CONFIG_WCE, F_FLUSH, WRITEBACK};
use super::request::Status;
use super::serve::{Ended, NoStatus, Served, Server, Terms};
use super::storage::Storage;
use crate::engine::{Engine, EngineKind};
use crate::model::{
    ConfigWrite, DeviceDescription, DeviceEvent, DeviceModel, Progress, ResetReason,
};
use crate::queue::{Queues, RunningQueue};
use crate::ranges::Ranges;

/// Requests of one queue before the next one has its turn, and before their used entries are
/// published together.
const QUANTUM: usize = 16;

/// A virtio block device.
#[derive(Debug)]
pub struct Blk {
    /// As it is now: configuration space follows.
    description: DeviceDescription,
    geometry: Geometry,
    server: Server,
    queues: Queues,
    /// The queue whose turn is next.
    turn: usize,
    chain: Chain,
    /// The field of that name.
    writeback: bool,
    /// A switch to write-through is not reported yet. At most one, so that its sync is the one that
    /// began after it.
    switching: bool,
}

impl Blk {
    /// Opens the image, at once unless a disk or a network file system does not answer: that has to
    /// be waited for here. What would wait later runs on `engine`.
    ///
    /// # Errors
    ///
    /// The configuration or the image is not usable; the message is for the operator alone.
    pub fn open(config: &BlkConfig, engine: &Engine) -> Result<Self, BlkError> {
        config.check()?;
        let (image, geometry) = image::open(&config.path, config.read_only, config.direct)?;
        let image = Arc::new(image);
        let blk = Self::over(config, image, geometry, engine)?;
        tracing::info!(
            image = %config.path.display(),
            sectors = geometry.sectors,
            direct = config.direct,
            engine = %blk.engine(),
            "image open"
        );
        Ok(blk)
    }

    pub(super) fn over(
        config: &BlkConfig,
        storage: Arc<dyn Storage>,
        geometry: Geometry,
        engine: &Engine,
    ) -> Result<Self, BlkError> {
        Ok(Self {
            description: offer::describe(config, geometry),
            geometry,
            server: Server::new(config, storage, geometry.sectors, engine)
                .map_err(BlkError::Wake)?,
            queues: Queues::new(config.queues, Some(Status::IoErr as u8)),
            turn: 0,
            chain: Chain::new(),
            writeback: true,
            switching: false,
        })
    }

    /// What does this image's transfers that would wait: that of the process where it fits the
    /// image, else threads.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.server.engine()
    }

    /// Sets the cache mode, which the driver did not ask for.
    fn set_writeback(&mut self, writeback: bool, out: &mut Vec<DeviceEvent>) {
        if mem::replace(&mut self.writeback, writeback) != writeback {
            self.change_config(WRITEBACK, &[u8::from(writeback)], out);
        }
    }

    fn change_config(&mut self, offset: u32, data: &[u8], out: &mut Vec<DeviceEvent>) {
        // The cache mode is the driver's: the next one begins with that of the first.
        if offset == CAPACITY
            && let Some(field) = self.description.config.get_mut(..data.len())
        {
            field.copy_from_slice(data);
        }
        out.push(DeviceEvent::ConfigChanged {
            offset,
            data: data.to_vec(),
        });
    }

    /// Gives the queues what was taken from the engine.
    fn answer_ended(&mut self, out: &mut Vec<DeviceEvent>) {
        let Self {
            server,
            queues,
            writeback,
            switching,
            ..
        } = self;
        server.answer_ended(|ended| match ended {
            Ended::Used { queue, head, len } => {
                // Present: a queue is not given back before its last request.
                if let Some(queue) = queues.get_mut(queue) {
                    queue.give_back(head, len, out);
                }
            }
            Ended::Switched { fine } => {
                *switching = false;
                *writeback |= !fine;
                out.push(DeviceEvent::ConfigWritten { accepted: fine });
            }
        });
        for queue in self.queues.iter_mut() {
            queue.publish(out);
        }
    }

    /// Serves what the drivers have made available, a quantum of each queue in turn.
    fn serve(&mut self, space: &dyn AddressSpace, budget: usize, out: &mut Vec<DeviceEvent>) {
        let count = self.queues.count();
        let mut left = budget;
        let mut idle = 0;
        while left > 0 && idle < count && self.server.has_room() {
            let turn = u16::try_from(self.turn).ok();
            self.turn = (self.turn + 1) % count;
            match turn.and_then(|turn| self.queues.get_mut(turn)) {
                Some(queue) if queue.is_ready() => {
                    idle = 0;
                    left -= Turn {
                        terms: terms(queue, self.writeback),
                        limit: left.min(QUANTUM),
                        server: &mut self.server,
                        chain: &mut self.chain,
                        space,
                    }
                    .serve(queue, out);
                }
                _ => idle += 1,
            }
        }
    }
}

impl DeviceModel for Blk {
    fn describe(&self) -> DeviceDescription {
        self.description.clone()
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
        self.queues.resume();
        self.server.reap();
        self.answer_ended(out);
        if let Some(sectors) = self.server.resized(self.geometry) {
            self.change_config(CAPACITY, &sectors.to_le_bytes(), out);
        }
        self.serve(space, budget, out);
        let again = self.server.submit();
        self.answer_ended(out);
        self.queues.settle(space, out);
        self.queues.report_stopped(out);
        // Without room the wake descriptor comes first: polling again would only spin.
        if again || (self.server.has_room() && self.queues.any_ready()) {
            Progress::More
        } else {
            Progress::Idle
        }
    }

    fn negotiated(&mut self, features: u128, out: &mut Vec<DeviceEvent>) {
        // Its writes are stable whatever the field says, so the field says so.
        if features & F_CONFIG_WCE != 0 && features & F_FLUSH == 0 {
            self.set_writeback(false, out);
        }
    }

    fn reset(&mut self, out: &mut Vec<DeviceEvent>) {
        self.set_writeback(true, out);
    }

    fn write_config(&mut self, offset: u32, data: &[u8], features: u128) -> ConfigWrite {
        let flushes = features & F_FLUSH != 0;
        let writeback = match data {
            [0] => false,
            // A driver that does not flush cannot have a volatile cache.
            [1] if flushes => true,
            _ => return ConfigWrite::Refused,
        };
        if offset != WRITEBACK || features & F_CONFIG_WCE == 0 || self.switching {
            return ConfigWrite::Refused;
        }
        let was_volatile = mem::replace(&mut self.writeback, writeback) && flushes;
        if writeback || !was_volatile {
            return ConfigWrite::Accepted;
        }
        // What was written until now must not be less stable than what comes (section 4.4).
        self.switching = true;
        self.server.sync_for_switch();
        ConfigWrite::Later
    }

    fn refresh(&mut self) {
        self.server.refresh();
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.server.wake_fd())
    }
}

/// Under what a queue's requests are served now. Writes are stable when they complete if the
/// driver did not accept FLUSH, or chose so by `writeback` (section 4.4 (1) and (2)).
fn terms(queue: &RunningQueue, writeback: bool) -> Terms {
    let features = queue.features();
    let chosen = features & F_CONFIG_WCE != 0 && !writeback;
    Terms {
        queue: queue.index(),
        features,
        write_through: features & F_FLUSH == 0 || chosen,
    }
}

/// The turn of one queue.
struct Turn<'a> {
    terms: Terms,
    limit: usize,
    server: &'a mut Server,
    chain: &'a mut Chain,
    space: &'a dyn AddressSpace,
}

impl Turn<'_> {
    /// Answers how many looks into the ring it took.
    fn serve(self, queue: &mut RunningQueue, out: &mut Vec<DeviceEvent>) -> usize {
        let mut looks = 0;
        let mut memory = Cursor::new(self.space);
        let mut ranges = Ranges::default();
        queue.begin_turn(self.space);
        while looks < self.limit && queue.is_ready() && self.server.has_room() {
            looks += 1;
            ranges.clear();
            let look_up = |access, segment| ranges.add(&mut memory, access, segment);
            if !queue.pop(self.space, self.chain, out, look_up) {
                continue;
            }
            let head = self.chain.head();
            let served = match queue.loan(head) {
                Some(loan) => serve_lent(self.server, loan, self.chain, self.terms),
                None => self
                    .server
                    .serve(&mut memory, self.chain, &mut ranges, self.terms),
            };
            match served {
                Ok(Served::Used(len)) => queue.give_back(head, len, out),
                Ok(Served::InFlight) => {}
                Err(_no_status) => {
                    queue.give_back(head, 0, out);
                    let reason = ResetReason::Status {
                        queue: self.terms.queue,
                        head,
                    };
                    queue.fail(reason, out);
                }
            }
        }
        queue.publish(out);
        looks
    }
}

/// Serves a request whose memory was lent. Out of line: its ranges take much of the stack.
#[inline(never)]
fn serve_lent(
    server: &mut Server,
    loan: &dyn AddressSpace,
    chain: &Chain,
    terms: Terms,
) -> Result<Served, NoStatus> {
    let mut memory = Cursor::new(loan);
    let mut ranges = Ranges::default();
    for (access, segment) in chain.segments() {
        ranges.add(&mut memory, access, segment);
    }
    server.serve(&mut memory, chain, &mut ranges, terms)
}
