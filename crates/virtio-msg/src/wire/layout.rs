//! Byte layouts of the header and of every payload's fixed part (virtio-msg sections 2.1, 5 and 6).
//!
//! Layout only: what the values mean is decided by the enums that parse them.

use super::WireError;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),* }
    };
}

layout!(
    /// Section 2.1. `kind` is the chapter's "type".
    Header { kind: u8, msg_id: u8, dev_num: U16, token: U16, msg_size: U16 }
);
layout!(
    /// Section 5.1, response.
    DeviceInfo {
        device_id: U32,
        vendor_id: U32,
        device_uuid: [u8; 16],
        num_feature_blocks: U32,
        config_size: U32,
        max_virtqueues: U32,
        admin_vq_start: U32,
        admin_vq_count: U32,
    }
);
layout!(
    /// Sections 5.2 and 5.3: both directions; the blocks follow.
    Blocks { block_index: U32, num_blocks: U32 }
);
layout!(
    /// Section 5.4, request.
    ConfigRange { offset: U32, length: U32 }
);
layout!(
    /// Sections 5.4 response and 5.5 both directions; the data follows.
    Config { generation: U32, offset: U32, length: U32 }
);
layout!(
    /// A payload of one number: a status, a queue index, a shared-memory id, PING's data.
    Word { value: U32 }
);
layout!(
    /// Section 5.8, response.
    Vqueue {
        index: U32,
        max_size: U32,
        cur_size: U32,
        flags: U32,
        descriptor_addr: U64,
        driver_addr: U64,
        device_addr: U64,
    }
);
layout!(
    /// Section 5.9, request.
    SetVqueue {
        index: U32,
        flags: U32,
        size: U32,
        reserved: U32,
        descriptor_addr: U64,
        driver_addr: U64,
        device_addr: U64,
    }
);
layout!(
    /// Section 5.11, response.
    Shm { shmid: U32, reserved: U32, length: U64, address: U64 }
);
layout!(
    /// Section 5.12; the data follows.
    EventConfig { status: U32, generation: U32, offset: U32, length: U32 }
);
layout!(
    /// Section 5.13.
    EventAvail { index: U32, next_offset: U32 }
);
layout!(
    /// Section 6.2, request.
    GetDevices { offset: U16, count: U16 }
);
layout!(
    /// Section 6.2, response. Which of the last two is count and which next_offset is disputed.
    DeviceWindow { offset: U16, first: U16, second: U16 }
);
layout!(
    /// Section 6.4.
    EventDevice { dev_num: U16, state: U16 }
);

/// Splits a fixed part off the payload.
pub(crate) fn take<T: FromBytes>(payload: &[u8]) -> Result<(T, &[u8]), WireError> {
    T::read_from_prefix(payload).map_err(|_| WireError::ShortPayload)
}

/// The first `length` bytes of a variable part; what follows is padding.
pub(crate) fn tail(rest: &[u8], length: u32) -> Result<&[u8], WireError> {
    usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length))
        .ok_or(WireError::ShortPayload)
}
