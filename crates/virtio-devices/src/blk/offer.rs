//! What a block device offers: features and configuration space (fact sheet sections 3 and 4.1).

use super::config::BlkConfig;
use super::erase::Erasing;
use super::image::{Geometry, SECTOR};
use crate::features;
use crate::model::{DeviceDescription, VENDOR_ID};

/// Device type number of a block device.
const DEVICE_ID: u32 = 2;

/// The largest size of each queue: deep enough for a fast disk, 6.2 KiB of rings.
pub(super) const QUEUE_SIZE_MAX: u16 = 256;

/// Data segments of a request. At most the smallest queue less header and status, or a driver
/// without indirect descriptors could never queue such a request.
const SEG_MAX: u32 = 126;
const _: () = assert!(SEG_MAX + 2 <= QUEUE_SIZE_MAX as u32);

const F_SEG_MAX: u128 = 1 << 2;
const F_RO: u128 = 1 << 5;
const F_BLK_SIZE: u128 = 1 << 6;
/// FLUSH: the driver flushes; without it, completed writes must be on stable storage.
pub(super) const F_FLUSH: u128 = 1 << 9;
const F_TOPOLOGY: u128 = 1 << 10;
/// CONFIG_WCE: the driver may choose by the field `writeback` whether it flushes.
pub(super) const F_CONFIG_WCE: u128 = 1 << 11;
const F_MQ: u128 = 1 << 12;
/// DISCARD
pub(super) const F_DISCARD: u128 = 1 << 13;
/// WRITE_ZEROES
pub(super) const F_WRITE_ZEROES: u128 = 1 << 14;

/// Bytes of the configuration space up to the end of the write-zeroes fields; what lies behind
/// them belongs to secure erase and zones.
const CONFIG_SIZE: usize = 60;
/// The one field that changes by itself.
pub(super) const CAPACITY: u32 = 0;
const SEG_MAX_AT: usize = 12;
const BLK_SIZE: usize = 20;
const PHYSICAL_BLOCK_EXP: usize = 24;
const MIN_IO_SIZE: usize = 26;
/// The one field that a driver may write.
pub(super) const WRITEBACK: u32 = 32;
const NUM_QUEUES: usize = 34;
const DISCARD_LIMITS: usize = 36;
const DISCARD_SECTOR_ALIGNMENT: usize = 44;
const WRITE_ZEROES_LIMITS: usize = 48;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// The offer of a device over an image of this geometry.
pub(super) fn describe(device: &BlkConfig, geometry: Geometry) -> DeviceDescription {
    let mut offered = features::ALWAYS | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;
    let mut config = vec![0; CONFIG_SIZE];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(field) = config.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    };
    let exponent = (geometry.physical / geometry.logical).ilog2();
    put(CAPACITY as usize, &geometry.sectors.to_le_bytes());
    put(SEG_MAX_AT, &SEG_MAX.to_le_bytes());
    put(BLK_SIZE, &geometry.logical.to_le_bytes());
    put(
        PHYSICAL_BLOCK_EXP,
        &[u8::try_from(exponent).unwrap_or_default()],
    );
    // In logical blocks; too large for the field is no preference.
    let preferred = u16::try_from(1u64 << exponent).unwrap_or_default();
    put(MIN_IO_SIZE, &preferred.to_le_bytes());
    if device.queues > 1 {
        offered |= F_MQ;
        put(NUM_QUEUES, &device.queues.to_le_bytes());
    }
    if device.read_only {
        // Nothing that writes goes with it.
        offered |= F_RO;
    } else {
        offered |= F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES;
        put(WRITEBACK as usize, &[1]);
        put(DISCARD_LIMITS, &limits(Erasing::Discard));
        let alignment = u64::from(geometry.physical) / SECTOR;
        let alignment = u32::try_from(alignment).unwrap_or_default();
        put(DISCARD_SECTOR_ALIGNMENT, &alignment.to_le_bytes());
        put(WRITE_ZEROES_LIMITS, &limits(Erasing::Zero));
        put(WRITE_ZEROES_MAY_UNMAP, &[1]);
    }
    DeviceDescription {
        device_id: DEVICE_ID,
        vendor_id: VENDOR_ID,
        features: offered,
        config,
        queue_max: vec![QUEUE_SIZE_MAX; usize::from(device.queues)],
    }
}

/// Sectors per segment, then segments per request.
fn limits(erasing: Erasing) -> Vec<u8> {
    let [sectors, segments] = [erasing.sectors_max(), erasing.segments_max()];
    [sectors.to_le_bytes(), segments.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn describe(read_only: bool, queues: u16, geometry: Geometry) -> DeviceDescription {
        let device = BlkConfig {
            path: PathBuf::from("disk.img"),
            read_only,
            serial: String::new(),
            queues,
            direct: false,
        };
        super::describe(&device, geometry)
    }

    #[test]
    fn r36_each_field_of_an_offered_feature_is_at_its_offset() {
        // The example of section 4.1, with our limits.
        let expected = [
            0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, // capacity
            0x00, 0x00, 0x00, 0x00, 0x7e, 0x00, 0x00, 0x00, // size_max, seg_max
            0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, // geometry, blk_size
            0x03, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, // topology
            0x01, 0x00, 0x04, 0x00, // writeback, num_queues
            0x00, 0x00, 0x20, 0x00, 0x10, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, // discard
            0x00, 0x00, 0x01, 0x00, 0x04, 0x00, 0x00, 0x00, // write zeroes
            0x01, 0x00, 0x00, 0x00, // may unmap
        ];
        let description = describe(false, 4, Geometry::of_file(1 << 30));
        assert_eq!(description.config, expected);
        assert_eq!(description.queue_max, [256; 4]);
        assert_eq!(description.device_id, 2);
    }

    #[test]
    fn r36_fields_of_features_that_are_not_offered_are_zero() {
        let description = describe(true, 1, Geometry::of_file(1 << 30));
        assert_eq!(description.config.len(), 60);
        assert_eq!(description.config[32..], [0; 28]);
    }

    #[test]
    fn block_sizes_of_the_image_are_shown() {
        let geometry = |logical, physical| Geometry {
            sectors: 800,
            logical,
            physical,
        };
        for (logical, physical, exponent, preferred, alignment) in [
            (512, 512, 0, 1, 1),
            (4096, 4096, 0, 1, 8),
            (512, 1 << 16, 7, 128, 128),
            (512, 1 << 31, 22, 0, 1 << 22),
        ] {
            let config = describe(false, 1, geometry(logical, physical)).config;
            assert_eq!(config[20..24], logical.to_le_bytes());
            assert_eq!(config[24], exponent);
            assert_eq!(config[26..28], u16::to_le_bytes(preferred));
            assert_eq!(config[44..48], u32::to_le_bytes(alignment));
        }
    }

    #[test]
    fn features_follow_the_configuration() {
        let features =
            |read_only, queues| describe(read_only, queues, Geometry::of_file(512)).features;
        let ring = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 33 | 1 << 40;
        let always = ring | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10;
        let writing = 1 << 11 | 1 << 13 | 1 << 14;
        assert_eq!(features(false, 1), always | writing);
        assert_eq!(features(false, 2), always | writing | 1 << 12);
        assert_eq!(features(true, 1), always | 1 << 5);
    }
}
