//! A client's bytes against the server's end of an NBD connection.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd::{Command, Connection, Errno, Export};

const EXPORT: Export = Export {
    bytes: 1 << 20,
    read_only: false,
    flush: true,
    trim: true,
    zero: true,
};

fuzz_target!(|data: &[u8]| {
    let mut connection = Connection::new(EXPORT);
    let mut input = data;
    while !input.is_empty() && connection.wants_input() {
        let Ok(request) = connection.receive(&mut input) else {
            return;
        };
        if let Some(request) = request {
            let result = match request.command {
                Command::Read { offset, len } => {
                    assert!(offset + len as u64 <= EXPORT.bytes);
                    Ok(vec![0; len])
                }
                Command::Write { offset, data, .. } => {
                    assert!(offset + data.len() as u64 <= EXPORT.bytes);
                    Err(Errno::Io)
                }
                Command::Flush => Ok(vec![]),
                Command::Trim { offset, len, .. } | Command::WriteZeroes { offset, len, .. } => {
                    assert!(len > 0 && offset + len <= EXPORT.bytes);
                    assert!(offset % 512 == 0 && len % 512 == 0);
                    Ok(vec![])
                }
            };
            connection.reply(request.ticket, result);
        }
        let ready = connection.output().map(<[u8]>::len).sum();
        connection.sent(ready);
    }
});
