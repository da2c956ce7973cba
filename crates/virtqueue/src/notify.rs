//! When the peer must be notified (VIRTIO 1.4, 2.7.7 and 2.7.10).

/// True if moving an index from `old` to `new` passes `event`, modulo 65,536: with EVENT_IDX, if
/// the peer asked to hear of entry `event` and it is among those added since the last check.
#[inline]
#[must_use]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// One side's memory of its last check under EVENT_IDX.
///
/// `old` must be the index at the last *check*, not at the last publication, or a batch loses its
/// notification. Right after a start or an import there is none, and the peer is notified whatever
/// its event says. 65,536 entries without a check, after which `old` would mean nothing, cannot
/// happen: each publication checks, and covers at most the 32,768 entries of a ring.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    checked: Option<u16>,
}

impl Notifier {
    /// Checks at index `new`: must the peer, who asked for `event`, be notified?
    #[inline]
    pub(crate) fn check(&mut self, event: u16, new: u16) -> bool {
        match self.checked.replace(new) {
            Some(old) => need_event(event, new, old),
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_vectors() {
        for (event, new, old) in [
            (0x0000, 0x0001, 0x0000),
            (0x0004, 0x0005, 0x0000),
            (0x0002, 0x0003, 0x0002),
            (0xffff, 0x0000, 0xffff),
            (0xffff, 0x0001, 0xfffe),
            (0x0000, 0x0001, 0xfffe),
            (0x7fff, 0x8000, 0x7fff),
            (0x0000, 0x8000, 0x0000),
            (0x7fff, 0x8000, 0x0000),
        ] {
            assert!(need_event(event, new, old), "{event:x} {new:x} {old:x}");
        }
        for (event, new, old) in [
            (0x0000, 0x0000, 0x0000),
            (0x0000, 0x0002, 0x0001),
            (0x0005, 0x0005, 0x0000),
            (0x0000, 0x0005, 0x0001),
            (0x0003, 0x0003, 0x0002),
            (0xfffe, 0x0000, 0xffff),
            (0xfffd, 0x0001, 0xfffe),
            (0x0001, 0x0001, 0xfffe),
            (0x8000, 0x8000, 0x7fff),
            (0x8000, 0x8000, 0x0000),
        ] {
            assert!(!need_event(event, new, old), "{event:x} {new:x} {old:x}");
        }
    }

    /// Counts the entries old, old + 1, ..., new - 1 and looks whether `event` is one of them.
    fn counted(event: u16, new: u16, old: u16) -> bool {
        let mut at = old;
        while at != new {
            if at == event {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    #[test]
    fn r10_agrees_with_a_counting_model_around_the_corners() {
        const CORNERS: [u16; 3] = [0, 0x7fff, 0xffff];
        const NEAR: u16 = 24;
        for corner in CORNERS {
            let first = corner.wrapping_sub(NEAR);
            for old in (0..2 * NEAR).map(|step| first.wrapping_add(step)) {
                for batch in 0..NEAR {
                    let new = old.wrapping_add(batch);
                    for event in CORNERS.iter().flat_map(|at| {
                        (0..4 * NEAR).map(move |step| at.wrapping_sub(2 * NEAR).wrapping_add(step))
                    }) {
                        assert_eq!(
                            need_event(event, new, old),
                            counted(event, new, old),
                            "{event:x} {new:x} {old:x}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn r10_agrees_with_a_counting_model_for_large_batches() {
        for (old, batch) in [(0, 0x7fff), (0x7fff, 0x8000), (0xffff, 0x8000), (1, 0xffff)] {
            let new = u16::wrapping_add(old, batch);
            for event in [0, 1, 2, 0x7ffe, 0x7fff, 0x8000, 0xfffe, 0xffff] {
                assert_eq!(
                    need_event(event, new, old),
                    counted(event, new, old),
                    "{event:x} {new:x} {old:x}"
                );
            }
        }
    }

    #[test]
    fn first_check_notifies_whatever_the_event_says() {
        let mut notifier = Notifier::default();
        assert!(notifier.check(0x4000, 1));
        assert!(!notifier.check(0x4000, 2));
        assert!(notifier.check(2, 3));
    }
}
