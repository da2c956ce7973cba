//! Disk images whose every sector can be told from every other.

use std::path::Path;

/// Bytes of a sector.
const SECTOR: usize = 512;

/// Fills `bytes`, which begin at `sector`, with what an image of generation `generation` holds there.
pub fn write_pattern(bytes: &mut [u8], sector: u64, generation: u64) {
    for (number, chunk) in (sector..).zip(bytes.chunks_mut(SECTOR)) {
        let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation.rotate_left(32);
        for eight in chunk.chunks_mut(8) {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            eight.copy_from_slice(&word.to_le_bytes()[..eight.len()]);
        }
    }
}

/// What `len` bytes from `sector` on hold in an image of generation 0.
#[must_use]
pub fn pattern(sector: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    write_pattern(&mut bytes, sector, 0);
    bytes
}

/// Makes an image of generation 0.
pub fn make_disk(path: &Path, bytes: usize) {
    std::fs::write(path, pattern(0, bytes)).expect("disk image");
}
