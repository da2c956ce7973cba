//! What a block device is made from.

use std::path::PathBuf;

use super::error::BlkError;

/// Bytes of the serial in a GET_ID answer.
pub(super) const SERIAL_BYTES: usize = 20;

/// Queues of a device: enough for a queue per CPU of a large guest.
pub(super) const QUEUES_MAX: u16 = 64;

/// What a block device is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// The image: a regular file or a block device.
    pub path: PathBuf,
    /// Writes fail, whatever the driver negotiates.
    pub read_only: bool,
    /// What GET_ID answers, at most 20 bytes; empty for none.
    pub serial: String,
    /// Request queues, 1 to 64.
    pub queues: u16,
    /// Past the page cache of the host.
    pub direct: bool,
}

impl BlkConfig {
    /// What can be said without the image.
    pub(super) fn check(&self) -> Result<(), BlkError> {
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(BlkError::Queues(self.queues));
        }
        if self.serial.len() > SERIAL_BYTES {
            return Err(BlkError::Serial(self.serial.clone()));
        }
        Ok(())
    }

    /// The serial as GET_ID gives it: NUL-padded, no terminator at full length.
    pub(super) fn serial(&self) -> [u8; SERIAL_BYTES] {
        let mut serial = [0; SERIAL_BYTES];
        for (to, from) in serial.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        serial
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_and_serial_have_bounds() {
        let config = |queues| BlkConfig {
            path: PathBuf::from("disk.img"),
            read_only: false,
            serial: String::new(),
            queues,
            direct: false,
        };
        assert!(matches!(config(0).check(), Err(BlkError::Queues(0))));
        assert!(matches!(config(65).check(), Err(BlkError::Queues(65))));
        assert!(config(64).check().is_ok());
        let mut named = config(1);
        named.serial = "x".repeat(20);
        assert!(named.check().is_ok());
        assert_eq!(named.serial(), [b'x'; 20]);
        named.serial.push('x');
        assert!(matches!(named.check(), Err(BlkError::Serial(_))));
    }
}
