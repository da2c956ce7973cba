//! Errors as XenStore names them: the payload of an ERROR message (`xs_wire.h`, `xsd_errors`).

use core::fmt;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $errno:literal;)*) => {
        /// The errors that exist in the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$variant),*];

            /// The name that is sent, such as `ENOENT`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$variant => $name,)*
                }
            }

            /// The code of a Linux errno, as `/dev/xen/xenbus` may return one from `write`.
            #[must_use]
            pub const fn from_errno(errno: i32) -> Option<Self> {
                match errno {
                    $($errno => Some(ErrorCode::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

error_codes! {
    /// The request or one of its arguments makes no sense.
    Invalid = "EINVAL", 22;
    /// No permission.
    Access = "EACCES", 13;
    /// It is there already.
    Exists = "EEXIST", 17;
    /// It is a directory.
    IsDirectory = "EISDIR", 21;
    /// No such node, watch or transaction.
    NotFound = "ENOENT", 2;
    /// The daemon has no memory left.
    NoMemory = "ENOMEM", 12;
    /// A quota is used up.
    NoSpace = "ENOSPC", 28;
    /// The daemon's data base is broken.
    Io = "EIO", 5;
    /// It has children.
    NotEmpty = "ENOTEMPTY", 39;
    /// No such request.
    NotImplemented = "ENOSYS", 38;
    /// The connection may only read.
    ReadOnly = "EROFS", 30;
    /// Busy.
    Busy = "EBUSY", 16;
    /// The transaction met a change made by somebody else.
    Again = "EAGAIN", 11;
    /// The domain is connected already.
    Connected = "EISCONN", 106;
    /// Too long, or too many watches.
    TooBig = "E2BIG", 7;
    /// Not permitted to this domain.
    NotPermitted = "EPERM", 1;
}

impl ErrorCode {
    /// The code that a payload names, with or without the terminating nul.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let name = payload.strip_suffix(&[0]).unwrap_or(payload);
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.name().as_bytes() == name)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorCode;

    #[test]
    fn names_go_there_and_back() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::parse(code.name().as_bytes()), Some(*code));
            assert_eq!(
                ErrorCode::parse(format!("{code}\0").as_bytes()),
                Some(*code)
            );
        }
        assert_eq!(ErrorCode::parse(b"EWHATEVER\0"), None);
    }

    #[test]
    fn errnos_are_those_of_linux() {
        use rustix::io::Errno;
        for (errno, code) in [
            (Errno::INVAL, ErrorCode::Invalid),
            (Errno::ACCESS, ErrorCode::Access),
            (Errno::EXIST, ErrorCode::Exists),
            (Errno::ISDIR, ErrorCode::IsDirectory),
            (Errno::NOENT, ErrorCode::NotFound),
            (Errno::NOMEM, ErrorCode::NoMemory),
            (Errno::NOSPC, ErrorCode::NoSpace),
            (Errno::IO, ErrorCode::Io),
            (Errno::NOTEMPTY, ErrorCode::NotEmpty),
            (Errno::NOSYS, ErrorCode::NotImplemented),
            (Errno::ROFS, ErrorCode::ReadOnly),
            (Errno::BUSY, ErrorCode::Busy),
            (Errno::AGAIN, ErrorCode::Again),
            (Errno::ISCONN, ErrorCode::Connected),
            (Errno::TOOBIG, ErrorCode::TooBig),
            (Errno::PERM, ErrorCode::NotPermitted),
        ] {
            assert_eq!(ErrorCode::from_errno(errno.raw_os_error()), Some(code));
        }
    }
}
