//! Option haggling: what a client asks before it uses the export, and the answers.

use crate::wire::{
    FLAG_CAN_MULTI_CONN, FLAG_HAS_FLAGS, FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_FUA,
    FLAG_SEND_TRIM, FLAG_SEND_WRITE_ZEROES, Fields, INFO_BLOCK_SIZE, INFO_EXPORT, OPT_ABORT,
    OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, REP_ACK, REP_ERR_INVALID, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, REP_SERVER, REPLY_MAGIC,
};
use crate::{Export, MAX_PAYLOAD, MIN_BLOCK};

/// The block size that is recommended: a page.
const PREFERRED_BLOCK: u32 = 4096;
/// Zeroes after the answer to OPT_EXPORT_NAME, unless the client does without.
const ZEROES: usize = 124;

/// What comes after an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another option.
    Option,
    /// Transmission.
    Transmission,
    /// The end: the client wants no more.
    End,
    /// The end: the client wants an export that is not there, by an option without error replies.
    UnknownExport,
}

/// Answers an option.
pub(crate) fn answer(
    export: &Export,
    option: u32,
    data: &[u8],
    no_zeroes: bool,
    out: &mut Vec<u8>,
) -> Next {
    match option {
        OPT_EXPORT_NAME if !data.is_empty() => return Next::UnknownExport,
        OPT_EXPORT_NAME => {
            out.extend(export.bytes.to_be_bytes());
            out.extend(transmission_flags(export).to_be_bytes());
            if !no_zeroes {
                out.extend([0; ZEROES]);
            }
            return Next::Transmission;
        }
        OPT_ABORT => {
            reply(out, option, REP_ACK, &[]);
            return Next::End;
        }
        OPT_LIST if !data.is_empty() => reply(out, option, REP_ERR_INVALID, &[]),
        OPT_LIST => {
            let empty_name = 0_u32.to_be_bytes();
            reply(out, option, REP_SERVER, &empty_name);
            reply(out, option, REP_ACK, &[]);
        }
        OPT_INFO | OPT_GO => match InfoRequest::parse(data) {
            None => reply(out, option, REP_ERR_INVALID, &[]),
            Some(request) if !request.name.is_empty() => reply(out, option, REP_ERR_UNKNOWN, &[]),
            Some(request) => {
                info(export, option, &request, out);
                if option == OPT_GO {
                    return Next::Transmission;
                }
            }
        },
        _ => reply(out, option, REP_ERR_UNSUP, &[]),
    }
    Next::Option
}

/// The data of OPT_INFO and OPT_GO.
struct InfoRequest<'a> {
    name: &'a [u8],
    block_size: bool,
}

impl<'a> InfoRequest<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let name_len = fields.u32()?;
        let name = fields.bytes(name_len)?;
        let count = fields.u16()?;
        let mut block_size = false;
        for _ in 0..count {
            block_size |= fields.u16()? == INFO_BLOCK_SIZE;
        }
        fields.0.is_empty().then_some(Self { name, block_size })
    }
}

fn info(export: &Export, option: u32, request: &InfoRequest<'_>, out: &mut Vec<u8>) {
    let mut data = INFO_EXPORT.to_be_bytes().to_vec();
    data.extend(export.bytes.to_be_bytes());
    data.extend(transmission_flags(export).to_be_bytes());
    reply(out, option, REP_INFO, &data);
    if request.block_size {
        let mut data = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [MIN_BLOCK, PREFERRED_BLOCK, MAX_PAYLOAD] {
            data.extend(size.to_be_bytes());
        }
        reply(out, option, REP_INFO, &data);
    }
    reply(out, option, REP_ACK, &[]);
}

/// All connections reach one disk without a cache between, so a flush of one is a flush of all.
fn transmission_flags(export: &Export) -> u16 {
    let mut flags = FLAG_HAS_FLAGS | FLAG_CAN_MULTI_CONN;
    if export.read_only {
        flags |= FLAG_READ_ONLY;
    }
    if export.flush {
        flags |= FLAG_SEND_FLUSH | FLAG_SEND_FUA;
    }
    if export.trim {
        flags |= FLAG_SEND_TRIM;
    }
    if export.zero {
        flags |= FLAG_SEND_WRITE_ZEROES;
    }
    flags
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    // What is sent here are a few bytes.
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    out.extend(len.to_be_bytes());
    out.extend(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORT: Export = Export {
        bytes: 0x0102_0300,
        read_only: false,
        flush: true,
        trim: false,
        zero: false,
    };

    fn answered(export: &Export, option: u32, data: &[u8]) -> (Next, Vec<u8>) {
        let mut out = Vec::new();
        let next = answer(export, option, data, true, &mut out);
        (next, out)
    }

    /// A reply on the wire, by its parts.
    fn wire(option: u8, kind: [u8; 4], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, option];
        bytes.extend(kind);
        bytes.extend([0, 0, 0, u8::try_from(data.len()).unwrap()]);
        bytes.extend(data);
        bytes
    }

    const ACK: [u8; 4] = [0, 0, 0, 1];
    const INVALID: [u8; 4] = [0x80, 0, 0, 3];

    #[test]
    fn go_with_block_sizes_gives_size_flags_and_sizes() {
        let (next, out) = answered(&EXPORT, 7, &[0, 0, 0, 0, 0, 1, 0, 3]);
        assert_eq!(next, Next::Transmission);
        let export = [0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 1, 0x0d];
        let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0];
        let mut expected = wire(7, [0, 0, 0, 3], &export);
        expected.extend(wire(7, [0, 0, 0, 3], &sizes));
        expected.extend(wire(7, ACK, &[]));
        assert_eq!(out, expected);
    }

    #[test]
    fn info_is_go_without_transmission_and_sizes_only_if_asked() {
        let (next, out) = answered(&EXPORT, 6, &[0, 0, 0, 0, 0, 0]);
        assert_eq!(next, Next::Option);
        let export = [0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 1, 0x0d];
        let mut expected = wire(6, [0, 0, 0, 3], &export);
        expected.extend(wire(6, ACK, &[]));
        assert_eq!(out, expected);
    }

    #[test]
    fn another_name_is_unknown() {
        let (next, out) = answered(&EXPORT, 7, &[0, 0, 0, 1, b'x', 0, 0]);
        assert_eq!((next, out), (Next::Option, wire(7, [0x80, 0, 0, 6], &[])));
        assert_eq!(
            answered(&EXPORT, 1, b"x"),
            (Next::UnknownExport, Vec::new())
        );
    }

    #[test]
    fn lengths_that_do_not_match_are_invalid() {
        for data in [
            &[][..],
            &[0, 0, 0, 1, 0, 0],
            &[0xff, 0xff, 0xff, 0xff, 0, 0],
            &[0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0],
        ] {
            let (next, out) = answered(&EXPORT, 7, data);
            assert_eq!((next, out), (Next::Option, wire(7, INVALID, &[])));
        }
        let (next, out) = answered(&EXPORT, 3, &[0]);
        assert_eq!((next, out), (Next::Option, wire(3, INVALID, &[])));
    }

    #[test]
    fn list_names_the_default_export() {
        let (next, out) = answered(&EXPORT, 3, &[]);
        let mut expected = wire(3, [0, 0, 0, 2], &[0, 0, 0, 0]);
        expected.extend(wire(3, ACK, &[]));
        assert_eq!((next, out), (Next::Option, expected));
    }

    #[test]
    fn export_name_ends_the_haggling_with_or_without_zeroes() {
        let read_only = Export {
            read_only: true,
            flush: false,
            ..EXPORT
        };
        let (next, out) = answered(&read_only, 1, &[]);
        assert_eq!(next, Next::Transmission);
        assert_eq!(out, [0, 0, 0, 0, 1, 2, 3, 0, 1, 3]);
        let mut out = Vec::new();
        answer(&read_only, 1, &[], false, &mut out);
        assert_eq!(out.len(), 134);
        assert!(out.iter().skip(10).all(|byte| *byte == 0));
    }

    #[test]
    fn what_erases_is_offered_by_flags_of_its_own() {
        for (trim, zero, flags) in [(true, false, 0x2d), (false, true, 0x4d), (true, true, 0x6d)] {
            let export = Export {
                trim,
                zero,
                ..EXPORT
            };
            let (_, out) = answered(&export, 1, &[]);
            assert_eq!(out[8..], [1, flags]);
        }
    }

    #[test]
    fn abort_is_acknowledged() {
        assert_eq!(answered(&EXPORT, 2, &[]), (Next::End, wire(2, ACK, &[])));
    }

    #[test]
    fn tls_structured_replies_contexts_and_the_unknown_are_refused() {
        for option in [4, 5, 8, 9, 10, 11, 200] {
            let (next, out) = answered(&EXPORT, u32::from(option), &[1, 2, 3]);
            let expected = wire(option, [0x80, 0, 0, 1], &[]);
            assert_eq!((next, out), (Next::Option, expected));
        }
    }
}
