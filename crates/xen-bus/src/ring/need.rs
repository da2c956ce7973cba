//! NEED: whether a published index passes the point at which the peer wants to be woken
//! (binding section 4).

/// Whether moving an index from `old` to `new` steps over `at`: the peer waits until the index
/// that it saw as `at` has moved. All three run modulo 2^32.
pub(super) const fn need(new: u32, old: u32, at: u32) -> bool {
    new.wrapping_sub(at).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::need;

    /// The published text carries this table: (new, old, at, NEED).
    const VECTORS: [(u32, u32, u32, bool); 20] = [
        // the first message into a fresh ring notifies
        (1, 0, 0, true),
        // nothing published, nothing to tell
        (0, 0, 0, false),
        (1, 1, 0, false),
        (5, 5, 5, false),
        (0, 0, 0xffff_ffff, false),
        // the peer waits at the index that is left
        (6, 5, 5, true),
        // the peer waits further on, or woke earlier
        (6, 5, 6, false),
        (6, 5, 4, false),
        (6, 5, 0, false),
        // a batch passes the point anywhere inside
        (9, 5, 5, true),
        (9, 5, 7, true),
        (9, 5, 8, true),
        (9, 5, 9, false),
        // across the wrap
        (0, 0xffff_ffff, 0xffff_ffff, true),
        (0, 0xffff_ffff, 0, false),
        (0, 0xffff_ffff, 0xffff_fffe, false),
        (2, 0xffff_fffe, 0xffff_fffd, false),
        (2, 0xffff_fffe, 0xffff_fffe, true),
        (2, 0xffff_fffe, 1, true),
        (2, 0xffff_fffe, 2, false),
    ];

    #[test]
    fn need_gives_the_published_vectors() {
        for (new, old, at, expected) in VECTORS {
            assert_eq!(
                need(new, old, at),
                expected,
                "NEED({new:#x}, {old:#x}, {at:#x})"
            );
        }
    }

    proptest! {
        #[test]
        fn need_holds_exactly_for_the_indexes_that_were_left(
            old: u32,
            step in 0u32..512,
            distance in 0u32..1024,
        ) {
            let new = old.wrapping_add(step);
            let at = old.wrapping_sub(256).wrapping_add(distance);
            let left = (0..step).any(|i| old.wrapping_add(i) == at);
            prop_assert_eq!(need(new, old, at), left);
        }
    }
}
