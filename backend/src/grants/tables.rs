//! Indirect tables at grant addresses: copied whole when their chain is taken.

use std::io;
use std::sync::OnceLock;

use guest_memory::{Access, Area, RangeError, TranslateError};
use virtqueue::MAX_INDIRECT_ENTRIES;
use xen_bus::grants::GrantRange;
use xen_hal::{GrantCopy, Platform};
use xen_types::DomId;

/// Bytes of the longest table that a device reads.
const TABLE_BYTES: usize = 16 * MAX_INDIRECT_ENTRIES as usize;

/// Where tables pass through.
#[derive(Debug, Default)]
pub(super) struct Tables(OnceLock<Area>);

impl Tables {
    pub(super) fn fetch(
        &self,
        platform: &Platform,
        peer: DomId,
        addr: u64,
        into: &mut [u8],
    ) -> Result<(), TranslateError> {
        let unknown = TranslateError::Unknown { addr };
        let len = u32::try_from(into.len()).map_err(|_| unknown)?;
        let range = GrantRange::new(addr, len).ok_or(unknown)?;
        let host = |error: io::Error| {
            tracing::error!(%peer, %error, "cannot copy an indirect table");
            TranslateError::Host {
                addr,
                len,
                kind: error.kind(),
            }
        };
        let room = self.room().map_err(host)?;
        let beyond = |error: RangeError| TranslateError::from_range(error, addr, len);
        let mut at = 0;
        let mut copies = Vec::new();
        for piece in range.pieces() {
            let here = room.range(at, piece.len.into(), Access::Write);
            copies.push(GrantCopy::from_grant(
                piece.gref,
                piece.offset,
                here.map_err(beyond)?,
            ));
            at += u64::from(piece.len);
        }
        platform
            .grant_copy(peer, &mut copies)
            .map_err(|error| host(io::Error::other(error)))?;
        if copies.iter().any(|copy| copy.result.is_err()) {
            return Err(unknown);
        }
        let table = room.range(0, len.into(), Access::Read).map_err(beyond)?;
        table.read(0, into).map_err(beyond)
    }

    fn room(&self) -> io::Result<&Area> {
        match self.0.get() {
            Some(room) => Ok(room),
            None => {
                let room = Area::anonymous(TABLE_BYTES)?;
                Ok(self.0.get_or_init(|| room))
            }
        }
    }
}
