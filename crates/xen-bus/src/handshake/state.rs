//! The states of a xenbus end as they stand in the node `state` (Xen's `public/io/xenbus.h`).

use core::fmt;

use xen_types::parse_decimal;

/// One end's state. A node that is absent or says anything else is `Unknown`, so also
/// Reconfiguring (7) and Reconfigured (8), which this binding does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum XenbusState {
    /// No state of this binding.
    Unknown = 0,
    /// 1: just made by the toolstack, or starting (again).
    Initialising = 1,
    /// 2: backend: offers a session and holds nothing of the frontend's.
    InitWait = 2,
    /// 3: frontend: keys are written; backend: they are read and may be mapped.
    Initialised = 3,
    /// 4: messages flow.
    Connected = 4,
    /// 5: going down.
    Closing = 5,
    /// 6: down; of a backend: it holds nothing of the frontend's.
    Closed = 6,
}

impl XenbusState {
    /// Every state, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
    ];

    /// Parses the text of a `state` node.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        match parse_decimal(text) {
            Some(1) => Self::Initialising,
            Some(2) => Self::InitWait,
            Some(3) => Self::Initialised,
            Some(4) => Self::Connected,
            Some(5) => Self::Closing,
            Some(6) => Self::Closed,
            _ => Self::Unknown,
        }
    }

    /// The number that stands in the store.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// As it is written into the store.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.number(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::XenbusState;

    #[test]
    fn what_is_written_is_read_back() {
        for state in XenbusState::ALL {
            assert_eq!(XenbusState::parse(state.to_string().as_bytes()), state);
        }
    }

    #[test]
    fn everything_else_is_unknown() {
        for text in [
            "",
            "7",
            "8",
            "9",
            "04",
            "+4",
            " 4",
            "4 ",
            "four",
            "4294967300",
        ] {
            assert_eq!(XenbusState::parse(text.as_bytes()), XenbusState::Unknown);
        }
    }
}
