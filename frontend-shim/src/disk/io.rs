//! Requests in flight: submit, poll, finish (virtio 1.4 sections 2.7 and 5.2.6).

use std::time::Instant;

use guest_memory::{Access, AddressSpace as _};

use super::request::{HEADER, STATUS_AT};
use super::{Disk, Finished, Operation, Status};
use crate::error::FrontendError;
use crate::frontend::Frontend;

impl Disk {
    /// Makes a request available and kicks if the device wants it.
    ///
    /// # Errors
    /// The slot is busy, or the request does not fit.
    pub fn submit(
        &mut self,
        frontend: &mut Frontend,
        slot: usize,
        operation: Operation,
    ) -> Result<(), FrontendError> {
        let (.., len, device_writes) = operation.parts();
        let len = self.length(len)?;
        let place = self.idle.iter().rposition(|idle| *idle == slot);
        let (place, free) = place
            .zip(self.slots.get(slot))
            .ok_or_else(|| self.failed(format_args!("slot {slot} is busy")))?;
        let pool = self.pool(frontend)?;
        pool.translate(pool.address(free.control, 0), HEADER + 1, Access::Write)
            .map_err(|error| error.to_string())
            .and_then(|range| {
                let bytes = operation.control();
                range.write(0, &bytes).map_err(|error| error.to_string())
            })
            .map_err(|error| self.failed(error))?;
        if let Some(bytes) = operation.segment() {
            pool.translate(pool.address(free.data, 0), len, Access::Write)
                .map_err(|error| error.to_string())
                .and_then(|range| range.write(0, &bytes).map_err(|error| error.to_string()))
                .map_err(|error| self.failed(error))?;
        }
        let [readable, writable] = &mut self.segments;
        readable.clear();
        writable.clear();
        readable.push(free.header);
        match device_writes {
            true => writable.extend(free.data(len)),
            false => readable.extend(free.data(len)),
        }
        writable.push(free.status);
        let head = self.queue.add(readable, writable);
        let head = head.map_err(|error| self.failed(error))?;
        self.idle.swap_remove(place);
        if let Some(owner) = self.owners.get_mut(usize::from(head)) {
            *owner = Some(slot);
        }
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.busy = Some((operation, frontend.now()));
        }
        if self.queue.publish() {
            let next = self.queue.offered();
            frontend.with_device(self.dev_num, |device| device.kick(0, next))?;
        }
        Ok(())
    }

    /// Waits for the next request to end.
    ///
    /// # Errors
    /// The device failed the request or broke the queue, nothing is in flight, the connection ended,
    /// or a request took longer than the limit.
    pub fn finish(&mut self, frontend: &mut Frontend) -> Result<Finished, FrontendError> {
        loop {
            if let Some(finished) = self.finished(frontend)? {
                return Ok(finished);
            }
            // Whether it has passed is what the next look finds out, also if the wait never sleeps.
            let deadline = self.deadline();
            let deadline = deadline.ok_or_else(|| self.failed("has no request in flight"))?;
            frontend.wait(Some(deadline))?;
            frontend.pump()?;
        }
    }

    /// As [`Disk::finish`], but never waits: `None` if nothing has ended.
    ///
    /// # Errors
    /// As [`Disk::finish`].
    pub fn finished(&mut self, frontend: &mut Frontend) -> Result<Option<Finished>, FrontendError> {
        let Some(finished) = self.poll(frontend)? else {
            return Ok(None);
        };
        let why = match finished.status {
            Status::Ok => return Ok(Some(finished)),
            Status::IoError => "failed: I/O error",
            Status::Unsupported => "is not supported",
        };
        let operation = finished.operation;
        Err(self.failed(format_args!("{operation} {why}")))
    }

    /// The next request that has ended, if there is one; never waits. What the device said of the
    /// request is no error here. If there is none, [`Frontend::wait`] wakes for the next.
    ///
    /// # Errors
    /// The device broke the queue or is being detached, the connection ended, or a request took
    /// longer than a minute.
    pub fn poll(&mut self, frontend: &mut Frontend) -> Result<Option<Finished>, FrontendError> {
        loop {
            let used = self.queue.pop_used();
            if let Some(used) = used.map_err(|error| self.failed(error))? {
                return self.completed(frontend, used.head).map(Some);
            }
            if !self.queue.rearm() {
                break;
            }
        }
        frontend.watch_device(self.dev_num)?;
        match self.deadline() {
            Some(deadline) if frontend.has_passed(deadline) => Err(self.timeout(frontend)),
            _ => Ok(None),
        }
    }

    /// When the oldest request in flight will have taken too long; a tick of the clock too early at most.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let busy = self.slots.iter().filter_map(|slot| slot.busy);
        let oldest = busy.map(|(_, since)| since).min()?;
        oldest.checked_add(self.limit)
    }

    /// Runs one request alone.
    ///
    /// # Errors
    /// As [`Disk::submit`] and [`Disk::finish`].
    pub fn run(
        &mut self,
        frontend: &mut Frontend,
        operation: Operation,
    ) -> Result<Finished, FrontendError> {
        let slot = self
            .free_slot()
            .ok_or_else(|| self.failed("every slot is busy"))?;
        self.submit(frontend, slot, operation)?;
        self.finish(frontend)
    }

    fn completed(&mut self, frontend: &mut Frontend, head: u16) -> Result<Finished, FrontendError> {
        let owner = self.owners.get_mut(usize::from(head));
        let found = owner.and_then(Option::take).and_then(|slot| {
            let found = self.slots.get_mut(slot)?;
            let (operation, _) = found.busy.take()?;
            self.idle.push(slot);
            Some((slot, found.control, operation))
        });
        let (slot, control, operation) = found
            .ok_or_else(|| self.failed(format_args!("used head {head}, which is no request")))?;
        let pool = self.pool(frontend)?;
        let status = pool
            .translate(pool.address(control, STATUS_AT), 1, Access::Read)
            .ok()
            .and_then(|range| range.read_array::<1>(0).ok());
        let status = match status {
            Some([0]) => Status::Ok,
            Some([1]) => Status::IoError,
            Some([2]) => Status::Unsupported,
            Some([other]) => {
                let why = format_args!("{operation} ended with status {other}, which is none");
                return Err(self.failed(why));
            }
            None => return Err(self.failed("the status of a request is out of reach")),
        };
        Ok(Finished {
            slot,
            operation,
            status,
        })
    }

    fn timeout(&self, frontend: &Frontend) -> FrontendError {
        frontend.late(
            format_args!("a request of device {}", self.dev_num),
            self.limit,
        )
    }
}
