//! Requests of the transmission phase, checked against the export.

use crate::wire::{
    CMD_DISC, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, Fields, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
};
use crate::{Export, MAX_PAYLOAD, MIN_BLOCK, Ticket};

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
    /// What is there may go. What of it is no whole block stays, as the protocol allows.
    Trim {
        /// In bytes, a multiple of [`MIN_BLOCK`].
        offset: u64,
        /// In bytes, a multiple of [`MIN_BLOCK`].
        len: u64,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Zeroes. Asked for other than whole blocks it is a [`Command::Write`] of them.
    WriteZeroes {
        /// In bytes, a multiple of [`MIN_BLOCK`].
        offset: u64,
        /// In bytes, a multiple of [`MIN_BLOCK`].
        len: u64,
        /// The space may be given up.
        hole: bool,
        /// Durable before it is answered.
        fua: bool,
    },
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
            _ if self.flags & !self.known_flags() != 0 || (fua && !export.flush) => {
                refused(Errno::Inval)
            }
            CMD_FLUSH if export.flush => Asked::Disk(Command::Flush),
            CMD_READ if beyond || self.len > MAX_PAYLOAD => refused(Errno::Inval),
            CMD_TRIM if !export.trim => refused(Errno::Inval),
            CMD_WRITE_ZEROES if !export.zero => refused(Errno::Inval),
            CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES if export.read_only => refused(Errno::Perm),
            CMD_WRITE | CMD_WRITE_ZEROES if beyond => refused(Errno::NoSpc),
            CMD_TRIM if beyond => refused(Errno::Inval),
            CMD_READ | CMD_WRITE | CMD_WRITE_ZEROES if self.len == 0 => Asked::Answer(Ok(())),
            CMD_TRIM => self.trim(fua),
            CMD_WRITE_ZEROES => self.write_zeroes(fua),
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

impl Header {
    fn known_flags(&self) -> u16 {
        match self.kind {
            CMD_WRITE_ZEROES => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE,
            _ => CMD_FLAG_FUA,
        }
    }

    /// Inside the export.
    fn trim(&self, fua: bool) -> Asked {
        let block = u64::from(MIN_BLOCK);
        let end = self.offset.saturating_add(self.len.into()) / block * block;
        let offset = self.offset.next_multiple_of(block);
        match end.checked_sub(offset) {
            None | Some(0) => Asked::Answer(Ok(())),
            Some(len) => Asked::Disk(Command::Trim { offset, len, fua }),
        }
    }

    /// Inside the export, and not empty.
    fn write_zeroes(&self, fua: bool) -> Asked {
        let (offset, len) = (self.offset, u64::from(self.len));
        let block = u64::from(MIN_BLOCK);
        if offset.is_multiple_of(block) && len.is_multiple_of(block) {
            let hole = self.flags & CMD_FLAG_NO_HOLE == 0;
            return Asked::Disk(Command::WriteZeroes {
                offset,
                len,
                hole,
                fua,
            });
        }
        match usize::try_from(self.len) {
            Ok(len) if self.len <= MAX_PAYLOAD => Asked::Disk(Command::Write {
                offset,
                data: vec![0; len],
                fua,
            }),
            _ => Asked::Answer(Err(Errno::Inval)),
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
        trim: true,
        zero: true,
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
            trim: false,
            zero: false,
            ..EXPORT
        };
        refused(&bare, header(0, CMD_WRITE, 0, 1), Errno::Perm);
        refused(&bare, header(0, CMD_FLUSH, 0, 0), Errno::Inval);
        refused(&bare, header(CMD_FLAG_FUA, CMD_READ, 0, 1), Errno::Inval);
        refused(&EXPORT, header(2, CMD_READ, 0, 1), Errno::Inval);
        for kind in [CMD_TRIM, CMD_WRITE_ZEROES] {
            refused(&bare, header(0, kind, 0, 512), Errno::Inval);
            let read_only = Export {
                read_only: true,
                ..EXPORT
            };
            refused(&read_only, header(0, kind, 0, 512), Errno::Perm);
        }
        refused(
            &EXPORT,
            header(CMD_FLAG_NO_HOLE, CMD_TRIM, 0, 512),
            Errno::Inval,
        );
        for kind in [5, 7, 8] {
            refused(&EXPORT, header(0, kind, 0, 1), Errno::Inval);
        }
        refused(
            &EXPORT,
            header(0, CMD_READ, 0, MAX_PAYLOAD + 1),
            Errno::Inval,
        );
    }

    #[test]
    fn whole_blocks_are_trimmed_and_the_rest_stays() {
        let trim = |offset, len| header(0, CMD_TRIM, offset, len).check(&EXPORT, Vec::new());
        let whole = |offset, len| {
            Asked::Disk(Command::Trim {
                offset,
                len,
                fua: false,
            })
        };
        assert_eq!(trim(512, 1024), whole(512, 1024));
        assert_eq!(trim(1, 1535), whole(512, 1024));
        assert_eq!(trim(512, 1535), whole(512, 1024));
        for (offset, len) in [(0, 0), (1, 511), (1, 1022), (511, 511)] {
            assert_eq!(trim(offset, len), Asked::Answer(Ok(())), "{offset} {len}");
        }
        refused(&EXPORT, header(0, CMD_TRIM, EXPORT.bytes, 1), Errno::Inval);
    }

    #[test]
    fn whole_blocks_are_zeroed_and_others_written() {
        let zero = |flags, offset, len| {
            header(flags, CMD_WRITE_ZEROES, offset, len).check(&EXPORT, Vec::new())
        };
        let len = 48 << 20;
        for (flags, hole, fua) in [
            (0, true, false),
            (CMD_FLAG_NO_HOLE, false, false),
            (CMD_FLAG_FUA, true, true),
        ] {
            let expected = Command::WriteZeroes {
                offset: 512,
                len: len.into(),
                hole,
                fua,
            };
            assert_eq!(zero(flags, 512, len), Asked::Disk(expected));
        }
        let written = Command::Write {
            offset: 1,
            data: vec![0; 512],
            fua: false,
        };
        assert_eq!(zero(0, 1, 512), Asked::Disk(written));
        assert_eq!(zero(0, 1, len), Asked::Answer(Err(Errno::Inval)));
        assert_eq!(zero(0, 0, 0), Asked::Answer(Ok(())));
        refused(
            &EXPORT,
            header(0, CMD_WRITE_ZEROES, EXPORT.bytes, 1),
            Errno::NoSpc,
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
