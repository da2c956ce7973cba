//! What a frontend does while it runs: takes events, watches and timers, moves messages, sleeps
//! (binding section 4).

use std::cell::Cell;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Frontend, WATCH_ONLINE};
use crate::error::FrontendError;
use crate::link::Link;

impl Frontend {
    /// Does what can be done at once.
    ///
    /// # Errors
    /// XenStore or this host failed; a fault of the backend ends the connection instead.
    pub fn pump(&mut self) -> Result<(), FrontendError> {
        let readable = std::mem::take(&mut self.readable);
        if readable.store || self.store.has_event() {
            self.take_watches()?;
        }
        self.take_timers();
        let came = readable.channels && self.take_events()?;
        if let Some(link) = &mut self.link {
            if came {
                link.event();
            }
            let acknowledged = link.acknowledge(&self.channels);
            self.check(acknowledged)?;
        }
        if self.look {
            self.negotiate()?;
        }
        self.pump_link()
    }

    /// Sends and receives what is there, without a look at XenStore.
    fn pump_link(&mut self) -> Result<(), FrontendError> {
        if self.handshake.is_connected()
            && let Some(link) = &mut self.link
        {
            let pumped = link.pump();
            self.check(pumped)?;
        }
        Ok(())
    }

    /// Publishes what was sent, and notifies the backend if it sleeps, without waiting for anything.
    ///
    /// # Errors
    /// XenStore or this host failed; a fault of the backend ends the connection instead.
    pub fn flush(&mut self) -> Result<(), FrontendError> {
        if self.handshake.is_connected()
            && let Some(link) = &mut self.link
        {
            let sent = link.prepare_sleep(&self.channels);
            self.check(sent)?;
        }
        Ok(())
    }

    /// Sleeps until there may be something to do, at most until `deadline` (`None`: for ever).
    /// False: the deadline has passed.
    ///
    /// # Errors
    /// XenStore or this host failed.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool, FrontendError> {
        self.wait_with(deadline, &mut [])
    }

    /// As [`Frontend::wait`], but false also if there is always something to do: a backend that
    /// never stops sending does not outlast a deadline.
    pub(crate) fn wait_before(&mut self, deadline: Option<Instant>) -> Result<bool, FrontendError> {
        let in_time = deadline.is_none_or(|deadline| !self.has_passed(deadline));
        Ok(in_time && self.wait(deadline)?)
    }

    /// As [`Frontend::wait`], and for `others` as well; says of each what it is ready for, also if
    /// it did not have to sleep.
    ///
    /// # Errors
    /// XenStore or this host failed.
    pub fn wait_with(
        &mut self,
        deadline: Option<Instant>,
        others: &mut [Watched<'_>],
    ) -> Result<bool, FrontendError> {
        let mut at_once = false;
        if self.handshake.is_connected()
            && let Some(link) = &mut self.link
        {
            let slept = link.prepare_sleep(&self.channels);
            at_once = !self.check(slept)?.unwrap_or(false);
        }
        at_once |= self.look || self.store.has_event();
        if !at_once && deadline.is_some_and(|deadline| self.has_passed(deadline)) {
            return Ok(false);
        }
        let timeout = match at_once {
            true => Some(Duration::ZERO),
            false => self.time_out(deadline)?,
        };
        let own = [
            self.store.as_fd(),
            self.channels.as_fd(),
            self.alarm.as_fd(),
        ];
        let readable = &mut self.readable;
        let ask = |timeout| poll_all(own, readable, others, timeout);
        // Whoever never looks for an event before sleeping needs no clock.
        let (clock, begin) = (&self.clock, Cell::new(None));
        let elapsed = || match begin.get() {
            Some(begin) => clock.exact().saturating_duration_since(begin),
            None => {
                begin.set(Some(clock.exact()));
                Duration::ZERO
            }
        };
        match self.patience.wait(timeout, elapsed, ask) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        if std::mem::take(&mut self.readable.alarm) {
            self.alarm.went_off()?;
        }
        Ok(true)
    }

    /// The time-out of a sleep until `deadline`, or until a timer of the bus before it; none if the
    /// alarm covers that.
    fn time_out(&mut self, deadline: Option<Instant>) -> Result<Option<Duration>, FrontendError> {
        let bus = self.link.as_ref().and_then(Link::deadline);
        let wait = self.wait.map(|(_, at)| at);
        let first = [deadline, self.retry_at, wait, bus]
            .into_iter()
            .flatten()
            .min();
        match first {
            Some(first) => Ok(self.alarm.cover(first, &self.clock)?),
            None => Ok(None),
        }
    }

    /// How often XenStore's connection was read: never on the path of a request.
    #[must_use]
    pub fn store_reads(&self) -> u64 {
        self.store.reads()
    }

    /// Turns a fault of the link into the end of the connection.
    fn check<T>(&mut self, result: Result<T, FrontendError>) -> Result<Option<T>, FrontendError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ (FrontendError::Store(_) | FrontendError::Io(_))) => Err(error),
            Err(fault) => {
                tracing::warn!(handle = self.instance.handle, %fault, "the connection ends");
                self.last_fault = Some(fault.to_string());
                self.handshake.fault();
                self.look = true;
                Ok(None)
            }
        }
    }

    fn take_watches(&mut self) -> Result<(), FrontendError> {
        while let Some(event) = self.store.next_event()? {
            if event.token == WATCH_ONLINE {
                self.handshake.online_written();
                self.online = None;
            }
            // The first look is worth its requests once it will not be repeated for them.
            self.unheard = self.unheard.saturating_sub(1);
            self.look |= self.unheard == 0;
        }
        Ok(())
    }

    fn take_timers(&mut self) {
        if self.retry_at.is_some_and(|at| self.has_passed(at)) {
            self.retry_at = None;
            self.look = true;
        }
        if let Some((wait, at)) = self.wait
            && self.has_passed(at)
        {
            self.wait = None;
            self.handshake.timed_out(wait);
            self.look = true;
        }
    }

    fn take_events(&mut self) -> Result<bool, FrontendError> {
        self.ports.clear();
        self.channels.pending(&mut self.ports)?;
        Ok(!self.ports.is_empty())
    }
}

/// Which of its own descriptors a frontend has to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readable {
    store: bool,
    channels: bool,
    alarm: bool,
}

impl Readable {
    fn of(polled: &[PollFd<'_>; 3]) -> Self {
        let [store, channels, alarm] = polled.each_ref().map(|polled| !polled.revents().is_empty());
        Self {
            store,
            channels,
            alarm,
        }
    }
}

/// Nobody has looked: then only a look tells.
impl Default for Readable {
    fn default() -> Self {
        Self {
            store: true,
            channels: true,
            alarm: false,
        }
    }
}

/// A descriptor of somebody else that is waited for as well.
#[derive(Debug)]
pub struct Watched<'fd> {
    /// The descriptor.
    pub fd: BorrowedFd<'fd>,
    /// What to wait for.
    pub interest: PollFlags,
    /// What it is ready for.
    pub ready: PollFlags,
}

impl<'fd> Watched<'fd> {
    /// To wait for `interest`.
    #[must_use]
    pub fn new(fd: BorrowedFd<'fd>, interest: PollFlags) -> Self {
        let ready = PollFlags::empty();
        Self {
            fd,
            interest,
            ready,
        }
    }
}

/// Whether any is ready.
fn poll_all(
    own: [BorrowedFd<'_>; 3],
    readable: &mut Readable,
    others: &mut [Watched<'_>],
    timeout: Option<Duration>,
) -> rustix::io::Result<bool> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut own = own.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    if others.is_empty() {
        // The path of a request: no allocation.
        let ready = poll(&mut own, timeout.as_ref())?;
        *readable = Readable::of(&own);
        return Ok(ready > 0);
    }
    let watched = others
        .iter()
        .map(|other| PollFd::from_borrowed_fd(other.fd, other.interest));
    let mut all: Vec<_> = own.into_iter().chain(watched).collect();
    let ready = poll(&mut all, timeout.as_ref())?;
    if let Some((own, polled)) = all.split_first_chunk() {
        *readable = Readable::of(own);
        for (other, polled) in others.iter_mut().zip(polled) {
            other.ready = polled.revents();
        }
    }
    Ok(ready > 0)
}
