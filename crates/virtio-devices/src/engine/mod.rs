//! What a device does that may wait: threads for everything, and io_uring or Linux AIO for the
//! transfers that these really do asynchronously.
//!
//! Which of them is not a matter of taste. io_uring goes on after its process was killed, and in a
//! PV domain the kernel then never unmaps the guest's pages that it names; Linux AIO ends before
//! the process does, but is asynchronous for direct I/O only (binding section 6). What the kernel
//! itself would hand to threads (buffered writes of many file systems, every sync, erasing) runs in
//! ours: they are bounded for each device, which has one of its own, so that a disk that hangs holds
//! up itself only.

mod completions;
mod pool;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use guest_memory::{probe_io_uring, probe_linux_aio};

pub(crate) use completions::Completions;
pub(crate) use pool::{Job, Lane};

/// How transfers are done that would wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring: reads, and with direct I/O writes; threads for the rest.
    IoUring,
    /// Linux AIO: direct I/O; threads for the rest.
    LinuxAio,
    /// Threads.
    Threads,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::LinuxAio => "Linux AIO",
            Self::Threads => "threads",
        })
    }
}

/// The engine that fits a machine, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    /// The engine.
    pub kind: EngineKind,
    /// Why this one, as a clause for a person: "this is a PV domain, where …".
    pub reason: String,
}

impl EngineChoice {
    /// Asks the kernel. In a PV domain of Xen no io_uring may name a guest's pages.
    #[must_use]
    pub fn of_this_machine(is_pv_domain: bool) -> Self {
        let no_uring = if is_pv_domain {
            "this is a PV domain, where io_uring would leave a guest's pages mapped for ever if its process is killed".to_owned()
        } else {
            match probe_io_uring() {
                Ok(()) => {
                    return Self {
                        kind: EngineKind::IoUring,
                        reason: "the kernel offers it, and guest pages are unmapped after it in this domain".to_owned(),
                    };
                }
                Err(error) => {
                    format!("io_uring is refused ({error}; see sysctl kernel.io_uring_disabled)")
                }
            }
        };
        match probe_linux_aio() {
            Ok(()) => Self {
                kind: EngineKind::LinuxAio,
                reason: format!("{no_uring}; it serves images with direct=1, threads serve others"),
            },
            Err(error) => Self {
                kind: EngineKind::Threads,
                reason: format!(
                    "{no_uring}; Linux AIO is refused ({error}; see sysctl fs.aio-max-nr)"
                ),
            },
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.reason)
    }
}

/// What all devices of a process share. Clones are handles to the same threads, which end with
/// the last handle.
#[derive(Clone, Debug)]
pub struct Engine {
    pool: pool::Pool,
    choice: Arc<EngineChoice>,
    /// Stays open as long as any io_uring of its devices does I/O.
    held: Option<Arc<OwnedFd>>,
}

impl Engine {
    /// Threads alone.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn new() -> io::Result<Self> {
        Self::of_kind(EngineKind::Threads)
    }

    /// What fits this machine.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn choose(is_pv_domain: bool) -> io::Result<Self> {
        Self::with(EngineChoice::of_this_machine(is_pv_domain))
    }

    /// A certain kind, for measurements. The caller knows that this is no PV domain.
    ///
    /// # Errors
    /// The kernel refuses it, or the system has no thread left.
    pub fn of_kind(kind: EngineKind) -> io::Result<Self> {
        match kind {
            EngineKind::IoUring => probe_io_uring()?,
            EngineKind::LinuxAio => probe_linux_aio()?,
            EngineKind::Threads => {}
        }
        Self::with(EngineChoice {
            kind,
            reason: "it was asked for".to_owned(),
        })
    }

    fn with(choice: EngineChoice) -> io::Result<Self> {
        Ok(Self {
            pool: pool::Pool::new()?,
            choice: Arc::new(choice),
            held: None,
        })
    }

    /// The same engine for the devices of one guest. `lock` is open until the last I/O of these
    /// devices has ended, also if the process is killed before: so a lock on it says that nothing
    /// of them is in flight (binding section 9).
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn holding(&self, lock: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self {
            held: Some(Arc::new(lock.try_clone_to_owned()?)),
            ..self.clone()
        })
    }

    /// Which it is, and why.
    #[must_use]
    pub fn choice(&self) -> &EngineChoice {
        &self.choice
    }

    /// A lane for one device, with room for so many jobs before it has to grow.
    pub(crate) fn lane(&self, room: usize) -> Lane {
        self.pool.lane(room)
    }

    /// What every io_uring has to hold.
    pub(crate) fn held(&self) -> Option<&OwnedFd> {
        self.held.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_pv_domain_io_uring_is_never_chosen_and_the_reason_is_told() {
        let choice = EngineChoice::of_this_machine(true);
        assert_ne!(choice.kind, EngineKind::IoUring);
        assert!(choice.reason.contains("this is a PV domain"), "{choice}");
        let engine = Engine::choose(true).unwrap();
        assert_eq!(*engine.choice(), choice);
    }

    #[test]
    fn elsewhere_it_is_chosen_where_the_kernel_has_it() {
        let choice = EngineChoice::of_this_machine(false);
        let has = probe_io_uring().is_ok();
        assert_eq!(choice.kind == EngineKind::IoUring, has, "{choice}");
        assert!(choice.to_string().starts_with(&choice.kind.to_string()));
    }
}
