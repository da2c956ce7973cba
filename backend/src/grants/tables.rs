//! Indirect tables at grant addresses: copied whole before their chain is followed, those of a
//! drain with one call.

use std::io;

use guest_memory::{Access, Area, RangeError, TranslateError};
use virtqueue::MAX_INDIRECT_ENTRIES;
use xen_bus::grants::GrantRange;
use xen_hal::{GrantCopy, Platform};
use xen_types::DomId;

/// Bytes of the longest table that a device reads: room for one that is copied alone.
const TABLE_BYTES: u64 = 16 * MAX_INDIRECT_ENTRIES as u64;
/// Room for those that are copied together: 64 of as many descriptors each, where Linux has 34 for
/// 128 KiB.
const PREFETCH_BYTES: u64 = 64 << 10;

/// Where tables pass through.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Made when it is first needed. The prefetched ones, then one alone.
    room: Option<Area>,
    kept: Vec<Kept>,
}

/// A table that was prefetched, and where it is.
#[derive(Clone, Copy, Debug)]
struct Kept {
    addr: u64,
    len: u32,
    at: u64,
}

/// A table cannot be copied.
#[derive(Debug)]
enum CopyError {
    /// It is not granted.
    Refused,
    /// This host's fault.
    Host(io::Error),
}

impl Tables {
    /// Copies tables for later; those that cannot be copied, or find no room, are left.
    pub(super) fn prefetch(
        &mut self,
        platform: &Platform,
        peer: DomId,
        tables: &mut dyn Iterator<Item = (u64, u32)>,
    ) {
        self.kept.clear();
        let Ok(room) = room(&mut self.room) else {
            return;
        };
        let mut next = 0;
        let mut copies = Vec::new();
        for (addr, len) in tables {
            let end = next + u64::from(len);
            let range = GrantRange::new(addr, len).filter(|_| end <= PREFETCH_BYTES);
            if let Some(copy) = range.and_then(|range| copies_of(room, range, next).ok()) {
                let table = Kept {
                    addr,
                    len,
                    at: next,
                };
                copies.extend(copy.into_iter().map(|copy| (table, copy)));
                next = end;
            }
        }
        let (owners, mut copies): (Vec<_>, Vec<_>) = copies.into_iter().unzip();
        if let Err(error) = platform.grant_copy(peer, &mut copies) {
            tracing::error!(%peer, %error, "cannot copy indirect tables");
        }
        for (table, copy) in owners.into_iter().zip(&copies) {
            if self.kept.last().is_none_or(|last| last.at != table.at) {
                self.kept.push(table);
            }
            if copy.result.is_err() {
                self.kept.retain(|kept| kept.at != table.at);
            }
        }
    }

    /// The bytes of a table: of the prefetched copy, which is used once, or of one made now.
    pub(super) fn fetch(
        &mut self,
        platform: &Platform,
        peer: DomId,
        addr: u64,
        into: &mut [u8],
    ) -> Result<(), TranslateError> {
        let unknown = TranslateError::Unknown { addr };
        let len = u32::try_from(into.len()).map_err(|_| unknown)?;
        let is_it = |kept: &Kept| kept.addr == addr && kept.len == len;
        let at = match self.kept.iter().position(is_it) {
            Some(index) => Ok(self.kept.swap_remove(index).at),
            None => self.copy_now(platform, peer, addr, len),
        };
        let at = at.map_err(|error| match error {
            CopyError::Refused => unknown,
            CopyError::Host(error) => {
                tracing::error!(%peer, %error, "cannot copy an indirect table");
                TranslateError::Host {
                    addr,
                    len,
                    kind: error.kind(),
                }
            }
        })?;
        let room = self.room.as_ref().ok_or(unknown)?;
        room.range(at, len.into(), Access::Read)
            .and_then(|table| table.read(0, into))
            .map_err(|error| TranslateError::from_range(error, addr, len))
    }

    /// Copies one table; where it is then.
    fn copy_now(
        &mut self,
        platform: &Platform,
        peer: DomId,
        addr: u64,
        len: u32,
    ) -> Result<u64, CopyError> {
        let range = GrantRange::new(addr, len).ok_or(CopyError::Refused)?;
        let room = room(&mut self.room).map_err(CopyError::Host)?;
        let copies = copies_of(room, range, PREFETCH_BYTES);
        let mut copies = copies.map_err(|_too_long| CopyError::Refused)?;
        platform
            .grant_copy(peer, &mut copies)
            .map_err(|error| CopyError::Host(io::Error::other(error)))?;
        if copies.iter().all(|copy| copy.result.is_ok()) {
            Ok(PREFETCH_BYTES)
        } else {
            Err(CopyError::Refused)
        }
    }
}

fn room(room: &mut Option<Area>) -> io::Result<&Area> {
    match room {
        Some(room) => Ok(room),
        none => {
            let bytes = usize::try_from(PREFETCH_BYTES + TABLE_BYTES).map_err(io::Error::other)?;
            Ok(none.insert(Area::anonymous(bytes)?))
        }
    }
}

/// The copies that bring `range` to byte `at` of the room.
fn copies_of(room: &Area, range: GrantRange, at: u64) -> Result<Vec<GrantCopy<'_>>, RangeError> {
    let mut at = at;
    range
        .pieces()
        .map(|piece| {
            let here = room.range(at, piece.len.into(), Access::Write)?;
            at += u64::from(piece.len);
            Ok(GrantCopy::from_grant(piece.gref, piece.offset, here))
        })
        .collect()
}
