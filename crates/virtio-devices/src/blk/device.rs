//! The block device: its queues, whose turn it is, and what the loop is told.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use guest_memory::AddressSpace;
use virtqueue::{Chain, DeviceQueue};

use super::config::BlkConfig;
use super::error::BlkError;
use super::image::{self, Geometry};
use super::offer::{self, F_CONFIG_WCE, F_FLUSH, WRITEBACK};
use super::serve::{Served, Server, Terms};
use super::storage::Storage;
use crate::engine::Engine;
use crate::model::{DeviceDescription, DeviceEvent, DeviceModel, Progress, ResetReason};
use crate::queue::{Queues, RunningQueue};

/// Requests of one queue before the next one has its turn, and before their used entries are
/// published together.
const QUANTUM: usize = 16;

/// A virtio block device.
#[derive(Debug)]
pub struct Blk {
    description: DeviceDescription,
    server: Server,
    queues: Queues,
    /// The queue whose turn is next.
    turn: usize,
    chain: Chain,
    /// The field of that name; like all of configuration space it outlives a reset.
    writeback: bool,
}

impl Blk {
    /// Opens the image. What would wait later runs on `engine`.
    ///
    /// # Errors
    ///
    /// The configuration or the image is not usable; the message is for the operator alone.
    pub fn open(config: &BlkConfig, engine: &Engine) -> Result<Self, BlkError> {
        config.check()?;
        let (image, geometry) = image::open(&config.path, config.read_only)?;
        Self::over(config, Arc::new(image), geometry, engine)
    }

    pub(super) fn over(
        config: &BlkConfig,
        storage: Arc<dyn Storage>,
        geometry: Geometry,
        engine: &Engine,
    ) -> Result<Self, BlkError> {
        Ok(Self {
            description: offer::describe(config, geometry),
            server: Server::new(config, storage, geometry.sectors, engine)
                .map_err(BlkError::Wake)?,
            queues: Queues::new(config.queues),
            turn: 0,
            chain: Chain::new(),
            writeback: true,
        })
    }

    /// Gives the queues what the engine has finished.
    fn reap(&mut self, out: &mut Vec<DeviceEvent>) {
        let queues = &mut self.queues;
        self.server.reap(|index, head, len| {
            // Present: a queue is not given back before its last request.
            if let Some(queue) = queues.get_mut(index) {
                queue.give_back(head, len, out);
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
        self.reap(out);
        self.serve(space, budget, out);
        self.queues.report_stopped(out);
        // Without room the wake descriptor comes first: polling again would only spin.
        if self.server.has_room() && self.queues.any_ready() {
            Progress::More
        } else {
            Progress::Idle
        }
    }

    fn check_config_write(&mut self, offset: u32, data: &[u8], features: u128) -> bool {
        let writeback = match data {
            [0] => false,
            // A driver that does not flush cannot have a volatile cache.
            [1] if features & F_FLUSH != 0 => true,
            _ => return false,
        };
        let allowed = offset == WRITEBACK && features & F_CONFIG_WCE != 0;
        if allowed {
            self.writeback = writeback;
        }
        allowed
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
        queue.begin_turn();
        while looks < self.limit && queue.is_ready() && self.server.has_room() {
            looks += 1;
            if !queue.pop(self.space, self.chain, out) {
                continue;
            }
            let head = self.chain.head();
            match self.server.serve(self.space, self.chain, self.terms) {
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
