//! How often a domain called the emulated hypervisor, by type.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Hypercalls of one domain since it was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($name)),*].len();

            /// Name and value of each, in a fixed order.
            #[must_use]
            pub fn entries(&self) -> [(&'static str, u64); Self::COUNT] {
                [$((stringify!($name), self.$name)),*]
            }

            /// The counters with the values of [`Self::entries`].
            #[must_use]
            pub fn from_values(values: [u64; Self::COUNT]) -> Self {
                let [$($name),*] = values;
                Self { $($name),* }
            }
        }
    };
}

counters! {
    /// Grant map calls.
    grant_map_calls,
    /// Pages mapped by them.
    grant_map_pages,
    /// Grant unmap calls.
    grant_unmap_calls,
    /// Pages unmapped by them.
    grant_unmap_pages,
    /// Grant copy calls.
    grant_copy_calls,
    /// Pieces copied by them.
    grant_copy_segments,
    /// Events sent.
    evtchn_send,
    /// Ports bound to a remote port.
    evtchn_bind_interdomain,
    /// Ports allocated for a peer to bind.
    evtchn_alloc_unbound,
    /// Ports closed by a call (not by the death of a process).
    evtchn_close,
}

impl Counters {
    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let (now, then) = (self.entries(), earlier.entries());
        let mut values = [0; Self::COUNT];
        for (value, ((_, now), (_, then))) in values.iter_mut().zip(now.iter().zip(&then)) {
            *value = now.saturating_sub(*then);
        }
        Self::from_values(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_taken_counter_by_counter() {
        let earlier = Counters {
            evtchn_send: 2,
            grant_map_calls: 1,
            ..Counters::default()
        };
        let now = Counters {
            evtchn_send: 5,
            grant_map_calls: 1,
            evtchn_close: 4,
            ..Counters::default()
        };
        let expected = Counters {
            evtchn_send: 3,
            evtchn_close: 4,
            ..Counters::default()
        };
        assert_eq!(now.since(&earlier), expected);
    }
}
