//! The page through which events travel without the broker, as on Xen through the shared info page.
//!
//! Each set of event channels has one memfd, made, sealed and mapped by the broker:
//! page 0 is mapped by every peer too (pending and mask bits), the pages behind it by the owner alone
//! (an epoch word per port, the count of sends).
//!
//! **Why no event is lost.** A sender sets the pending bit, then reads the mask bit. An owner
//! that unmasks clears the mask bit, then reads the pending bit. All four are sequentially consistent,
//! so at least one of the two sees what the other wrote, and signals. An owner that drains reads its
//! eventfd empty first and looks at the bits after it: a bit set after the look comes with a signal after
//! the read. It masks a port before it clears the pending bit, so that an event in between stays pending until
//! the unmask. A signal without a bit can come of all this; it is an empty drain, not an event.

use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};
use xen_types::{EvtchnPort, PAGE_SIZE};

/// Ports of a domain, 0 among them, which is never handed out.
pub const PORTS: usize = 1024;
/// Bits in a word of the bitmaps.
const BITS: usize = 64;
const WORDS: usize = PORTS / BITS;

/// Page 0.
#[derive(Debug)]
#[repr(C)]
struct Bits {
    pending: [AtomicU64; WORDS],
    mask: [AtomicU64; WORDS],
}

/// The pages behind it.
#[derive(Debug)]
#[repr(C)]
struct Private {
    epochs: [AtomicU32; PORTS],
    sends: AtomicU64,
}

const PRIVATE_PAGES: usize = size_of::<Private>().div_ceil(PAGE_SIZE);
const _: () = assert!(size_of::<Bits>() <= PAGE_SIZE);

/// Whether the owner's eventfd must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Signal {
    /// Yes.
    Needed,
    /// No: the event was pending already, or the port is masked.
    No,
}

/// What a peer sees: it can make a port pending.
#[derive(Debug)]
pub struct PendingPage(Mapping);

impl PendingPage {
    /// Maps page 0 of a control page.
    pub fn map(memory: impl AsFd) -> io::Result<Self> {
        Mapping::new(memory, PAGE_SIZE).map(Self)
    }

    /// Makes `port` pending.
    pub fn send(&self, port: EvtchnPort) -> Signal {
        self.0.bits().send(port)
    }
}

/// What owner and broker see.
#[derive(Debug)]
pub struct ControlPage(Mapping);

impl ControlPage {
    /// Bytes that its memory must have.
    pub const LEN: usize = (1 + PRIVATE_PAGES) * PAGE_SIZE;

    /// Maps a control page.
    pub fn map(memory: impl AsFd) -> io::Result<Self> {
        Mapping::new(memory, Self::LEN).map(Self)
    }

    /// Makes `port` pending.
    pub fn send(&self, port: EvtchnPort) -> Signal {
        self.0.bits().send(port)
    }

    /// Appends the pending ports that are not masked, and masks them. The eventfd must have been read before.
    pub fn take(&self, out: &mut Vec<EvtchnPort>) {
        let Bits { pending, mask } = self.0.bits();
        for (word, (pending, mask)) in (0_u32..).zip(pending.iter().zip(mask)) {
            let mut taken = pending.load(Ordering::SeqCst) & !mask.load(Ordering::SeqCst);
            mask.fetch_or(taken, Ordering::SeqCst);
            pending.fetch_and(!taken, Ordering::SeqCst);
            while taken != 0 {
                out.push(EvtchnPort(word * u64::BITS + taken.trailing_zeros()));
                taken &= taken - 1;
            }
        }
    }

    /// Lets `port` report again.
    pub fn unmask(&self, port: EvtchnPort) -> Signal {
        let Some((index, bit)) = place(port) else {
            return Signal::No;
        };
        let Bits { pending, mask } = self.0.bits();
        let (Some(pending), Some(mask)) = (pending.get(index), mask.get(index)) else {
            return Signal::No;
        };
        mask.fetch_and(!bit, Ordering::SeqCst);
        signal_if(pending.load(Ordering::SeqCst) & bit != 0)
    }

    /// A port begins or ends: what was pending or masked of it is forgotten.
    pub fn clear(&self, port: EvtchnPort) {
        let Some((index, bit)) = place(port) else {
            return;
        };
        let Bits { pending, mask } = self.0.bits();
        for word in [pending.get(index), mask.get(index)].into_iter().flatten() {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Whether `port` is pending and not masked.
    #[must_use]
    pub fn is_deliverable(&self, port: EvtchnPort) -> bool {
        let Bits { pending, mask } = self.0.bits();
        place(port).is_some_and(|(index, bit)| {
            let set = |words: &[AtomicU64; WORDS]| {
                words
                    .get(index)
                    .is_some_and(|word| word.load(Ordering::SeqCst) & bit != 0)
            };
            set(pending) && !set(mask)
        })
    }

    /// The word that changes with every change of where `port` leads; `None` for a number that is no port.
    #[must_use]
    pub fn epoch(&self, port: EvtchnPort) -> Option<u32> {
        self.epoch_word(port)
            .map(|word| word.load(Ordering::SeqCst))
    }

    /// Ends every cached route of `port` (the broker's part).
    pub fn bump_epoch(&self, port: EvtchnPort) {
        if let Some(word) = self.epoch_word(port) {
            word.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// One more event was sent.
    pub fn count_send(&self) {
        self.0.private().sends.fetch_add(1, Ordering::Relaxed);
    }

    /// Events sent so far.
    #[must_use]
    pub fn sends(&self) -> u64 {
        self.0.private().sends.load(Ordering::Relaxed)
    }

    fn epoch_word(&self, port: EvtchnPort) -> Option<&AtomicU32> {
        self.0.private().epochs.get(usize::try_from(port.0).ok()?)
    }
}

impl Bits {
    fn send(&self, port: EvtchnPort) -> Signal {
        let Some((index, bit)) = place(port) else {
            return Signal::No;
        };
        let (Some(pending), Some(mask)) = (self.pending.get(index), self.mask.get(index)) else {
            return Signal::No;
        };
        let was_pending = pending.fetch_or(bit, Ordering::SeqCst) & bit != 0;
        signal_if(!was_pending && mask.load(Ordering::SeqCst) & bit == 0)
    }
}

fn signal_if(needed: bool) -> Signal {
    if needed { Signal::Needed } else { Signal::No }
}

/// Word and bit of a port.
fn place(port: EvtchnPort) -> Option<(usize, u64)> {
    let port = usize::try_from(port.0).ok().filter(|port| *port < PORTS)?;
    Some((port / BITS, 1 << (port % BITS)))
}

/// Shared memory that holds [`Bits`] and, if it is long enough, [`Private`].
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only reached through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `memory` is a memfd that the broker sealed, so that nobody can make it shorter.
    fn new(memory: impl AsFd, len: usize) -> io::Result<Self> {
        if u64::try_from(rustix::fs::fstat(&memory)?.st_size).ok() < u64::try_from(len).ok() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, memory, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    fn bits(&self) -> &Bits {
        // SAFETY: at least one page is mapped here, page-aligned, and any bytes are valid atomics.
        unsafe { self.base.cast::<Bits>().as_ref() }
    }

    /// Called for a [`ControlPage`] only.
    fn private(&self) -> &Private {
        debug_assert_eq!(self.len, ControlPage::LEN);
        let private = self.base.as_ptr().wrapping_add(PAGE_SIZE).cast::<Private>();
        // SAFETY: a control page maps `Private` behind page 0, page-aligned; any bytes are valid atomics.
        unsafe { &*private }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference into it borrowed `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!(%error, "munmap of a control page failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;
    use std::os::fd::OwnedFd;

    fn memory() -> OwnedFd {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, ControlPage::LEN as u64).unwrap();
        fd
    }

    fn taken(page: &ControlPage) -> Vec<u32> {
        let mut out = Vec::new();
        page.take(&mut out);
        out.into_iter().map(|port| port.0).collect()
    }

    const PORT: EvtchnPort = EvtchnPort(70);

    #[test]
    fn only_the_first_event_signals() {
        let fd = memory();
        let (page, peer) = (
            ControlPage::map(&fd).unwrap(),
            PendingPage::map(&fd).unwrap(),
        );
        assert_eq!(peer.send(PORT), Signal::Needed);
        assert_eq!(peer.send(PORT), Signal::No);
        assert_eq!(peer.send(EvtchnPort(1)), Signal::Needed);
        assert_eq!(taken(&page), [1, 70]);
        assert_eq!(taken(&page), []);
    }

    #[test]
    fn an_event_at_a_masked_port_waits_for_the_unmask() {
        let page = ControlPage::map(memory()).unwrap();
        assert_eq!(page.send(PORT), Signal::Needed);
        assert_eq!(taken(&page), [70]);
        assert_eq!(page.send(PORT), Signal::No);
        assert_eq!(taken(&page), []);
        assert_eq!(page.unmask(PORT), Signal::Needed);
        assert_eq!(taken(&page), [70]);
        assert_eq!(page.unmask(PORT), Signal::No);
        assert_eq!(page.send(PORT), Signal::Needed);
    }

    #[test]
    fn the_bounds_hold() {
        let page = ControlPage::map(memory()).unwrap();
        assert_eq!(page.send(EvtchnPort(1023)), Signal::Needed);
        for port in [1024, u32::MAX].map(EvtchnPort) {
            assert_eq!(page.send(port), Signal::No);
            assert_eq!(page.unmask(port), Signal::No);
            assert_eq!(page.epoch(port), None);
        }
        assert_eq!(taken(&page), [1023]);
    }

    #[test]
    fn short_memory_is_refused() {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, (ControlPage::LEN - 1) as u64).unwrap();
        assert!(ControlPage::map(&fd).is_err());
        assert!(PendingPage::map(&fd).is_ok());
    }

    /// Two threads at full speed: each event is seen, though the port is masked in between.
    #[test]
    fn no_event_is_lost_between_send_and_unmask() {
        const ROUNDS: u32 = 20_000;
        let fd = memory();
        let (page, peer) = (
            ControlPage::map(&fd).unwrap(),
            PendingPage::map(&fd).unwrap(),
        );
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let wake = rustix::event::eventfd(0, flags).unwrap();
        let signal = |signal| {
            if signal == Signal::Needed {
                rustix::io::write(&wake, &1_u64.to_ne_bytes()).unwrap();
            }
        };
        let (sent, seen) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    sent.store(round, Ordering::SeqCst);
                    signal(peer.send(PORT));
                    // Every 64th event is waited for, so that a lost one hangs the test.
                    while round % 64 == 0 && seen.load(Ordering::SeqCst) < round {
                        std::thread::yield_now();
                    }
                }
            });
            while seen.load(Ordering::SeqCst) < ROUNDS / 64 * 64 {
                rustix::io::read(&wake, &mut [0; 8]).unwrap();
                if taken(&page) == [70] {
                    seen.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
                    signal(page.unmask(PORT));
                }
            }
        });
    }
}
