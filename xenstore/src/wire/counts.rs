//! How many requests of each type were made: the figures of bring-up are counted in them.

use super::MessageType;

/// One more than the highest type that the protocol knows.
const TYPES: usize = 23;

/// A counter per message type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    known: [u64; TYPES],
    unknown: u64,
}

impl RequestCounts {
    /// Requests of one type. All types that the protocol does not know share one counter.
    #[must_use]
    pub fn of(&self, kind: MessageType) -> u64 {
        self.slot(kind).copied().unwrap_or(self.unknown)
    }

    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.known
            .iter()
            .fold(self.unknown, |sum, count| sum.saturating_add(*count))
    }

    pub(crate) fn count(&mut self, kind: MessageType) {
        let slot = usize::try_from(kind.0)
            .ok()
            .and_then(|index| self.known.get_mut(index))
            .unwrap_or(&mut self.unknown);
        *slot = slot.saturating_add(1);
    }

    fn slot(&self, kind: MessageType) -> Option<&u64> {
        self.known.get(usize::try_from(kind.0).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_its_counter_and_strangers_share_one() {
        let mut counts = RequestCounts::default();
        for kind in [1, 22, 22, 23, u32::MAX] {
            counts.count(MessageType(kind));
        }
        assert_eq!(counts.of(MessageType::DIRECTORY), 1);
        assert_eq!(counts.of(MessageType::DIRECTORY_PART), 2);
        assert_eq!(counts.of(MessageType(77)), 2);
        assert_eq!(counts.of(MessageType::READ), 0);
        assert_eq!(counts.total(), 5);
    }
}
