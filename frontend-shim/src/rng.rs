//! An entropy device on the bus: one request at a time (virtio 1.4 section 5.4; the device side is
//! taken for hostile: what it gives is as random as its host is honest).

use guest_memory::{Access, AddressSpace as _};
use virtio_msg::Features;
use virtqueue::DriverQueue;

use crate::bring_up::{open, release, start};
use crate::error::FrontendError;
use crate::frontend::{Frontend, Wants};
use crate::pool::{Block, Pool};

/// Virtio device type of an entropy device.
pub const RNG_DEVICE_ID: u32 = 4;
/// Bytes that one request asks for at most.
pub const RNG_REQUEST: usize = 4096;

/// What is used of an entropy device: one queue; it has no configuration space.
const WANTS: Wants = Wants {
    features: Features(Features::INDIRECT_DESC.0 | Features::EVENT_IDX.0),
    queues: 1,
    config_len: 0,
};

/// An entropy device in use.
#[derive(Debug)]
pub struct Rng {
    /// The number of the bus.
    handle: u32,
    dev_num: u16,
    /// Of which connection the device and its memory are.
    connection: u64,
    queue: DriverQueue,
    /// Where the device puts its bytes.
    buffer: Block,
    /// Everything that was taken from the pool.
    memory: Vec<Block>,
}

impl Rng {
    /// Brings device `dev_num` up. Shares the frontend's memory first if that was not done yet.
    ///
    /// # Errors
    /// As [`crate::Disk::open`], for an entropy device.
    pub fn open(frontend: &mut Frontend, dev_num: u16) -> Result<Self, FrontendError> {
        let (rng, memory) = open(frontend, dev_num, WANTS, |frontend, memory| {
            let chain = |pool: &Pool| pool.segments(RNG_REQUEST);
            let started = start(frontend, dev_num, RNG_DEVICE_ID, chain, memory)?;
            let connection = frontend.link()?.number();
            let pool = frontend.pool_of(dev_num, connection)?;
            let taken = pool.take(RNG_REQUEST);
            let buffer = taken.map_err(|full| frontend.device_error(dev_num, full))?;
            memory.push(buffer);
            Ok(Self {
                handle: frontend.instance().handle,
                dev_num,
                connection,
                queue: started.queue,
                buffer,
                memory: Vec::new(),
            })
        })?;
        Ok(Self { memory, ..rng })
    }

    /// Fills the start of `bytes` with random bytes, of which the device gives one at least and
    /// [`RNG_REQUEST`] at most; gives how many.
    ///
    /// # Errors
    /// The device broke the queue, gave nothing or is being detached, the connection ended, or
    /// nothing happened for a minute.
    pub fn read(
        &mut self,
        frontend: &mut Frontend,
        bytes: &mut [u8],
    ) -> Result<usize, FrontendError> {
        let wanted = bytes.len().min(RNG_REQUEST);
        let wanted = u32::try_from(wanted).map_err(|error| self.failed(error))?;
        let pool = frontend.pool_of(self.dev_num, self.connection)?;
        let writable: Vec<_> = pool.buffer(self.buffer, wanted).collect();
        let added = self.queue.add(&[], &writable);
        let head = added.map_err(|error| self.failed(error))?;
        if self.queue.publish() {
            let next = self.queue.offered();
            frontend.with_device(self.dev_num, |device| device.kick(0, next))?;
        }
        let len = self.wait_for(frontend, head)?;
        let pool = frontend.pool_of(self.dev_num, self.connection)?;
        let taken = usize::try_from(len)
            .ok()
            .and_then(|len| bytes.get_mut(..len))
            .filter(|taken| !taken.is_empty())
            .ok_or_else(|| self.failed(format_args!("gave {len} bytes, expected 1 to {wanted}")))?;
        pool.translate(pool.address(self.buffer, 0), len, Access::Read)
            .map_err(|error| error.to_string())
            .and_then(|range| range.read(0, taken).map_err(|error| error.to_string()))
            .map_err(|error| self.failed(error))?;
        Ok(taken.len())
    }

    /// Resets the device and gives its memory back.
    ///
    /// # Errors
    /// As [`crate::Disk::close`].
    pub fn close(self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        frontend.pool_of(self.dev_num, self.connection)?;
        release(frontend, self.dev_num, self.memory)
    }

    /// Waits for the end of the request; how many bytes the device says that it wrote.
    fn wait_for(&mut self, frontend: &mut Frontend, head: u16) -> Result<u32, FrontendError> {
        let limit = frontend.limits().request;
        let deadline = frontend.now().checked_add(limit);
        loop {
            let used = self.queue.pop_used();
            match used.map_err(|error| self.failed(error))? {
                Some(used) if used.head == head => return Ok(used.len),
                Some(_) => return Err(self.failed("ended a request that was not made")),
                None if self.queue.rearm() => continue,
                None => {}
            }
            frontend.watch_device(self.dev_num)?;
            if !frontend.wait_before(deadline)? {
                let what = format!("a request of device {}", self.dev_num);
                return Err(frontend.late(&what, limit));
            }
            frontend.pump()?;
        }
    }

    fn failed(&self, why: impl ToString) -> FrontendError {
        FrontendError::device(self.handle, self.dev_num, why)
    }
}
