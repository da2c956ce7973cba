//! A client that does what others do not: requests of any offset and length, many at once, and
//! some that no client should send.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::scene::LIMIT;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const FUA: u16 = 1;

pub(crate) struct Client {
    socket: UnixStream,
    /// Bytes of the export.
    pub(crate) bytes: u64,
    /// Transmission flags.
    pub(crate) flags: u16,
    /// Lengths of the reads that are to be answered.
    reads: BTreeMap<u64, u32>,
    next_cookie: u64,
}

/// A connection that has seen the greeting.
pub(crate) fn greeted(path: &Path) -> UnixStream {
    let mut socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    socket
}

/// Whether the server has closed the connection. What was not read of ours makes it a reset.
pub(crate) fn is_closed(socket: &mut UnixStream) -> bool {
    match socket.read(&mut [0]) {
        Ok(len) => len == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let mut socket = greeted(path);
        socket
            .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
            .unwrap();
        let mut answer = [0; 10];
        socket.read_exact(&mut answer).unwrap();
        let (bytes, flags) = answer.split_first_chunk().unwrap();
        Self {
            socket,
            bytes: u64::from_be_bytes(*bytes),
            flags: u16::from_be_bytes(flags.try_into().unwrap()),
            reads: BTreeMap::new(),
            next_cookie: 1,
        }
    }

    /// Sends a request; its cookie.
    pub(crate) fn ask(&mut self, kind: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = header(kind, flags, cookie, offset, len);
        bytes.extend(data);
        self.socket.write_all(&bytes).unwrap();
        if kind == READ {
            self.reads.insert(cookie, len);
        }
        cookie
    }

    /// Sends requests for the start of the export in one piece, which the server reads as one.
    pub(crate) fn ask_together(&mut self, count: u64, kind: u16, len: u32) {
        let cookies = self.next_cookie..self.next_cookie + count;
        self.next_cookie = cookies.end;
        let headers = cookies
            .clone()
            .flat_map(|cookie| header(kind, 0, cookie, 0, len));
        let bytes: Vec<u8> = headers.collect();
        self.socket.write_all(&bytes).unwrap();
        self.reads.extend(cookies.map(|cookie| (cookie, len)));
    }

    /// Sends many requests at once, and returns when they have begun to be answered; the answers
    /// are not read.
    pub(crate) fn ask_many(&mut self, count: u64, kind: u16, len: u32) {
        let headers = (0..count).flat_map(|cookie| header(kind, 0, cookie, 0, len));
        let bytes: Vec<u8> = headers.collect();
        self.socket.write_all(&bytes).unwrap();
        self.socket.read_exact(&mut [0]).unwrap();
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> u64 {
        let len = u32::try_from(data.len()).unwrap();
        self.ask(WRITE, flags, offset, len, data)
    }

    /// The next answer: cookie, error, data.
    pub(crate) fn answer(&mut self) -> (u64, u32, Vec<u8>) {
        let mut header = [0; 16];
        self.socket.read_exact(&mut header).unwrap();
        assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        let len = self.reads.remove(&cookie).unwrap_or_default();
        let mut data = vec![0; if error == 0 { len as usize } else { 0 }];
        self.socket.read_exact(&mut data).unwrap();
        (cookie, error, data)
    }

    /// One request alone: its error and data.
    pub(crate) fn run(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> (u32, Vec<u8>) {
        let asked = self.ask(kind, flags, offset, len, data);
        let (cookie, error, data) = self.answer();
        assert_eq!(cookie, asked);
        (error, data)
    }

    /// Reads that must succeed.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let (error, data) = self.run(READ, 0, offset, len, &[]);
        assert_eq!(error, 0);
        data
    }

    /// Says goodbye; the server must close.
    pub(crate) fn leave(mut self) {
        self.ask(DISC, 0, 0, 0, &[]);
        assert!(is_closed(&mut self.socket));
    }
}

fn header(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}
