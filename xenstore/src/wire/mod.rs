//! The bytes of the XenStore protocol (Xen's `public/io/xs_wire.h` and `docs/misc/xenstore.txt`).
//!
//! Messages, error names, paths and permissions. Pure: knows no file, clock or connection.

mod counts;
mod error_code;
mod message;
mod path;
mod perms;

pub use counts::RequestCounts;
pub use error_code::ErrorCode;
pub use message::{Decoder, HEADER_LEN, Message, MessageType, PAYLOAD_MAX, WireError, strings};
pub use path::{ABS_PATH_MAX, NodePath, PathError, REL_PATH_MAX, check_path};
pub use perms::{Access, PermissionError, Permissions};
