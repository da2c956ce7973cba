//! Which sync covers which request (fact sheet section 4.4).
//!
//! At most one sync of an image runs. What asks for stable storage meanwhile shares the next one,
//! which begins after all of them were taken. One at a time also because the kernel tells a lost
//! write to one caller only: a second sync beside it could come back clean.

use std::collections::VecDeque;
use std::io;
use std::mem;

use super::job::Waiting;

/// The syncs of one image.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    running: bool,
    /// A sync has failed: the kernel may call the next one clean although data was lost.
    failed: bool,
    /// Requests, besides the one that runs it, that the running sync covers.
    covered: Vec<Waiting>,
    /// Requests that came after the running sync had begun.
    waiting: Vec<Waiting>,
}

impl Flushes {
    /// Whether stable storage can never be promised again, until the image is opened anew.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// Adds a request. If one comes back, run its sync now.
    #[must_use]
    pub(super) fn join(&mut self, job: Waiting) -> Option<Waiting> {
        if self.running {
            self.waiting.push(job);
            return None;
        }
        self.running = true;
        Some(job)
    }

    /// The running sync has ended: appends to `ended` the requests that end with it, and answers
    /// the one that runs the next.
    #[must_use]
    pub(super) fn end(&mut self, fine: bool, ended: &mut VecDeque<Waiting>) -> Option<Waiting> {
        if !fine {
            self.failed = true;
            self.running = false;
            for mut job in self.covered.drain(..).chain(self.waiting.drain(..)) {
                job.result = Err(io::ErrorKind::Other.into());
                ended.push_back(job);
            }
            return None;
        }
        ended.extend(self.covered.drain(..));
        mem::swap(&mut self.covered, &mut self.waiting);
        let next = self.covered.pop();
        self.running = next.is_some();
        next
    }
}
