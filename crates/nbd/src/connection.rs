//! One client, from the greeting to the end: which bytes are expected next, what is to be sent,
//! and how much of the client's is held.

use std::collections::VecDeque;

use crate::options::{self, Next};
use crate::request::{Asked, Command, Errno, Header, Request, simple_reply};
use crate::wire::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Fields, IHAVEOPT, NBDMAGIC, OPTION_HEADER, REQUEST_HEADER,
};
use crate::{Export, MAX_PAYLOAD};

/// Bytes of the client's flags.
const CLIENT_FLAGS: usize = 4;
/// The longest data of an option: a name of 4096 bytes, the protocol's limit for strings, and room
/// for any information request.
const MAX_OPTION: u32 = 8 << 10;
/// No more input while answers and requests hold so many bytes; one request may go beyond.
const MAX_HELD: usize = 8 << 20;
/// No more input while so many requests are unanswered: what keeps any disk busy.
const MAX_UNANSWERED: usize = 64;

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Flags that were not offered.
    #[error("client flags {0:#x}, of which 0x3 are known")]
    ClientFlags(u32),
    /// No option where one was due.
    #[error("an option begins with {0:#018x}, expected IHAVEOPT")]
    OptionMagic(u64),
    /// An option that no client needs.
    #[error("option {option} has {len} bytes of data, at most {MAX_OPTION} are taken")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// Its length.
        len: u32,
    },
    /// NBD_OPT_EXPORT_NAME knows no error but the end.
    #[error("an export by name; there is only the default one, whose name is empty")]
    UnknownExport,
    /// No request where one was due.
    #[error("a request begins with {0:#010x}, expected 0x25609513")]
    RequestMagic(u32),
    /// A payload beyond what was advertised.
    #[error("a write of {0} bytes, at most {MAX_PAYLOAD} are taken")]
    WriteTooLong(u32),
}

/// The right to answer a request, once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "every request is answered"]
pub struct Ticket {
    cookie: u64,
    /// Bytes that the request holds.
    weight: usize,
}

/// The server's end of a connection.
#[derive(Debug)]
pub struct Connection {
    export: Export,
    no_zeroes: bool,
    expected: Expected,
    /// What came of it so far.
    gathered: Vec<u8>,
    output: Output,
    unanswered: usize,
    /// Bytes of the unanswered.
    weight: usize,
}

/// What the client has to send next.
#[derive(Clone, Copy, Debug)]
enum Expected {
    ClientFlags,
    OptionHeader,
    OptionData { option: u32, len: u32 },
    RequestHeader,
    Payload(Header),
    Nothing,
}

impl Connection {
    /// A client that has just connected; the greeting is to be sent.
    #[must_use]
    pub fn new(export: Export) -> Self {
        let mut greeting = NBDMAGIC.to_be_bytes().to_vec();
        greeting.extend(IHAVEOPT.to_be_bytes());
        greeting.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        let mut output = Output::default();
        output.push(greeting);
        Self {
            export,
            no_zeroes: false,
            expected: Expected::ClientFlags,
            gathered: Vec::new(),
            output,
            unanswered: 0,
            weight: 0,
        }
    }

    /// Takes bytes from the front of `input`: all, or until a request is complete.
    ///
    /// # Errors
    /// The client does not keep to the protocol. Nothing more is taken; requests that it made
    /// before can still be answered.
    pub fn receive(&mut self, input: &mut &[u8]) -> Result<Option<Request>, ProtocolError> {
        while let Some(len) = self.expected.len() {
            let missing = len.saturating_sub(self.gathered.len());
            let Some((taken, rest)) = input.split_at_checked(missing) else {
                // Memory for all of it now; it is none before it is written.
                self.gathered.reserve_exact(missing);
                self.gathered.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            self.gathered.extend_from_slice(taken);
            *input = rest;
            let bytes = std::mem::take(&mut self.gathered);
            match self.step(bytes) {
                Ok(None) => {}
                Ok(Some(request)) => return Ok(Some(request)),
                Err(error) => {
                    self.end_input();
                    return Err(error);
                }
            }
        }
        *input = &[];
        Ok(None)
    }

    /// The client sends nothing any more.
    pub fn end_input(&mut self) {
        self.expected = Expected::Nothing;
        self.gathered = Vec::new();
    }

    /// Answers a request; `data` is empty unless it was a read.
    pub fn reply(&mut self, ticket: Ticket, result: Result<Vec<u8>, Errno>) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.weight = self.weight.saturating_sub(ticket.weight);
        let (status, data) = match result {
            Ok(data) => (Ok(()), data),
            Err(errno) => (Err(errno), Vec::new()),
        };
        self.output.push(simple_reply(ticket.cookie, status));
        self.output.push(data);
    }

    /// What is to be sent, in pieces.
    pub fn output(&self) -> impl Iterator<Item = &[u8]> {
        self.output.pieces()
    }

    /// Whether something is to be sent.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.output.len > 0
    }

    /// So many bytes of the output were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.output.advance(bytes);
    }

    /// The client takes nothing any more: what was to be sent, and what still comes, is dropped.
    pub fn end_output(&mut self) {
        self.output.close();
    }

    /// Whether more should be read from the client now. Keeping to it bounds what one connection
    /// holds to 8 MiB and one request of 32 MiB.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !matches!(self.expected, Expected::Nothing)
            && self.unanswered < MAX_UNANSWERED
            && self.weight.saturating_add(self.output.len) < MAX_HELD
    }

    /// Whether the client has not said yet that it wants the export.
    #[must_use]
    pub fn is_negotiating(&self) -> bool {
        matches!(
            self.expected,
            Expected::ClientFlags | Expected::OptionHeader | Expected::OptionData { .. }
        )
    }

    /// Whether all is over: nothing comes, nothing is to be answered, nothing to be sent.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.expected, Expected::Nothing) && self.unanswered == 0 && !self.has_output()
    }

    fn step(&mut self, bytes: Vec<u8>) -> Result<Option<Request>, ProtocolError> {
        let mut fields = Fields(&bytes);
        match self.expected {
            Expected::ClientFlags => {
                let flags = fields.u32().unwrap_or_default();
                if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                    return Err(ProtocolError::ClientFlags(flags));
                }
                self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
                self.expected = Expected::OptionHeader;
            }
            Expected::OptionHeader => {
                let magic = fields.u64().unwrap_or_default();
                if magic != IHAVEOPT {
                    return Err(ProtocolError::OptionMagic(magic));
                }
                let option = fields.u32().unwrap_or_default();
                let len = fields.u32().unwrap_or_default();
                if len > MAX_OPTION {
                    return Err(ProtocolError::OptionTooLong { option, len });
                }
                self.expected = Expected::OptionData { option, len };
            }
            Expected::OptionData { option, .. } => {
                let mut reply = Vec::new();
                let next =
                    options::answer(&self.export, option, &bytes, self.no_zeroes, &mut reply);
                self.output.push(reply);
                self.expected = match next {
                    Next::Option => Expected::OptionHeader,
                    Next::Transmission => Expected::RequestHeader,
                    Next::End => Expected::Nothing,
                    Next::UnknownExport => return Err(ProtocolError::UnknownExport),
                };
            }
            Expected::RequestHeader => {
                let header = Header::parse(&bytes).map_err(ProtocolError::RequestMagic)?;
                if header.payload() > MAX_PAYLOAD {
                    return Err(ProtocolError::WriteTooLong(header.payload()));
                }
                self.expected = Expected::Payload(header);
            }
            Expected::Payload(header) => {
                self.expected = Expected::RequestHeader;
                return Ok(self.request(header, bytes));
            }
            Expected::Nothing => {}
        }
        Ok(None)
    }

    fn request(&mut self, header: Header, payload: Vec<u8>) -> Option<Request> {
        match header.check(&self.export, payload) {
            Asked::Disk(command) => {
                let weight = match &command {
                    Command::Trim { .. } | Command::WriteZeroes { .. } => 0,
                    _ => usize::try_from(header.len).unwrap_or(usize::MAX),
                };
                self.unanswered = self.unanswered.saturating_add(1);
                self.weight = self.weight.saturating_add(weight);
                let cookie = header.cookie;
                Some(Request {
                    ticket: Ticket { cookie, weight },
                    command,
                })
            }
            Asked::Answer(result) => {
                self.output.push(simple_reply(header.cookie, result));
                None
            }
            Asked::Disconnect => {
                self.end_input();
                None
            }
        }
    }
}

impl Expected {
    fn len(self) -> Option<usize> {
        match self {
            Self::ClientFlags => Some(CLIENT_FLAGS),
            Self::OptionHeader => Some(OPTION_HEADER),
            Self::OptionData { len, .. } => usize::try_from(len).ok(),
            Self::RequestHeader => Some(REQUEST_HEADER),
            Self::Payload(header) => usize::try_from(header.payload()).ok(),
            Self::Nothing => None,
        }
    }
}

/// Bytes to be sent, in the pieces in which they came.
#[derive(Debug, Default)]
struct Output {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were sent.
    sent: usize,
    /// Bytes that were not.
    len: usize,
    closed: bool,
}

impl Output {
    fn push(&mut self, piece: Vec<u8>) {
        if !self.closed && !piece.is_empty() {
            self.len = self.len.saturating_add(piece.len());
            self.pieces.push_back(piece);
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut sent = self.sent;
        self.pieces
            .iter()
            .map(move |piece| piece.get(std::mem::take(&mut sent)..).unwrap_or_default())
    }

    fn advance(&mut self, bytes: usize) {
        self.len = self.len.saturating_sub(bytes);
        self.sent = self.sent.saturating_add(bytes);
        while let Some(first) = self.pieces.front()
            && let Some(beyond) = self.sent.checked_sub(first.len())
        {
            self.sent = beyond;
            self.pieces.pop_front();
        }
    }

    fn close(&mut self) {
        *self = Self {
            closed: true,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPORT: Export = Export {
        bytes: 1 << 30,
        read_only: false,
        flush: true,
        trim: true,
        zero: true,
    };
    const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
    /// Flags, then NBD_OPT_EXPORT_NAME of the default export.
    const SHORT_HANDSHAKE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0";

    fn output(connection: &mut Connection) -> Vec<u8> {
        let bytes: Vec<u8> = connection.output().flatten().copied().collect();
        connection.sent(bytes.len());
        assert!(!connection.has_output());
        bytes
    }

    /// Everything that these bytes ask for.
    fn requests(
        connection: &mut Connection,
        mut input: &[u8],
    ) -> Result<Vec<Request>, ProtocolError> {
        let mut requests = Vec::new();
        while !input.is_empty() {
            requests.extend(connection.receive(&mut input)?);
        }
        Ok(requests)
    }

    fn transmitting() -> Connection {
        let mut connection = Connection::new(EXPORT);
        assert_eq!(requests(&mut connection, SHORT_HANDSHAKE), Ok(Vec::new()));
        let sent = output(&mut connection);
        assert_eq!(sent.len(), GREETING.len() + 10);
        connection
    }

    fn request(kind: u8, cookie: u8, offset: u8, len: u32) -> Vec<u8> {
        let mut bytes = b"\x25\x60\x95\x13\0\0\0".to_vec();
        bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0, cookie]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, offset]);
        bytes.extend(len.to_be_bytes());
        bytes
    }

    #[test]
    fn the_greeting_comes_first() {
        let mut connection = Connection::new(EXPORT);
        assert_eq!(output(&mut connection), GREETING);
        assert!(connection.wants_input() && connection.is_negotiating());
        assert!(!transmitting().is_negotiating());
    }

    #[test]
    fn requests_are_answered_in_any_order() {
        let mut connection = transmitting();
        let mut input = request(0, 1, 16, 4);
        input.extend(request(1, 2, 5, 3));
        input.extend(b"abc");
        input.extend(request(3, 3, 0, 0));
        let mut asked = requests(&mut connection, &input).unwrap();
        let commands: Vec<_> = asked
            .iter()
            .map(|request| request.command.clone())
            .collect();
        let write = Command::Write {
            offset: 5,
            data: b"abc".to_vec(),
            fua: false,
        };
        let read = Command::Read { offset: 16, len: 4 };
        assert_eq!(commands, [read, write, Command::Flush]);
        connection.reply(asked.pop().unwrap().ticket, Ok(Vec::new()));
        connection.reply(asked.pop().unwrap().ticket, Err(Errno::Io));
        connection.reply(asked.pop().unwrap().ticket, Ok(b"data".to_vec()));
        let expected = b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x03\
            \x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x02\
            \x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01data";
        assert_eq!(output(&mut connection), expected);
    }

    #[test]
    fn goodbye_ends_it_when_all_is_answered_and_sent() {
        let mut connection = transmitting();
        let mut input = request(0, 1, 0, 1);
        input.extend(request(2, 2, 0, 0));
        input.extend(b"whatever follows");
        let asked = requests(&mut connection, &input).unwrap();
        assert_eq!(asked.len(), 1);
        assert!(!connection.wants_input() && !connection.is_over());
        for request in asked {
            connection.reply(request.ticket, Ok(vec![7]));
        }
        assert!(!connection.is_over());
        assert_eq!(output(&mut connection).len(), 17);
        assert!(connection.is_over());
    }

    #[test]
    fn a_client_that_is_gone_is_over_when_the_disk_is_done() {
        let mut connection = transmitting();
        let asked = requests(&mut connection, &request(0, 1, 0, 1)).unwrap();
        connection.end_input();
        connection.end_output();
        assert!(!connection.is_over());
        for request in asked {
            connection.reply(request.ticket, Ok(vec![7]));
        }
        assert!(connection.is_over());
    }

    #[test]
    fn too_much_of_anything_ends_it() {
        let mut long_option = b"\0\0\0\x03IHAVEOPT\0\0\0\x07".to_vec();
        long_option.extend((MAX_OPTION + 1).to_be_bytes());
        let error = requests(&mut Connection::new(EXPORT), &long_option).unwrap_err();
        let len = MAX_OPTION + 1;
        assert_eq!(error, ProtocolError::OptionTooLong { option: 7, len });

        let mut connection = transmitting();
        let error = requests(&mut connection, &request(1, 1, 0, MAX_PAYLOAD + 1)).unwrap_err();
        assert_eq!(error, ProtocolError::WriteTooLong(MAX_PAYLOAD + 1));
        assert!(connection.is_over());
    }

    #[test]
    fn what_is_no_nbd_ends_it() {
        let error = requests(&mut Connection::new(EXPORT), b"GET / HTTP/1.0").unwrap_err();
        assert_eq!(error, ProtocolError::ClientFlags(0x4745_5420));
        let error = requests(&mut Connection::new(EXPORT), &[0; 20]).unwrap_err();
        assert_eq!(error, ProtocolError::OptionMagic(0));
        let error = requests(&mut transmitting(), &[1; 28]).unwrap_err();
        assert_eq!(error, ProtocolError::RequestMagic(0x0101_0101));
    }

    #[test]
    fn no_more_is_wanted_while_much_is_held() {
        let mut connection = transmitting();
        let read = request(0, 1, 0, MAX_PAYLOAD);
        let mut asked = requests(&mut connection, &read).unwrap();
        assert!(!connection.wants_input());
        connection.reply(asked.remove(0).ticket, Ok(vec![0; 9 << 20]));
        assert!(!connection.wants_input());
        connection.sent(2 << 20);
        assert!(connection.wants_input());

        let mut connection = transmitting();
        let flushes: Vec<u8> = (0..64).flat_map(|at| request(3, at, 0, 0)).collect();
        let mut asked = requests(&mut connection, &flushes).unwrap();
        assert!(!connection.wants_input());
        connection.reply(asked.remove(0).ticket, Ok(Vec::new()));
        assert!(connection.wants_input());
    }

    proptest! {
        #[test]
        fn cuts_between_the_bytes_do_not_matter(
            cuts in proptest::collection::vec(1_usize..50, 1..50),
            sent in proptest::collection::vec(1_usize..20, 1..50),
        ) {
            let mut input = b"\0\0\0\x01IHAVEOPT\0\0\0\x08\0\0\0\0".to_vec();
            input.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x08\0\0\0\0\0\x01\0\x03");
            input.extend(request(1, 2, 5, 3));
            input.extend(b"abc");
            input.extend(request(0, 1, 16, 4));
            let mut whole = Connection::new(EXPORT);
            let expected = requests(&mut whole, &input).unwrap();

            let mut pieces = Connection::new(EXPORT);
            let (mut found, mut rest) = (Vec::new(), input.as_slice());
            for cut in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                found.extend(requests(&mut pieces, piece).unwrap());
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, expected);
            let expected = output(&mut whole);
            let mut found = Vec::new();
            for some in sent.iter().cycle() {
                if !pieces.has_output() {
                    break;
                }
                let some: Vec<u8> = pieces.output().flatten().copied().take(*some).collect();
                pieces.sent(some.len());
                found.extend(some);
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_input_is_taken_for_more_than_it_is(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            haggled in any::<bool>(),
        ) {
            let mut connection = if haggled { transmitting() } else { Connection::new(EXPORT) };
            for request in requests(&mut connection, &bytes).unwrap_or_default() {
                connection.reply(request.ticket, Err(Errno::Io));
            }
            prop_assert!(connection.gathered.len() <= bytes.len());
        }
    }
}
