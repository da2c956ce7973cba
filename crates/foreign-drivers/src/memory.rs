//! The memory that a thread's foreign drivers live in: a piece of the shared area, kept mapped for
//! as long as a driver has some of it.
//!
//! One per thread, because the library's memory trait is static. A driver cannot leave the thread:
//! its transport is not `Send`.

use std::cell::RefCell;
use std::ptr::NonNull;

use frontend_shim::Runs;
use guest_memory::LeasedRange;
use virtio_drivers::{PAGE_SIZE, PhysAddr};

/// Where nothing is: 0 is the id of no area (binding section 5). A device that is told of it fails
/// the request.
pub(crate) const NOWHERE: PhysAddr = 0;

thread_local! {
    static MEMORY: RefCell<Option<Memory>> = const { RefCell::new(None) };
}

/// A piece of the shared area.
#[derive(Debug)]
struct Memory {
    bus: u32,
    window: LeasedRange,
    /// Bus address of the window's first byte, a multiple of the page size.
    address: PhysAddr,
    runs: Runs,
    /// Rings that drivers still have.
    rings: usize,
    /// The claim is gone; the last ring takes the memory with it.
    released: bool,
}

/// Holds the thread's memory for one bus.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Not to be sent to another thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Claim {
    /// Makes `window`, whose first byte has bus address `address`, the memory of this thread.
    ///
    /// # Errors
    /// The bus whose memory the thread has.
    pub(crate) fn take(bus: u32, window: LeasedRange, address: PhysAddr) -> Result<Self, u32> {
        MEMORY.with_borrow_mut(|memory| {
            if let Some(other) = memory {
                return Err(other.bus);
            }
            *memory = Some(Memory {
                bus,
                runs: Runs::new(window.len()),
                window,
                address,
                rings: 0,
                released: false,
            });
            Ok(Self {
                _thread: std::marker::PhantomData,
            })
        })
    }

    /// Whether drivers still have rings.
    pub(crate) fn is_used(&self) -> bool {
        with(|memory| memory.rings > 0).unwrap_or(false)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        with(|memory| memory.released = true);
        sweep();
    }
}

/// Takes zeroed pages for rings: their bus address, and where they are here.
pub(crate) fn take_pages(pages: usize) -> Option<(PhysAddr, NonNull<u8>)> {
    let len = pages.checked_mul(PAGE_SIZE)?;
    with(|memory| {
        let offset = memory.runs.take(len, PAGE_SIZE)?;
        memory.window.range().zero(offset as u64, len as u64).ok()?;
        memory.rings += 1;
        let start = memory.window.as_ptr().as_ptr().wrapping_add(offset);
        Some((memory.address + offset as u64, NonNull::new(start)?))
    })?
}

/// Takes pages back.
pub(crate) fn give_back_pages(address: PhysAddr, pages: usize) {
    with(|memory| {
        memory.give_back(address, pages.saturating_mul(PAGE_SIZE));
        memory.rings = memory.rings.saturating_sub(1);
    });
    sweep();
}

/// Takes room for a copy of a buffer; its bus address, or [`NOWHERE`].
pub(crate) fn lend(bytes: &[u8]) -> PhysAddr {
    let lent = with(|memory| {
        let offset = memory.runs.take(bytes.len(), 1)?;
        memory.window.range().write(offset as u64, bytes).ok()?;
        Some(memory.address + offset as u64)
    });
    lent.flatten().unwrap_or_else(|| {
        tracing::error!(
            len = bytes.len(),
            "no room in the shared area: the request will fail"
        );
        NOWHERE
    })
}

/// Takes a buffer back, and copies what it holds into `bytes`.
pub(crate) fn take_back(address: PhysAddr, len: usize, bytes: Option<&mut [u8]>) {
    with(|memory| {
        if let Some(offset) = memory.offset(address, len) {
            if let Some(bytes) = bytes {
                // `offset` says that it is inside.
                let _ = memory.window.range().read(offset as u64, bytes);
            }
            memory.runs.give_back(offset, len);
        }
    });
}

/// The bytes at a bus address, for the transport: 16-bit words of a ring.
pub(crate) fn with_ring<T>(
    address: PhysAddr,
    len: usize,
    work: impl FnOnce(guest_memory::GuestRange<'_>) -> Option<T>,
) -> Option<T> {
    with(|memory| {
        let offset = memory.offset(address, len)?;
        let range = memory.window.range();
        work(range.subrange(offset as u64, len as u64).ok()?)
    })?
}

impl Memory {
    fn give_back(&mut self, address: PhysAddr, len: usize) {
        if let Some(offset) = self.offset(address, len) {
            self.runs.give_back(offset, len);
        }
    }

    fn offset(&self, address: PhysAddr, len: usize) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.address)?).ok()?;
        (offset.checked_add(len)? <= self.window.len()).then_some(offset)
    }
}

/// Works on the thread's memory, if it has some.
fn with<T>(work: impl FnOnce(&mut Memory) -> T) -> Option<T> {
    // A thread that ends has none any more.
    let done = MEMORY.try_with(|memory| memory.borrow_mut().as_mut().map(work));
    done.ok().flatten()
}

/// Lets go of memory that nobody holds or uses.
fn sweep() {
    let _ = MEMORY.try_with(|memory| {
        memory
            .borrow_mut()
            .take_if(|memory| memory.released && memory.rings == 0)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::{Access, Area};

    /// Where the memory of these tests begins.
    const ADDRESS: PhysAddr = 1 << 48;

    fn claim(area: &Area) -> Claim {
        let len = area.len() as u64;
        let window = area.lease().window(0, len, Access::Write).unwrap();
        Claim::take(3, window, ADDRESS).unwrap()
    }

    #[test]
    fn a_buffer_comes_back_with_what_the_device_wrote_and_takes_no_room_then() {
        let area = Area::anonymous(8 * PAGE_SIZE).unwrap();
        let _claim = claim(&area);
        for round in 0..100 {
            let lent = lend(&[1, 2, 3]);
            assert_eq!(lent, ADDRESS);
            let range = area.range(lent - ADDRESS, 3, Access::Write).unwrap();
            assert_eq!(range.read_array(0).unwrap(), [1, 2, 3]);
            range.write(1, &[round]).unwrap();
            let mut bytes = [0; 3];
            take_back(lent, 3, Some(&mut bytes));
            assert_eq!(bytes, [1, round, 3]);
        }
    }

    #[test]
    fn without_room_or_without_a_bus_there_is_no_address() {
        assert_eq!((lend(&[0]), take_pages(1)), (NOWHERE, None));
        let area = Area::anonymous(2 * PAGE_SIZE).unwrap();
        let _claim = claim(&area);
        assert_eq!(lend(&[0; 2 * PAGE_SIZE + 1]), NOWHERE);
        let (first, _) = take_pages(1).unwrap();
        let (second, _) = take_pages(1).unwrap();
        assert_eq!((first, second), (ADDRESS, ADDRESS + PAGE_SIZE as u64));
        assert_eq!((lend(&[0]), take_pages(1)), (NOWHERE, None));
        // Nothing is copied from there, and nothing freed.
        take_back(NOWHERE, 1, Some(&mut [7]));
        assert_eq!(lend(&[0]), NOWHERE);
    }

    #[test]
    fn the_memory_outlives_its_claim_by_the_rings_in_it() {
        let area = Area::anonymous(4 * PAGE_SIZE).unwrap();
        let first = claim(&area);
        let (ring, _) = take_pages(2).unwrap();
        assert!(first.is_used());
        drop(first);
        assert_eq!(area.leases(), 1);
        let window = area.lease().window(0, 64, Access::Write).unwrap();
        let other = Claim::take(4, window, ADDRESS).map(drop);
        assert_eq!(other, Err(3), "the thread still has it");
        give_back_pages(ring, 2);
        assert_eq!(area.leases(), 0);
        drop(claim(&area));
        assert_eq!(area.leases(), 0);
    }
}
