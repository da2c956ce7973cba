//! What only a block device shows. As root, on a disk that may be overwritten (a ram disk or loop
//! device will do) and has at least 16 MiB:
//! `VMSG_TEST_DISK=/dev/loop0 cargo test -p virtio-devices --lib -- --ignored --test-threads=1 block_device`
//! `cargo xtask xen run blk-device` runs them on a ram disk and on a loop device of a dom0 in QEMU.

use std::env;
use std::path::PathBuf;

use super::rig::{
    DISCARD, F_ERASING, F_FLUSH, FLUSH, IN, IOERR, OK, OUT, Rig, Setup, WRITE_ZEROES, config,
    pattern, segment,
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

#[test]
#[ignore = "needs a block device, named by VMSG_TEST_DISK, whose contents it destroys"]
fn block_device_r27_r29_gives_back_what_was_written_up_to_its_last_sector() {
    let blk = open(false).unwrap();
    let about = blk.describe();
    let capacity = u64::from_le_bytes(about.config[..8].try_into().unwrap());
    let block = u64::from(u32::from_le_bytes(about.config[20..24].try_into().unwrap())) / 512;
    assert!(capacity >= 32768 && capacity.is_multiple_of(block));
    let setup = Setup {
        area_bytes: 4 << 20,
        ..Setup::default()
    };
    let mut rig = Rig::new(blk, setup);
    let bytes = pattern(64 * 1024);
    for sector in [0, block, 4096, capacity - 128] {
        let (data, back) = (rig.buffer_with(&bytes), rig.buffer(bytes.len()));
        assert_eq!(rig.ask(OUT, sector, Some(data), None), (OK, 1));
        assert_eq!(rig.ask(FLUSH, 0, None, None), (OK, 1));
        assert_eq!(rig.ask(IN, sector, None, Some(back)).0, OK);
        assert!(rig.get(back) == bytes, "sector {sector}");
        for kind in [IN, OUT] {
            let (out, into) = match kind {
                OUT => (Some(data), None),
                _ => (None, Some(back)),
            };
            assert_eq!(rig.ask(kind, capacity - 127, out, into).0, IOERR);
        }
    }
}

#[test]
#[ignore = "needs a block device, named by VMSG_TEST_DISK, whose contents it destroys"]
fn block_device_r28_stays_as_it_is_when_it_may_only_be_read() {
    let mut writer = Rig::new(open(false).unwrap(), Setup::default());
    let data = writer.buffer_with(&pattern(4096));
    assert_eq!(writer.ask(OUT, 0, Some(data), None), (OK, 1));
    assert_eq!(writer.ask(FLUSH, 0, None, None), (OK, 1));
    drop(writer);
    let mut reader = Rig::new(open(true).unwrap(), Setup::default());
    let zeros = reader.buffer_with(&[0; 4096]);
    assert_eq!(reader.ask(OUT, 0, Some(zeros), None), (IOERR, 1));
    let back = reader.buffer(4096);
    assert_eq!(reader.ask(IN, 0, None, Some(back)), (OK, 4097));
    assert_eq!(reader.get(back), pattern(4096));
}
