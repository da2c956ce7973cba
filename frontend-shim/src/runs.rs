//! Which bytes of a piece of memory are free: first fit, runs that touch become one.

use std::collections::BTreeMap;

/// Every run begins at a multiple of this, and its length is one.
const UNIT: usize = 64;

/// The free runs of some memory, by offset.
#[derive(Debug)]
pub struct Runs {
    /// Multiples of [`UNIT`], none next to another.
    free: BTreeMap<usize, usize>,
}

impl Runs {
    /// All of `len` bytes are free.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let mut runs = Self {
            free: BTreeMap::new(),
        };
        runs.insert(0, len / UNIT * UNIT);
        runs
    }

    /// Takes `len` bytes at a multiple of `align`, a power of two; their offset. `None`: no run
    /// has so many.
    #[must_use]
    pub fn take(&mut self, len: usize, align: usize) -> Option<usize> {
        let whole = len.checked_next_multiple_of(UNIT)?;
        let align = align.max(UNIT);
        let (start, run, offset) = self.free.iter().find_map(|(start, run)| {
            let offset = start.checked_next_multiple_of(align)?;
            let end = offset.checked_add(whole)?;
            (end <= start.checked_add(*run)?).then_some((*start, *run, offset))
        })?;
        self.free.remove(&start);
        self.insert(start, offset - start);
        self.insert(offset + whole, start + run - offset - whole);
        Some(offset)
    }

    /// Frees the `len` bytes that [`Runs::take`] gave at `offset`.
    pub fn give_back(&mut self, mut offset: usize, len: usize) {
        let mut run = len.next_multiple_of(UNIT);
        if let Some(after) = self.free.remove(&offset.saturating_add(run)) {
            run = run.saturating_add(after);
        }
        if let Some((start, before)) = self.free.range(..offset).next_back()
            && start.saturating_add(*before) == offset
        {
            (offset, run) = (*start, run.saturating_add(*before));
        }
        self.insert(offset, run);
    }

    /// Bytes that are free, not all in one run.
    #[must_use]
    pub fn left(&self) -> usize {
        self.free.values().sum()
    }

    fn insert(&mut self, offset: usize, len: usize) {
        if len > 0 {
            self.free.insert(offset, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_taken_is_aligned_and_apart_and_comes_back(
            wanted in proptest::collection::vec((1usize..5000, 0u32..13), 1..40),
            keep in any::<u64>(),
        ) {
            let mut runs = Runs::new(64 << 10);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (index, (len, shift)) in wanted.into_iter().enumerate() {
                if let Some(offset) = runs.take(len, 1 << shift) {
                    prop_assert_eq!(offset % (1 << shift), 0);
                    prop_assert!(offset + len <= 64 << 10);
                    let apart = |(other, size): &(usize, usize)| {
                        offset + len <= *other || other + size <= offset
                    };
                    prop_assert!(taken.iter().all(apart));
                    taken.push((offset, len));
                }
                if keep >> (index % 64) & 1 == 0 && let Some((offset, len)) = taken.pop() {
                    runs.give_back(offset, len);
                }
            }
            for (offset, len) in taken {
                runs.give_back(offset, len);
            }
            prop_assert_eq!(runs.take(64 << 10, 64), Some(0));
        }
    }
}
