//! What only a block device shows. Run as root, in a machine that has one to overwrite:
//! `VMSG_TEST_DISK=/dev/loop0 cargo test -p virtio-devices -- --ignored block_device`

use std::env;
use std::path::PathBuf;

use super::rig::{
    DISCARD, F_ERASING, F_FLUSH, FLUSH, IN, OK, OUT, Rig, Setup, WRITE_ZEROES, config, pattern,
    segment,
};
use crate::blk::{Blk, BlkConfig, BlkError};
use crate::{DeviceModel, Engine};

/// Bytes at the front of the disk that the test uses.
const BYTES: usize = 1 << 20;

fn open(read_only: bool) -> Result<Blk, BlkError> {
    let path = env::var_os("VMSG_TEST_DISK").expect("VMSG_TEST_DISK names a disk to overwrite");
    let config = BlkConfig {
        path: PathBuf::from(path),
        read_only,
        ..config(1)
    };
    Blk::open(&config, &Engine::new().unwrap())
}

#[test]
#[ignore = "needs a block device, named by VMSG_TEST_DISK, whose contents it destroys"]
fn block_device_r32_reads_as_zeros_where_it_was_zeroed() {
    let blk = open(false).unwrap();
    let block = u32::from_le_bytes(blk.describe().config[20..24].try_into().unwrap());
    let setup = Setup {
        features: F_ERASING | F_FLUSH,
        area_bytes: 16 << 20,
        ..Setup::default()
    };
    let mut rig = Rig::new(blk, setup);
    let mut expected = pattern(BYTES);
    let data = rig.buffer_with(&expected);
    assert_eq!(rig.ask(OUT, 0, Some(data), None), (OK, 1));
    assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
    // Whole blocks, whatever they are, and parts of them.
    for (sector, count) in [(8, 16), (256, 1024), (9, 3), (2047, 1)] {
        for unmap in [0, 1] {
            let list = rig.buffer_with(&segment(sector, count, unmap));
            assert_eq!(rig.ask(WRITE_ZEROES, 0, Some(list), None), (OK, 1));
            let start = usize::try_from(sector).unwrap() * 512;
            expected[start..start + count as usize * 512].fill(0);
            let back = rig.buffer(BYTES);
            assert_eq!(rig.ask(IN, 0, None, Some(back)).0, OK);
            assert!(
                rig.get(back) == expected,
                "{sector} {count} {unmap} of {block}"
            );
        }
    }
    let list = rig.buffer_with(&segment(1024, 512, 0));
    assert_eq!(rig.ask(DISCARD, 0, Some(list), None), (OK, 1));
    let back = rig.buffer(1024 * 512);
    assert_eq!(rig.ask(IN, 0, None, Some(back)).0, OK);
    assert!(rig.get(back) == expected[..1024 * 512]);
}

#[test]
#[ignore = "needs a block device, named by VMSG_TEST_DISK, which it opens exclusively"]
fn block_device_has_one_writer() {
    let writer = open(false).unwrap();
    let refused = open(false).unwrap_err();
    assert!(matches!(refused, BlkError::InUse { .. }), "{refused}");
    drop(writer);
    open(false).unwrap();
}
