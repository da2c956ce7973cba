//! Devices of the bus as their drivers see them: find one, start it, hear of it, reset it
//! (binding section 8, virtio-msg sections 7.1 and 7.3).
//!
//! A driver side that is started here stays on the bus until [`Frontend::reset_device`]. What one
//! device has to say never takes from another's.

use std::time::Duration;

use virtio_msg::wire::DevNum;
use virtio_msg::{DriverAction, DriverConfig, DriverSide, Features};

use super::Frontend;
use crate::bring_up::NO_MEMORY;
use crate::error::FrontendError;
use crate::pool::Pool;

/// What a driver wants of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Bits that the driver knows.
    pub features: Features,
    /// Queues that it can use: those of lower number.
    pub queues: u16,
    /// Bytes of configuration space that it knows.
    pub config_len: u32,
}

impl Frontend {
    /// The device numbers on the bus, ascending.
    ///
    /// # Errors
    /// The connection ended, or the backend does not answer.
    pub fn devices(&mut self) -> Result<Vec<u16>, FrontendError> {
        let link = self.link()?;
        let now = link.now();
        link.bus().enumerate(now);
        link.news().begin_enumeration();
        let limit = self.limits.answer;
        self.until(limit, "GET_DEVICES", |link| link.news().enumerated())?
            .ok_or_else(|| self.late("GET_DEVICES", limit))?;
        let link = self.link()?;
        let mut found: Vec<u16> = link.bus().devices().map(|dev_num| dev_num.0).collect();
        found.extend(link.news().present());
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Begins to bring device `dev_num` up, from whatever state.
    ///
    /// # Errors
    /// The connection ended, there is no such device, or it is in use.
    pub fn start_device(&mut self, dev_num: u16, wants: Wants) -> Result<(), FrontendError> {
        let number = DevNum(dev_num);
        let link = self.link()?;
        if link.bus().device(number).is_some() {
            return Err(self.device_error(dev_num, "is in use already"));
        }
        // What the bus said last stands until it says otherwise, so it is asked only about others.
        if !link.news().present().any(|present| present == dev_num) {
            let known = self.devices()?;
            if !known.contains(&dev_num) {
                let why = format_args!("is not on this bus; it has {known:?}");
                return Err(self.device_error(dev_num, why));
            }
        }
        let limits = self.limits;
        let link = self.link()?;
        let (max, now) = (link.max_message_size(), link.now());
        let wants = DriverConfig {
            features: wants.features,
            queues: wants.queues,
            config_len: wants.config_len,
            request_timeout: limits.answer,
            reset_timeout: limits.reset,
        };
        link.bus().add_device(number, DriverSide::new(wants, max));
        link.bus().update(number, |device| device.start(now));
        Ok(())
    }

    /// Does something with a device that was started.
    ///
    /// # Errors
    /// The connection ended, or the device was removed.
    pub fn with_device<T>(
        &mut self,
        dev_num: u16,
        work: impl FnOnce(&mut DriverSide) -> T,
    ) -> Result<T, FrontendError> {
        let done = self.link()?.bus().update(DevNum(dev_num), work);
        done.ok_or_else(|| self.device_error(dev_num, "was removed"))
    }

    /// What a device has for its driver, if it has something; never waits.
    ///
    /// # Errors
    /// The connection ended, the device was removed, or the backend asks to be given it back.
    pub fn poll_device(&mut self, dev_num: u16) -> Result<Option<DriverAction>, FrontendError> {
        let action = self.with_device(dev_num, DriverSide::poll_action)?;
        if action.is_none() && self.link()?.news().is_leaving(dev_num) {
            let handle = self.instance.handle;
            return Err(FrontendError::Leaving { handle, dev_num });
        }
        Ok(action)
    }

    /// Looks for what ends a device while requests are outstanding.
    pub(crate) fn watch_device(&mut self, dev_num: u16) -> Result<(), FrontendError> {
        while let Some(action) = self.poll_device(dev_num)? {
            match action {
                DriverAction::NeedsReset => {
                    let why = "needs a reset: it found the queue broken";
                    return Err(self.device_error(dev_num, why));
                }
                DriverAction::Failed(fault) => return Err(self.device_error(dev_num, fault)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The memory that a device lives in since `connection`, unless that went with its connection.
    pub(crate) fn pool_of(
        &mut self,
        dev_num: u16,
        connection: u64,
    ) -> Result<&mut Pool, FrontendError> {
        let handle = self.instance.handle;
        let failed = |why| FrontendError::device(handle, dev_num, why);
        let link = self.link()?;
        if link.number() != connection {
            let why = "went with a connection that has ended: open it anew";
            return Err(failed(why));
        }
        link.pool_mut().ok_or_else(|| failed(NO_MEMORY))
    }

    /// Waits for what a device has for its driver.
    ///
    /// # Errors
    /// The connection ended, the device was removed, or nothing came within `limit`.
    pub fn wait_device(
        &mut self,
        dev_num: u16,
        limit: Duration,
    ) -> Result<DriverAction, FrontendError> {
        let (handle, number) = (self.instance.handle, DevNum(dev_num));
        self.until(limit, format_args!("device {dev_num}"), |link| {
            match link.bus().update(number, DriverSide::poll_action) {
                None => Some(Err(FrontendError::device(handle, dev_num, "was removed"))),
                Some(action) => action.map(Ok),
            }
        })?
    }

    /// Resets a device and takes its driver side off the bus: the device side touches nothing of
    /// ours any more. A device that was removed, before or meanwhile, is as good as reset.
    ///
    /// # Errors
    /// The connection ended, or the device does not reset: its memory may still be in use. The
    /// driver side is gone all the same.
    pub fn reset_device(&mut self, dev_num: u16) -> Result<(), FrontendError> {
        let (handle, number) = (self.instance.handle, DevNum(dev_num));
        let link = self.link()?;
        let now = link.now();
        link.bus().update(number, |device| device.start_reset(now));
        let what = format_args!("the reset of device {dev_num}");
        let limit = self.limits.reset;
        let reset = self.until(limit, what, |link| {
            match link.bus().update(number, DriverSide::poll_action) {
                None | Some(Some(DriverAction::ResetDone)) => Some(Ok(())),
                Some(Some(DriverAction::Failed(fault))) => {
                    Some(Err(FrontendError::device(handle, dev_num, fault)))
                }
                Some(_) => None,
            }
        });
        self.drop_device(dev_num);
        reset?
    }

    /// That a device of this bus cannot be used.
    #[must_use]
    pub fn device_error(&self, dev_num: u16, why: impl ToString) -> FrontendError {
        FrontendError::device(self.instance.handle, dev_num, why)
    }

    /// Takes the driver side of a device off the bus, which knows no memory of ours.
    pub(crate) fn drop_device(&mut self, dev_num: u16) {
        if let Some(link) = &mut self.link {
            link.bus().remove_device(DevNum(dev_num));
            link.news().forget(dev_num);
        }
    }
}
