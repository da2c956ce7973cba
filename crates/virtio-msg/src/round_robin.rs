//! A set of pending marks that is served fairly: the "bits" of the binding, section 4.
//!
//! Setting a mark never fails; a second mark for the same key replaces the first. Taking goes round by key.

use alloc::collections::BTreeMap;
use core::ops::Bound;

/// Pending marks by key, each with a value (nothing, or the newest of something).
#[derive(Clone, Debug)]
pub(crate) struct RoundRobin<K, V = ()> {
    marks: BTreeMap<K, V>,
    last: Option<K>,
}

impl<K: Ord + Clone, V> RoundRobin<K, V> {
    pub(crate) const fn new() -> Self {
        RoundRobin {
            marks: BTreeMap::new(),
            last: None,
        }
    }

    pub(crate) fn set(&mut self, key: K, value: V) {
        self.marks.insert(key, value);
    }

    pub(crate) fn clear(&mut self, key: &K) -> Option<V> {
        self.marks.remove(key)
    }

    pub(crate) fn clear_all(&mut self) {
        self.marks.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.marks.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.marks.iter()
    }

    /// The mark whose turn it is: the first after the one taken last.
    pub(crate) fn take(&mut self) -> Option<(K, V)> {
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.marks.range((after, Bound::Unbounded)).next();
        let key = next
            .or_else(|| self.marks.first_key_value())
            .map(|(key, _)| key.clone())?;
        let taken = self.marks.remove_entry(&key);
        self.last = Some(key);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_key_does_not_starve_the_others() {
        let mut marks = RoundRobin::new();
        marks.set(1, 'a');
        marks.set(2, 'b');
        assert_eq!(marks.take(), Some((1, 'a')));
        marks.set(1, 'c');
        assert_eq!(marks.take(), Some((2, 'b')));
        assert_eq!(marks.take(), Some((1, 'c')));
        assert_eq!(marks.take(), None);
    }

    #[test]
    fn the_newest_value_stands() {
        let mut marks = RoundRobin::new();
        marks.set(7, 1);
        marks.set(7, 2);
        assert_eq!(marks.take(), Some((7, 2)));
        assert!(marks.is_empty());
    }
}
