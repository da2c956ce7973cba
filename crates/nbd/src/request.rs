//! Requests of the transmission phase, checked against the export.

use crate::wire::{
    CMD_DISC, CMD_FLAG_FUA, CMD_FLUSH, CMD_READ, CMD_WRITE, Fields, REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
};
use crate::{Export, MAX_PAYLOAD, Ticket};

/// What the disk is asked for; inside the export, and never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `len` bytes from `offset` on.
    Read {
        /// In bytes, of any alignment.
        offset: u64,
        /// At most [`MAX_PAYLOAD`].
        len: usize,
    },
    /// These bytes to `offset`.
    Write {
        /// In bytes, of any alignment.
        offset: u64,
        /// At most [`MAX_PAYLOAD`].
        data: Vec<u8>,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Everything that was answered before, durable.
    Flush,
}

/// A request to be answered with [`Connection::reply`](crate::Connection::reply).
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// To answer it.
    pub ticket: Ticket,
    /// What it asks for.
    pub command: Command,
}

/// Why a request failed, by the protocol's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// Writing to a read-only export.
    Perm,
    /// The disk failed.
    Io,
    /// Not offered, malformed, or beyond the end.
    Inval,
    /// Writing beyond the end.
    NoSpc,
    /// The disk cannot do that.
    NotSup,
}

impl Errno {
    fn number(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Inval => 22,
            Self::NoSpc => 28,
            Self::NotSup => 95,
        }
    }
}

/// The fixed part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    flags: u16,
    kind: u16,
    pub(crate) cookie: u64,
    offset: u64,
    pub(crate) len: u32,
}

/// What a request says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Something of the disk.
    Disk(Command),
    /// Nothing, or something that is refused.
    Answer(Result<(), Errno>),
    /// The client says goodbye.
    Disconnect,
}

impl Header {
    /// An error is the magic number that was found.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, u32> {
        let mut fields = Fields(bytes);
        let magic = fields.u32().unwrap_or_default();
        if magic != REQUEST_MAGIC {
            return Err(magic);
        }
        let mut parse = || {
            Some(Self {
                flags: fields.u16()?,
                kind: fields.u16()?,
                cookie: fields.u64()?,
                offset: fields.u64()?,
                len: fields.u32()?,
            })
        };
        parse().ok_or(magic)
    }

    /// Bytes that follow the header.
    pub(crate) fn payload(&self) -> u32 {
        if self.kind == CMD_WRITE { self.len } else { 0 }
    }

    /// Checks the request, in the order in which a client would want to know.
    pub(crate) fn check(self, export: &Export, data: Vec<u8>) -> Asked {
        let refused = |errno| Asked::Answer(Err(errno));
        let fua = self.flags & CMD_FLAG_FUA != 0;
        let end = self.offset.checked_add(self.len.into());
        let beyond = end.is_none_or(|end| end > export.bytes);
        match self.kind {
            CMD_DISC => Asked::Disconnect,
            // FUA is allowed with every command, and means something with writes.
            _ if self.flags & !CMD_FLAG_FUA != 0 || (fua && !export.flush) => refused(Errno::Inval),
            CMD_FLUSH if export.flush => Asked::Disk(Command::Flush),
            CMD_READ if beyond || self.len > MAX_PAYLOAD => refused(Errno::Inval),
            CMD_WRITE if export.read_only => refused(Errno::Perm),
            CMD_WRITE if beyond => refused(Errno::NoSpc),
            CMD_READ | CMD_WRITE if self.len == 0 => Asked::Answer(Ok(())),
            CMD_READ => match usize::try_from(self.len) {
                Ok(len) => Asked::Disk(Command::Read {
                    offset: self.offset,
                    len,
                }),
                Err(_) => refused(Errno::Inval),
            },
            CMD_WRITE => Asked::Disk(Command::Write {
                offset: self.offset,
                data,
                fua,
            }),
            _ => refused(Errno::Inval),
        }
    }
}

/// A simple reply; the data of a read follows it if that succeeded.
pub(crate) fn simple_reply(cookie: u64, result: Result<(), Errno>) -> Vec<u8> {
    let mut reply = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    let error = result.err().map_or(0, Errno::number);
    reply.extend(error.to_be_bytes());
    reply.extend(cookie.to_be_bytes());
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORT: Export = Export {
        bytes: 64 << 20,
        read_only: false,
        flush: true,
    };

    fn header(flags: u16, kind: u16, offset: u64, len: u32) -> Header {
        Header {
            flags,
            kind,
            cookie: 1,
            offset,
            len,
        }
    }

    #[track_caller]
    fn refused(export: &Export, header: Header, errno: Errno) {
        let asked = header.check(export, Vec::new());
        assert_eq!(asked, Asked::Answer(Err(errno)), "{header:?}");
    }

    #[test]
    fn a_request_is_read_from_its_bytes() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 2, 1, 0,
            0, 0, 3,
        ];
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.cookie, 0x0102_0304_0506_0708);
        assert_eq!(header.payload(), 3);
        let write = Command::Write {
            offset: 0x201,
            data: vec![7, 8, 9],
            fua: true,
        };
        let asked = header.check(&EXPORT, vec![7, 8, 9]);
        assert_eq!(asked, Asked::Disk(write));
        assert_eq!(Header::parse(&[0xff; 28]), Err(0xffff_ffff));
    }

    #[test]
    fn beyond_the_end_reads_are_invalid_and_writes_have_no_space() {
        let end = EXPORT.bytes;
        for (offset, len) in [(end, 1), (end - 1, 2), (u64::MAX, 2), (u64::MAX, 0)] {
            refused(&EXPORT, header(0, CMD_READ, offset, len), Errno::Inval);
            refused(&EXPORT, header(0, CMD_WRITE, offset, len), Errno::NoSpc);
        }
        let last = header(0, CMD_READ, end - 1, 1).check(&EXPORT, Vec::new());
        let read = Command::Read {
            offset: end - 1,
            len: 1,
        };
        assert_eq!(last, Asked::Disk(read));
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let bare = Export {
            read_only: true,
            flush: false,
            ..EXPORT
        };
        refused(&bare, header(0, CMD_WRITE, 0, 1), Errno::Perm);
        refused(&bare, header(0, CMD_FLUSH, 0, 0), Errno::Inval);
        refused(&bare, header(CMD_FLAG_FUA, CMD_READ, 0, 1), Errno::Inval);
        refused(&EXPORT, header(2, CMD_READ, 0, 1), Errno::Inval);
        for kind in 4..9 {
            refused(&EXPORT, header(0, kind, 0, 1), Errno::Inval);
        }
        refused(
            &EXPORT,
            header(0, CMD_READ, 0, MAX_PAYLOAD + 1),
            Errno::Inval,
        );
    }

    #[test]
    fn nothing_is_done_at_once() {
        for kind in [CMD_READ, CMD_WRITE] {
            let asked = header(0, kind, EXPORT.bytes, 0).check(&EXPORT, Vec::new());
            assert_eq!(asked, Asked::Answer(Ok(())));
        }
    }

    #[test]
    fn a_reply_carries_cookie_and_error() {
        assert_eq!(
            simple_reply(0x0102_0304_0506_0708, Err(Errno::NoSpc)),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8]
        );
        assert_eq!(simple_reply(1, Ok(()))[4..8], [0; 4]);
    }
}
