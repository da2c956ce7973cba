//! The eleven transport requests (virtio-msg section 5), all sent by the driver.

use super::layout::{self, tail, take};
use super::{FeatureBlocks, MsgId, WireError};
use alloc::borrow::Cow;
use zerocopy::IntoBytes;

/// A transport request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request<'a> {
    /// What the device is. Answered in every status.
    GetDeviceInfo,
    /// Offered feature bits, by blocks of 32.
    GetDeviceFeatures {
        /// First block.
        block_index: u32,
        /// How many.
        num_blocks: u32,
    },
    /// The driver's choice, block by block.
    SetDriverFeatures {
        /// First block.
        block_index: u32,
        /// The blocks.
        blocks: FeatureBlocks<'a>,
    },
    /// Reads configuration space.
    GetConfig {
        /// First byte.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// Writes configuration space, all or nothing.
    SetConfig {
        /// Only the strict profile looks at it; zero otherwise.
        generation: u32,
        /// First byte.
        offset: u32,
        /// The bytes.
        data: Cow<'a, [u8]>,
    },
    /// Reads the device status.
    GetDeviceStatus,
    /// Writes the device status; zero starts a reset.
    SetDeviceStatus {
        /// The new status.
        status: u32,
    },
    /// Reads a queue's limits and set-up.
    GetVqueue {
        /// The queue.
        index: u32,
    },
    /// Configures and enables a queue.
    SetVqueue(SetVqueue),
    /// Stops a queue and forgets its set-up.
    ResetVqueue {
        /// The queue.
        index: u32,
    },
    /// Asks for a shared-memory region of the device.
    GetShm {
        /// The region's id.
        shmid: u32,
    },
}

/// The payload of SET_VQUEUE (section 5.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetVqueue {
    /// The queue.
    pub index: u32,
    /// [`SetVqueue::ENABLE`]; drivers written for the first draft send 0.
    pub flags: u32,
    /// Descriptors in the queue.
    pub size: u32,
    /// Bus address of the descriptor table.
    pub descriptor_addr: u64,
    /// Bus address of the driver area (available ring).
    pub driver_addr: u64,
    /// Bus address of the device area (used ring).
    pub device_addr: u64,
}

impl SetVqueue {
    /// The flag value that enables the queue.
    pub const ENABLE: u32 = 1;
}

impl<'a> Request<'a> {
    /// The id under which the request travels.
    #[must_use]
    pub fn msg_id(&self) -> MsgId {
        match self {
            Request::GetDeviceInfo => MsgId::GET_DEVICE_INFO,
            Request::GetDeviceFeatures { .. } => MsgId::GET_DEVICE_FEATURES,
            Request::SetDriverFeatures { .. } => MsgId::SET_DRIVER_FEATURES,
            Request::GetConfig { .. } => MsgId::GET_CONFIG,
            Request::SetConfig { .. } => MsgId::SET_CONFIG,
            Request::GetDeviceStatus => MsgId::GET_DEVICE_STATUS,
            Request::SetDeviceStatus { .. } => MsgId::SET_DEVICE_STATUS,
            Request::GetVqueue { .. } => MsgId::GET_VQUEUE,
            Request::SetVqueue(_) => MsgId::SET_VQUEUE,
            Request::ResetVqueue { .. } => MsgId::RESET_VQUEUE,
            Request::GetShm { .. } => MsgId::GET_SHM,
        }
    }

    /// The same request, free of the frame that it came in.
    #[must_use]
    pub fn into_owned(self) -> Request<'static> {
        match self {
            Request::GetDeviceInfo => Request::GetDeviceInfo,
            Request::GetDeviceFeatures {
                block_index,
                num_blocks,
            } => Request::GetDeviceFeatures {
                block_index,
                num_blocks,
            },
            Request::SetDriverFeatures {
                block_index,
                blocks,
            } => Request::SetDriverFeatures {
                block_index,
                blocks: blocks.into_owned(),
            },
            Request::GetConfig { offset, length } => Request::GetConfig { offset, length },
            Request::SetConfig {
                generation,
                offset,
                data,
            } => Request::SetConfig {
                generation,
                offset,
                data: Cow::Owned(data.into_owned()),
            },
            Request::GetDeviceStatus => Request::GetDeviceStatus,
            Request::SetDeviceStatus { status } => Request::SetDeviceStatus { status },
            Request::GetVqueue { index } => Request::GetVqueue { index },
            Request::SetVqueue(queue) => Request::SetVqueue(queue),
            Request::ResetVqueue { index } => Request::ResetVqueue { index },
            Request::GetShm { shmid } => Request::GetShm { shmid },
        }
    }

    pub(super) fn parse(id: MsgId, payload: &'a [u8]) -> Result<Self, WireError> {
        Ok(match id {
            MsgId::GET_DEVICE_INFO => Request::GetDeviceInfo,
            MsgId::GET_DEVICE_FEATURES => {
                let (fixed, _) = take::<layout::Blocks>(payload)?;
                Request::GetDeviceFeatures {
                    block_index: fixed.block_index.get(),
                    num_blocks: fixed.num_blocks.get(),
                }
            }
            MsgId::SET_DRIVER_FEATURES => {
                let (block_index, blocks) = parse_blocks(payload)?;
                Request::SetDriverFeatures {
                    block_index,
                    blocks,
                }
            }
            MsgId::GET_CONFIG => {
                let (fixed, _) = take::<layout::ConfigRange>(payload)?;
                Request::GetConfig {
                    offset: fixed.offset.get(),
                    length: fixed.length.get(),
                }
            }
            MsgId::SET_CONFIG => {
                let (fixed, rest) = take::<layout::Config>(payload)?;
                Request::SetConfig {
                    generation: fixed.generation.get(),
                    offset: fixed.offset.get(),
                    data: Cow::Borrowed(tail(rest, fixed.length.get())?),
                }
            }
            MsgId::GET_DEVICE_STATUS => Request::GetDeviceStatus,
            MsgId::SET_DEVICE_STATUS => Request::SetDeviceStatus {
                status: word(payload)?,
            },
            MsgId::GET_VQUEUE => Request::GetVqueue {
                index: word(payload)?,
            },
            MsgId::SET_VQUEUE => {
                let (fixed, _) = take::<layout::SetVqueue>(payload)?;
                Request::SetVqueue(SetVqueue {
                    index: fixed.index.get(),
                    flags: fixed.flags.get(),
                    size: fixed.size.get(),
                    descriptor_addr: fixed.descriptor_addr.get(),
                    driver_addr: fixed.driver_addr.get(),
                    device_addr: fixed.device_addr.get(),
                })
            }
            MsgId::RESET_VQUEUE => Request::ResetVqueue {
                index: word(payload)?,
            },
            MsgId::GET_SHM => Request::GetShm {
                shmid: word(payload)?,
            },
            _ => return Err(WireError::UnknownId(id)),
        })
    }

    /// Hands the fixed and the variable part of the payload to `f`.
    pub(super) fn parts<R>(&self, f: impl FnOnce(&[u8], &[u8]) -> R) -> R {
        match self {
            Request::GetDeviceInfo | Request::GetDeviceStatus => f(&[], &[]),
            Request::GetDeviceFeatures {
                block_index,
                num_blocks,
            } => {
                let fixed = layout::Blocks {
                    block_index: (*block_index).into(),
                    num_blocks: (*num_blocks).into(),
                };
                f(fixed.as_bytes(), &[])
            }
            Request::SetDriverFeatures {
                block_index,
                blocks,
            } => emit_blocks(*block_index, blocks, f),
            Request::GetConfig { offset, length } => {
                let fixed = layout::ConfigRange {
                    offset: (*offset).into(),
                    length: (*length).into(),
                };
                f(fixed.as_bytes(), &[])
            }
            Request::SetConfig {
                generation,
                offset,
                data,
            } => {
                let fixed = layout::Config {
                    generation: (*generation).into(),
                    offset: (*offset).into(),
                    length: super::length_of(data).into(),
                };
                f(fixed.as_bytes(), data)
            }
            Request::SetDeviceStatus { status: value }
            | Request::GetVqueue { index: value }
            | Request::ResetVqueue { index: value }
            | Request::GetShm { shmid: value } => f(
                layout::Word {
                    value: (*value).into(),
                }
                .as_bytes(),
                &[],
            ),
            Request::SetVqueue(queue) => {
                let fixed = layout::SetVqueue {
                    index: queue.index.into(),
                    flags: queue.flags.into(),
                    size: queue.size.into(),
                    reserved: 0.into(),
                    descriptor_addr: queue.descriptor_addr.into(),
                    driver_addr: queue.driver_addr.into(),
                    device_addr: queue.device_addr.into(),
                };
                f(fixed.as_bytes(), &[])
            }
        }
    }
}

pub(super) fn word(payload: &[u8]) -> Result<u32, WireError> {
    take::<layout::Word>(payload).map(|(fixed, _)| fixed.value.get())
}

pub(super) fn parse_blocks(payload: &[u8]) -> Result<(u32, FeatureBlocks<'_>), WireError> {
    let (fixed, rest) = take::<layout::Blocks>(payload)?;
    let bytes = fixed
        .num_blocks
        .get()
        .checked_mul(4)
        .ok_or(WireError::ShortPayload)?;
    Ok((
        fixed.block_index.get(),
        FeatureBlocks::new(tail(rest, bytes)?),
    ))
}

pub(super) fn emit_blocks<R>(
    block_index: u32,
    blocks: &FeatureBlocks<'_>,
    f: impl FnOnce(&[u8], &[u8]) -> R,
) -> R {
    let fixed = layout::Blocks {
        block_index: block_index.into(),
        num_blocks: blocks.count().into(),
    };
    f(fixed.as_bytes(), blocks.as_bytes())
}
