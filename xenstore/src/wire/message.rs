//! One message: a 16-byte header and at most 4,096 bytes of payload (`xs_wire.h`, `struct xsd_sockmsg`).

use core::fmt;

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;

/// Most bytes of payload, in both directions (`XENSTORE_PAYLOAD_MAX`). Who sends more is disconnected.
pub const PAYLOAD_MAX: usize = 4096;

/// What a message is (`enum xsd_sockmsg_type`). Unknown numbers survive parsing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageType(pub u32);

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl MessageType {
            $($(#[$doc])* pub const $name: MessageType = MessageType($number);)*

            /// The name in `xs_wire.h` without its prefix, if the number has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

message_types! {
    /// Commands to the daemon itself.
    CONTROL = 0;
    /// Children of a node.
    DIRECTORY = 1;
    /// Value of a node.
    READ = 2;
    /// Permissions of a node.
    GET_PERMS = 3;
    /// Register a watch.
    WATCH = 4;
    /// Drop a watch.
    UNWATCH = 5;
    /// Start a transaction.
    TRANSACTION_START = 6;
    /// Commit or abort a transaction.
    TRANSACTION_END = 7;
    /// Connect a domain (dom0 only).
    INTRODUCE = 8;
    /// Disconnect a domain (dom0 only).
    RELEASE = 9;
    /// Home directory of a domain.
    GET_DOMAIN_PATH = 10;
    /// Set the value of a node.
    WRITE = 11;
    /// Make a node.
    MKDIR = 12;
    /// Remove a node with everything below it.
    RM = 13;
    /// Set the permissions of a node.
    SET_PERMS = 14;
    /// Unasked: something below a watched path changed.
    WATCH_EVENT = 15;
    /// The request failed; the payload is the name of an error.
    ERROR = 16;
    /// Whether a domain is connected (dom0 only).
    IS_DOMAIN_INTRODUCED = 17;
    /// Let a domain's shutdown fire `@releaseDomain` once more (dom0 only).
    RESUME = 18;
    /// Give one domain the rights of another (dom0 only).
    SET_TARGET = 19;
    /// No longer served by any daemon; the number stays taken.
    RESTRICT = 20;
    /// Drop all watches and transactions of the caller.
    RESET_WATCHES = 21;
    /// Part of the children of a node with a long list.
    DIRECTORY_PART = 22;
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "message type {}", self.0),
        }
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MessageType,
    /// Chosen by the client, echoed in the reply; 0 in watch events.
    pub req_id: u32,
    /// The transaction it belongs to; 0 for none.
    pub tx_id: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The payload is longer than the protocol allows.
    #[error("{kind} with a payload of {len} bytes, at most {PAYLOAD_MAX} are allowed")]
    TooLong {
        /// What the message would have been.
        kind: MessageType,
        /// Length of the payload.
        len: usize,
    },
}

impl Message {
    /// Appends the message to `out`, which stays as it was on an error.
    ///
    /// # Errors
    /// The payload is longer than [`PAYLOAD_MAX`].
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let too_long = WireError::TooLong {
            kind: self.kind,
            len: self.payload.len(),
        };
        if self.payload.len() > PAYLOAD_MAX {
            return Err(too_long);
        }
        let len = u32::try_from(self.payload.len()).map_err(|_| too_long)?;
        out.reserve(HEADER_LEN.saturating_add(self.payload.len()));
        for word in [self.kind.0, self.req_id, self.tx_id, len] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        out.extend_from_slice(&self.payload);
        Ok(())
    }
}

/// Makes messages from a stream of bytes. Holds at most one unfinished message.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Vec<u8>,
}

impl Decoder {
    /// Takes bytes off `input` until one message is whole. `None`: `input` is used up.
    ///
    /// # Errors
    /// The header announces more than [`PAYLOAD_MAX`] bytes. The stream cannot be followed
    /// any further; the decoder stays at that header.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Message>, WireError> {
        if !self.fill(input, HEADER_LEN) {
            return Ok(None);
        }
        let Some([kind, req_id, tx_id, len]) = header_words(&self.partial) else {
            return Ok(None);
        };
        let kind = MessageType(kind);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > PAYLOAD_MAX {
            return Err(WireError::TooLong { kind, len });
        }
        if !self.fill(input, HEADER_LEN.saturating_add(len)) {
            return Ok(None);
        }
        let payload = self.partial.split_off(HEADER_LEN);
        self.partial.clear();
        Ok(Some(Message {
            kind,
            req_id,
            tx_id,
            payload,
        }))
    }

    /// Moves bytes until `partial` holds `target`; whether it does.
    fn fill(&mut self, input: &mut &[u8], target: usize) -> bool {
        let missing = target.saturating_sub(self.partial.len());
        let (now, later) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(now);
        *input = later;
        self.partial.len() >= target
    }
}

/// The words are in the byte order of the machine: both ends run on it.
fn header_words(bytes: &[u8]) -> Option<[u32; 4]> {
    let (words, _) = bytes.get(..HEADER_LEN)?.as_chunks::<4>();
    let words: &[[u8; 4]; 4] = words.try_into().ok()?;
    Some(words.map(u32::from_ne_bytes))
}

/// The nul-terminated strings of a payload. A rest without a terminator counts as one more.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    payload
        .strip_suffix(&[0])
        .map_or((!payload.is_empty()).then_some(payload), Some)
        .into_iter()
        .flat_map(|body| body.split(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_read_request_has_these_bytes() {
        let mut bytes = Vec::new();
        Message {
            kind: MessageType::READ,
            req_id: 7,
            tx_id: 9,
            payload: b"/tool\0".to_vec(),
        }
        .encode(&mut bytes)
        .unwrap();
        let mut expected = Vec::new();
        for word in [2u32, 7, 9, 6] {
            expected.extend_from_slice(&word.to_ne_bytes());
        }
        expected.extend_from_slice(b"/tool\0");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_header_that_announces_too_much_is_an_error_and_takes_no_memory() {
        let mut decoder = Decoder::default();
        let mut bytes = Vec::new();
        for word in [2u32, 0, 0, 4097] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.resize(100_000, 0);
        let mut input = bytes.as_slice();
        assert!(decoder.decode(&mut input).is_err());
        assert!(decoder.decode(&mut input).is_err(), "it stays an error");
        assert_eq!(decoder.partial.len(), HEADER_LEN);
    }

    #[test]
    fn too_long_a_payload_is_not_encoded() {
        let message = Message {
            kind: MessageType::WRITE,
            req_id: 0,
            tx_id: 0,
            payload: vec![0; PAYLOAD_MAX + 1],
        };
        let mut out = vec![1];
        assert!(message.encode(&mut out).is_err());
        assert_eq!(out, [1]);
    }

    #[test]
    fn strings_are_split_at_nuls() {
        let split = |payload: &'static [u8]| strings(payload).collect::<Vec<_>>();
        assert_eq!(split(b""), Vec::<&[u8]>::new());
        assert_eq!(split(b"\0"), [b""]);
        assert_eq!(split(b"a\0b\0"), [b"a", b"b"]);
        assert_eq!(split(b"a\0b"), [b"a", b"b"]);
        assert_eq!(split(b"a\0\0"), [&b"a"[..], b""]);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_never_panic_nor_pile_up(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            piece in 1usize..64,
        ) {
            let mut decoder = Decoder::default();
            'stream: for mut input in bytes.chunks(piece) {
                loop {
                    match decoder.decode(&mut input) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                    prop_assert!(decoder.partial.len() <= HEADER_LEN + PAYLOAD_MAX);
                }
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(
            messages in proptest::collection::vec(
                (any::<u32>(), any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..50)),
                0..8,
            ),
            piece in 1usize..80,
        ) {
            let messages: Vec<Message> = messages
                .into_iter()
                .map(|(kind, req_id, tx_id, payload)| Message { kind: MessageType(kind), req_id, tx_id, payload })
                .collect();
            let mut bytes = Vec::new();
            for message in &messages {
                message.encode(&mut bytes).unwrap();
            }
            let mut decoder = Decoder::default();
            let mut decoded = Vec::new();
            for mut input in bytes.chunks(piece) {
                while let Some(message) = decoder.decode(&mut input).unwrap() {
                    decoded.push(message);
                }
            }
            prop_assert_eq!(decoded, messages);
        }
    }
}
