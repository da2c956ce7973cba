//! The eleven transport responses (virtio-msg section 5), all sent by the device.

use super::layout::{self, tail, take};
use super::request::{emit_blocks, parse_blocks, word};
use super::{FeatureBlocks, MsgId, WireError};
use alloc::borrow::Cow;
use zerocopy::IntoBytes;

/// A transport response.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Response<'a> {
    /// What the device is.
    GetDeviceInfo(DeviceInfoResponse),
    /// Offered blocks, index and count as asked.
    GetDeviceFeatures {
        /// First block, echoed.
        block_index: u32,
        /// The blocks.
        blocks: FeatureBlocks<'a>,
    },
    /// Taken. Judged only at FEATURES_OK.
    SetDriverFeatures,
    /// Bytes of configuration space; none when the range was refused.
    GetConfig {
        /// Of the contents.
        generation: u32,
        /// Echoed.
        offset: u32,
        /// The bytes.
        data: Cow<'a, [u8]>,
    },
    /// Whether the write was applied. Echoed data is optional, never authoritative, and left out here.
    SetConfig {
        /// After the operation.
        generation: u32,
        /// Echoed.
        offset: u32,
        /// As asked: applied. 0: nothing was.
        length: u32,
    },
    /// The device status.
    GetDeviceStatus {
        /// As it stands.
        status: u32,
    },
    /// The device status after the write.
    SetDeviceStatus {
        /// As it stands, which may differ from what was written.
        status: u32,
    },
    /// A queue's limits and set-up.
    GetVqueue(VqueueResponse),
    /// Taken or refused: GET_VQUEUE tells.
    SetVqueue,
    /// The queue has stopped, or the request was refused: GET_VQUEUE tells.
    ResetVqueue,
    /// A shared-memory region.
    GetShm {
        /// Echoed.
        shmid: u32,
        /// In bytes; 0 when there is no such region.
        length: u64,
        /// A bus address.
        address: u64,
    },
}

/// The payload of GET_DEVICE_INFO's response (section 5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceInfoResponse {
    /// The virtio device type; 0 is no device.
    pub device_id: u32,
    /// Implementation-defined.
    pub vendor_id: u32,
    /// Stable identity; all zero is none.
    pub device_uuid: [u8; 16],
    /// 32-bit blocks that cover every offered bit.
    pub num_feature_blocks: u32,
    /// Bytes of configuration space.
    pub config_size: u32,
    /// Queues, admin queues included.
    pub max_virtqueues: u32,
    /// First admin queue.
    pub admin_vq_start: u32,
    /// Number of admin queues.
    pub admin_vq_count: u32,
}

/// The payload of GET_VQUEUE's response (section 5.8). All zero but the index: no such queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VqueueResponse {
    /// Echoed.
    pub index: u32,
    /// Largest size; 0 when the queue cannot be used.
    pub max_size: u32,
    /// Configured size; 0 when not configured.
    pub cur_size: u32,
    /// [`VqueueResponse::ENABLED`] or 0.
    pub flags: u32,
    /// Bus address of the descriptor table.
    pub descriptor_addr: u64,
    /// Bus address of the driver area (available ring).
    pub driver_addr: u64,
    /// Bus address of the device area (used ring).
    pub device_addr: u64,
}

impl VqueueResponse {
    /// The flag of an enabled queue.
    pub const ENABLED: u32 = 1;
}

impl<'a> Response<'a> {
    /// The id under which the response travels.
    #[must_use]
    pub fn msg_id(&self) -> MsgId {
        match self {
            Response::GetDeviceInfo(_) => MsgId::GET_DEVICE_INFO,
            Response::GetDeviceFeatures { .. } => MsgId::GET_DEVICE_FEATURES,
            Response::SetDriverFeatures => MsgId::SET_DRIVER_FEATURES,
            Response::GetConfig { .. } => MsgId::GET_CONFIG,
            Response::SetConfig { .. } => MsgId::SET_CONFIG,
            Response::GetDeviceStatus { .. } => MsgId::GET_DEVICE_STATUS,
            Response::SetDeviceStatus { .. } => MsgId::SET_DEVICE_STATUS,
            Response::GetVqueue(_) => MsgId::GET_VQUEUE,
            Response::SetVqueue => MsgId::SET_VQUEUE,
            Response::ResetVqueue => MsgId::RESET_VQUEUE,
            Response::GetShm { .. } => MsgId::GET_SHM,
        }
    }

    pub(super) fn parse(id: MsgId, payload: &'a [u8]) -> Result<Self, WireError> {
        Ok(match id {
            MsgId::GET_DEVICE_INFO => {
                let (fixed, _) = take::<layout::DeviceInfo>(payload)?;
                Response::GetDeviceInfo(DeviceInfoResponse {
                    device_id: fixed.device_id.get(),
                    vendor_id: fixed.vendor_id.get(),
                    device_uuid: fixed.device_uuid,
                    num_feature_blocks: fixed.num_feature_blocks.get(),
                    config_size: fixed.config_size.get(),
                    max_virtqueues: fixed.max_virtqueues.get(),
                    admin_vq_start: fixed.admin_vq_start.get(),
                    admin_vq_count: fixed.admin_vq_count.get(),
                })
            }
            MsgId::GET_DEVICE_FEATURES => {
                let (block_index, blocks) = parse_blocks(payload)?;
                Response::GetDeviceFeatures {
                    block_index,
                    blocks,
                }
            }
            MsgId::SET_DRIVER_FEATURES => Response::SetDriverFeatures,
            MsgId::GET_CONFIG => {
                let (fixed, rest) = take::<layout::Config>(payload)?;
                Response::GetConfig {
                    generation: fixed.generation.get(),
                    offset: fixed.offset.get(),
                    data: Cow::Borrowed(tail(rest, fixed.length.get())?),
                }
            }
            MsgId::SET_CONFIG => {
                let (fixed, _) = take::<layout::Config>(payload)?;
                Response::SetConfig {
                    generation: fixed.generation.get(),
                    offset: fixed.offset.get(),
                    length: fixed.length.get(),
                }
            }
            MsgId::GET_DEVICE_STATUS => Response::GetDeviceStatus {
                status: word(payload)?,
            },
            MsgId::SET_DEVICE_STATUS => Response::SetDeviceStatus {
                status: word(payload)?,
            },
            MsgId::GET_VQUEUE => {
                let (fixed, _) = take::<layout::Vqueue>(payload)?;
                Response::GetVqueue(VqueueResponse {
                    index: fixed.index.get(),
                    max_size: fixed.max_size.get(),
                    cur_size: fixed.cur_size.get(),
                    flags: fixed.flags.get(),
                    descriptor_addr: fixed.descriptor_addr.get(),
                    driver_addr: fixed.driver_addr.get(),
                    device_addr: fixed.device_addr.get(),
                })
            }
            MsgId::SET_VQUEUE => Response::SetVqueue,
            MsgId::RESET_VQUEUE => Response::ResetVqueue,
            MsgId::GET_SHM => {
                let (fixed, _) = take::<layout::Shm>(payload)?;
                Response::GetShm {
                    shmid: fixed.shmid.get(),
                    length: fixed.length.get(),
                    address: fixed.address.get(),
                }
            }
            _ => return Err(WireError::UnknownId(id)),
        })
    }

    /// Hands the fixed and the variable part of the payload to `f`.
    pub(super) fn parts<R>(&self, f: impl FnOnce(&[u8], &[u8]) -> R) -> R {
        match self {
            Response::GetDeviceInfo(info) => {
                let fixed = layout::DeviceInfo {
                    device_id: info.device_id.into(),
                    vendor_id: info.vendor_id.into(),
                    device_uuid: info.device_uuid,
                    num_feature_blocks: info.num_feature_blocks.into(),
                    config_size: info.config_size.into(),
                    max_virtqueues: info.max_virtqueues.into(),
                    admin_vq_start: info.admin_vq_start.into(),
                    admin_vq_count: info.admin_vq_count.into(),
                };
                f(fixed.as_bytes(), &[])
            }
            Response::GetDeviceFeatures {
                block_index,
                blocks,
            } => emit_blocks(*block_index, blocks, f),
            Response::SetDriverFeatures | Response::SetVqueue | Response::ResetVqueue => {
                f(&[], &[])
            }
            Response::GetConfig {
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
            Response::SetConfig {
                generation,
                offset,
                length,
            } => {
                let fixed = layout::Config {
                    generation: (*generation).into(),
                    offset: (*offset).into(),
                    length: (*length).into(),
                };
                f(fixed.as_bytes(), &[])
            }
            Response::GetDeviceStatus { status } | Response::SetDeviceStatus { status } => f(
                layout::Word {
                    value: (*status).into(),
                }
                .as_bytes(),
                &[],
            ),
            Response::GetVqueue(queue) => {
                let fixed = layout::Vqueue {
                    index: queue.index.into(),
                    max_size: queue.max_size.into(),
                    cur_size: queue.cur_size.into(),
                    flags: queue.flags.into(),
                    descriptor_addr: queue.descriptor_addr.into(),
                    driver_addr: queue.driver_addr.into(),
                    device_addr: queue.device_addr.into(),
                };
                f(fixed.as_bytes(), &[])
            }
            Response::GetShm {
                shmid,
                length,
                address,
            } => {
                let fixed = layout::Shm {
                    shmid: (*shmid).into(),
                    reserved: 0.into(),
                    length: (*length).into(),
                    address: (*address).into(),
                };
                f(fixed.as_bytes(), &[])
            }
        }
    }
}
