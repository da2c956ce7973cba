//! A ring in memory that two domains share: opening it from either side, and [`RingWords`] over it
//! (binding section 4).

use std::sync::atomic::{Ordering, fence};

use guest_memory::{Access, LeasedArray, LeasedRange, RangeError, ReadWrite};
use xen_types::Session;

use super::{Fence, MessageRing, RingState, RingWords, Role, Word};
use crate::layout::{RingLayout, SLOTS_OFFSET};

/// "XVMB", the first word of every ring.
pub const RING_MAGIC: u32 = 0x424d_5658;

/// Number of the layout that this module implements.
pub const RING_VERSION: u32 = 1;

/// Why a ring cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The peer's header contradicts the keys in XenStore.
    #[error("ring header: {field} is {got:#x}, {expected:#x} expected")]
    Header {
        /// The field.
        field: &'static str,
        /// What the keys say.
        expected: u32,
        /// What the header says.
        got: u32,
    },
    /// The caller's window is not exactly the ring, writable and aligned.
    #[error("a ring of {expected} bytes cannot lie in a window of {len} bytes ({access:?})")]
    Window {
        /// Bytes of the layout.
        expected: u64,
        /// Bytes of the window.
        len: usize,
        /// The right to the window.
        access: Access,
    },
}

impl MessageRing<GuestWords> {
    /// The frontend's side of a new ring in `window`: clears it and writes the header. To be done
    /// before the frontend publishes state 3.
    ///
    /// # Errors
    /// The window does not go with the layout.
    pub fn create(
        window: LeasedRange,
        layout: RingLayout,
        session: Session,
    ) -> Result<Self, OpenError> {
        let words = GuestWords::new(window, &layout)?;
        words.clear();
        words.write_header(&layout, session);
        Ok(Self::fresh(words, layout, Role::Frontend))
    }

    /// The backend's side of the ring that a frontend of `session` has made in `window`.
    ///
    /// # Errors
    /// The header contradicts `layout` or `session`, or the window does not go with the layout.
    pub fn attach(
        window: LeasedRange,
        layout: RingLayout,
        session: Session,
    ) -> Result<Self, OpenError> {
        let words = GuestWords::new(window, &layout)?;
        words.check_header(&layout, session)?;
        Ok(Self::fresh(words, layout, Role::Backend))
    }

    /// The backend's side of a ring in use, after a restart (binding section 9). See
    /// [`MessageRing::resumed`] for what the caller owes.
    ///
    /// # Errors
    /// As [`MessageRing::attach`].
    pub fn reattach(
        window: LeasedRange,
        layout: RingLayout,
        session: Session,
        state: RingState,
    ) -> Result<Self, OpenError> {
        let words = GuestWords::new(window, &layout)?;
        words.check_header(&layout, session)?;
        Ok(Self::resumed(words, layout, Role::Backend, state))
    }
}

/// Words from the start of a ring on, as a power of two: the header and all of [`Word`].
const WORDS_ORDER: u32 = 7;
// An index too large would come back inside of the array.
const _: () = assert!(SLOTS_OFFSET <= 4 << WORDS_ORDER);

/// [`RingWords`] over memory that the peer can write at any time.
#[derive(Debug)]
pub struct GuestWords {
    /// The header, all of [`Word`], and of the slots what a power of two takes in.
    words: LeasedArray<u32, 1, ReadWrite>,
    /// All of the ring.
    window: LeasedRange,
}

impl GuestWords {
    pub(super) fn new(window: LeasedRange, layout: &RingLayout) -> Result<Self, OpenError> {
        let range = window.range();
        let refusal = OpenError::Window {
            expected: layout.bytes(),
            len: range.len(),
            access: range.access(),
        };
        if range.len() as u64 != layout.bytes() {
            return Err(refusal);
        }
        let words = LeasedArray::new(&window, 0, WORDS_ORDER).map_err(|_| refusal)?;
        Ok(Self { words, window })
    }

    fn clear(&self) {
        let range = self.window.range();
        checked(range.zero(0, range.len() as u64));
    }

    fn write_header(&self, layout: &RingLayout, session: Session) {
        for (index, (_, value)) in header(layout, session).into_iter().enumerate() {
            self.words.store(index, [value], Ordering::Relaxed);
        }
    }

    /// Reads each field once.
    fn check_header(&self, layout: &RingLayout, session: Session) -> Result<(), OpenError> {
        for (index, (field, expected)) in header(layout, session).into_iter().enumerate() {
            let [got] = self.words.load(index, Ordering::Relaxed);
            if got != expected {
                return Err(OpenError::Header {
                    field,
                    expected,
                    got,
                });
            }
        }
        Ok(())
    }
}

impl RingWords for GuestWords {
    #[inline]
    fn load(&self, word: Word) -> u32 {
        let order = match word {
            Word::Producer(_) | Word::Consumer(_) => Ordering::Acquire,
            Word::WakeAt(_) | Word::SpaceAt(_) => Ordering::Relaxed,
        };
        let [value] = self.words.load(index(word), order);
        value
    }

    #[inline]
    fn store(&self, word: Word, value: u32) {
        let order = match word {
            Word::Producer(_) | Word::Consumer(_) => Ordering::Release,
            Word::WakeAt(_) | Word::SpaceAt(_) => Ordering::Relaxed,
        };
        self.words.store(index(word), [value], order);
    }

    #[inline]
    fn fence(&self, _: Fence) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn read(&self, offset: u64, into: &mut [u8]) {
        checked(self.window.range().read(offset, into));
    }

    #[inline]
    fn write(&self, offset: u64, frame: &[u8]) {
        checked(self.window.range().write(offset, frame));
    }
}

/// Where a word lies among the words of a ring.
#[inline]
const fn index(word: Word) -> usize {
    (word.offset() / 4) as usize
}

/// The header: name and value of each word, from offset 0 on.
fn header(layout: &RingLayout, session: Session) -> [(&'static str, u32); 5] {
    [
        ("magic", RING_MAGIC),
        ("layout", RING_VERSION),
        ("stride", layout.stride()),
        ("slots", layout.slots()),
        ("session", session.0),
    ]
}

/// The result of an access at an offset that [`RingLayout`] gave. [`GuestWords::new`] has compared
/// the window with the layout, so no peer can make it fail.
#[inline]
fn checked<T>(result: Result<T, RangeError>) -> T {
    result.unwrap_or_else(|error| unreachable!("outside of a ring that was checked: {error}"))
}
