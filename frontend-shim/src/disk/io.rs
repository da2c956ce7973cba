//! Requests in flight: submit, poll, finish (virtio 1.4 sections 2.7 and 5.2.6).

use std::time::{Duration, Instant};

use guest_memory::{Access, AddressSpace as _};
use virtio_msg::{DriverAction, DriverBusAction};
use virtqueue::Segment;
use xen_bus::messages::REMOVE_REQUEST;

use super::request::{HEADER, STATUS_AT};
use super::{Disk, Finished, Operation, Status, failed, pool};
use crate::error::FrontendError;
use crate::frontend::Frontend;

/// How long the device may take for a request before the disk is given up.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

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
        let dev_num = self.dev_num;
        let (.., len, device_writes) = operation.parts();
        let data = Segment {
            addr: self.data_address(frontend, slot)?,
            len: self.length(len)?,
        };
        let place = self
            .slots
            .get_mut(slot)
            .filter(|slot| slot.busy.is_none())
            .ok_or_else(|| failed(dev_num.0, format!("slot {slot} is busy")))?;
        let pool = pool(frontend, dev_num)?;
        let control = pool.address(place.control, 0);
        pool.translate(control, HEADER + 1, Access::Write)
            .map_err(|error| error.to_string())
            .and_then(|range| {
                let bytes = operation.control();
                range.write(0, &bytes).map_err(|error| error.to_string())
            })
            .map_err(|error| failed(dev_num.0, error))?;
        let header = Segment {
            addr: control,
            len: HEADER,
        };
        let status = Segment {
            addr: pool.address(place.control, STATUS_AT),
            len: 1,
        };
        let head = match (len, device_writes) {
            (0, _) => self.queue.add(&[header], &[status]),
            (_, true) => self.queue.add(&[header], &[data, status]),
            (_, false) => self.queue.add(&[header, data], &[status]),
        };
        let head = head.map_err(|error| failed(dev_num.0, error))?;
        place.busy = Some((head, operation, Instant::now()));
        if self.queue.publish() {
            let next = self.queue.offered();
            frontend
                .link()?
                .bus()
                .update(dev_num, |device| device.kick(0, next));
        }
        Ok(())
    }

    /// Waits for the next request to end.
    ///
    /// # Errors
    /// The device failed the request or broke the queue, the connection ended, or nothing
    /// happened for a minute.
    pub fn finish(&mut self, frontend: &mut Frontend) -> Result<Finished, FrontendError> {
        let deadline = Instant::now().checked_add(REQUEST_LIMIT);
        loop {
            if let Some(finished) = self.poll(frontend)? {
                let why = match finished.status {
                    Status::Ok => return Ok(finished),
                    Status::IoError => "failed: I/O error",
                    Status::Unsupported => "is not supported",
                };
                let operation = finished.operation;
                return Err(failed(self.dev_num.0, format!("{operation:?} {why}")));
            }
            if !frontend.wait_before(deadline)? {
                return Err(self.timeout(frontend));
            }
            frontend.pump()?;
        }
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
            if let Some(used) = used.map_err(|e| failed(self.dev_num.0, e))? {
                return self.completed(frontend, used.head).map(Some);
            }
            if !self.queue.rearm() {
                break;
            }
        }
        self.watch_device(frontend)?;
        match self.deadline() {
            Some(deadline) if deadline <= Instant::now() => Err(self.timeout(frontend)),
            _ => Ok(None),
        }
    }

    /// When the oldest request in flight will have taken too long.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let busy = self.slots.iter().filter_map(|slot| slot.busy);
        let oldest = busy.map(|(_, _, since)| since).min()?;
        oldest.checked_add(REQUEST_LIMIT)
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
            .ok_or_else(|| failed(self.dev_num.0, "every slot is busy"))?;
        self.submit(frontend, slot, operation)?;
        self.finish(frontend)
    }
    fn completed(&mut self, frontend: &mut Frontend, head: u16) -> Result<Finished, FrontendError> {
        let dev_num = self.dev_num.0;
        let found = (0..)
            .zip(&mut self.slots)
            .find_map(|(index, slot)| match slot.busy {
                Some((used, operation, since)) if used == head => {
                    slot.busy = None;
                    Some((index, slot.control, operation, since))
                }
                _ => None,
            });
        let Some((slot, control, operation, since)) = found else {
            return Err(failed(
                dev_num,
                format!("used head {head}, which is no request"),
            ));
        };
        let pool = pool(frontend, self.dev_num)?;
        let status = pool
            .translate(pool.address(control, STATUS_AT), 1, Access::Read)
            .ok()
            .and_then(|range| range.read_array::<1>(0).ok());
        let status = match status {
            Some([0]) => Status::Ok,
            Some([1]) => Status::IoError,
            Some([2]) => Status::Unsupported,
            other => {
                return Err(failed(
                    dev_num,
                    format!("{operation:?} ended with status {other:?}"),
                ));
            }
        };
        Ok(Finished {
            slot,
            operation,
            status,
            latency: since.elapsed(),
        })
    }

    fn timeout(&self, frontend: &Frontend) -> FrontendError {
        FrontendError::Timeout {
            handle: frontend.instance().handle,
            what: format!(
                "a request of device {}: is the backend in domain {} alive?",
                self.dev_num.0,
                frontend.instance().backend
            ),
            limit: REQUEST_LIMIT,
        }
    }

    /// Looks for what ends the device while requests are outstanding.
    fn watch_device(&self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        while let Some(action) = frontend.link()?.poll_action() {
            let why = match action {
                DriverBusAction::Removed(number) if number == self.dev_num => "was removed",
                DriverBusAction::PrivateEvent { msg_id, payload }
                    if msg_id.0 == REMOVE_REQUEST && payload == self.dev_num.0.to_le_bytes() =>
                {
                    "is being detached: the backend asks for it"
                }
                DriverBusAction::Device { dev_num, action } if dev_num == self.dev_num => {
                    match action {
                        DriverAction::NeedsReset => "needs a reset: it found the queue broken",
                        DriverAction::Failed(fault) => return Err(failed(dev_num.0, fault)),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            return Err(failed(self.dev_num.0, why));
        }
        Ok(())
    }
}
