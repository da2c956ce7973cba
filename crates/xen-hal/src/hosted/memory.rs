//! Grants of the hosted platform: mapped, granted and copied as gntdev and gntalloc do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use guest_memory::{Access, RangeError};
use rustix::io::Errno;
use xen_types::{DomId, GrantRef, PAGE_SIZE};

use super::connection::{Connection, unexpected};
use super::wire::{
    CopyData, DomainReport, MAX_COPIES, MAX_COPY_BYTES, MAX_REFS, PageCopy, Reply, Request, Run,
};
use crate::granted::{Grant, OwnPages};
use crate::mapping::Piece;
use crate::reservation::Reservation;
use crate::{CopyDirection, CopyRefusal, GrantCopy, GrantError, GrantedPages, MapError};

/// What gntdev and gntalloc are on Xen; one connection for both.
#[derive(Debug)]
pub(crate) struct Memory(Connection);

impl Memory {
    pub(super) fn new(connection: Connection) -> Self {
        Self(connection)
    }

    pub(crate) fn map(
        &self,
        peer: DomId,
        refs: &[GrantRef],
        access: Access,
        range: &mut Reservation,
        at: usize,
    ) -> Result<Piece, MapError> {
        let refs = refs.get(..MAX_REFS).unwrap_or(refs);
        let first = refs.first().copied().unwrap_or_default();
        let error = |source| MapError::from_call(peer, first, refs.len(), "mapping", source);
        let request = Request::Map {
            peer,
            access,
            refs: refs.to_vec(),
        };
        let (id, runs, fds) = match self.0.call(&request).map_err(error)? {
            (Reply::Mapped { mapping, runs }, fds) => (mapping, runs, fds),
            (other, _) => return Err(error(unexpected(&other))),
        };
        place(&runs, &fds, access, range, at, refs.len())
            .map(|pages| Piece { id, pages })
            .map_err(|source| {
                if let Err(error) = self.0.done(&Request::Unmap { mapping: id }) {
                    tracing::error!(%error, %peer, "the broker keeps a mapping that was never used");
                }
                error(source)
            })
    }

    /// To be called after the munmap.
    pub(crate) fn unmap(&self, piece: Piece) -> io::Result<()> {
        self.0.done(&Request::Unmap { mapping: piece.id })
    }

    pub(crate) fn grant(
        self: &Arc<Self>,
        peer: DomId,
        pages: usize,
        access: Access,
    ) -> Result<GrantedPages, GrantError> {
        let error = |source| GrantError::from_call(peer, pages, "granting", source);
        let request = Request::Grant {
            peer,
            pages: u32::try_from(pages).map_err(|_| error(Errno::INVAL.into()))?,
            access,
        };
        let (grant, refs, fds) = match self.0.call(&request).map_err(error)? {
            (Reply::Granted { grant, refs }, fds) => (grant, refs, fds),
            (other, _) => return Err(error(unexpected(&other))),
        };
        let grant = Grant::Hosted {
            memory: Arc::clone(self),
            grant,
        };
        let area = OwnPages::map(grant, pages, |range| {
            let memory = fds.first().filter(|_| refs.len() == pages);
            let memory = memory.ok_or(io::ErrorKind::InvalidData)?;
            range.place(0, pages, memory.as_fd(), 0, Access::Write)
        })
        .map_err(error)?;
        Ok(GrantedPages { area, refs })
    }

    /// To be called after the munmap.
    pub(crate) fn revoke(&self, grant: u64) -> io::Result<()> {
        self.0.done(&Request::Revoke { grant })
    }

    /// One call, though it may take several packets.
    pub(crate) fn copy(&self, peer: DomId, batch: &mut [GrantCopy<'_>]) -> io::Result<()> {
        let mut asked: Vec<_> = batch
            .iter_mut()
            .filter_map(|copy| copy.begin().map(|_| copy))
            .collect();
        let (mut rest, mut goes_on) = (asked.as_mut_slice(), false);
        while !rest.is_empty() {
            let (part, behind) = rest.split_at_mut(fitting(rest));
            self.copy_part(peer, goes_on, part)?;
            (rest, goes_on) = (behind, true);
        }
        Ok(())
    }

    /// One packet: `part` fits into it.
    fn copy_part(
        &self,
        peer: DomId,
        goes_on: bool,
        part: &mut [&mut GrantCopy<'_>],
    ) -> io::Result<()> {
        let copies = part
            .iter()
            .map(|copy| wire_copy(copy))
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        let request = Request::Copy {
            peer,
            goes_on,
            copies,
        };
        let results = match self.0.call(&request)? {
            (Reply::Copied(results), _) if results.len() == part.len() => results,
            (other, _) => return Err(unexpected(&other)),
        };
        for (copy, result) in part.iter_mut().zip(results) {
            copy.result = match (result, copy.direction) {
                (Err(status), _) => CopyRefusal::from_status(status),
                (Ok(_), CopyDirection::ToGrant) => Ok(()),
                (Ok(read), CopyDirection::FromGrant) if read.len() == copy.memory.len() => {
                    copy.memory.write(0, &read).map_err(io::Error::other)?;
                    Ok(())
                }
                (Ok(_), CopyDirection::FromGrant) => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            };
        }
        Ok(())
    }

    pub(super) fn domains(&self) -> io::Result<Vec<DomainReport>> {
        match self.0.call(&Request::Domains)? {
            (Reply::Domains(domains), _) => Ok(domains),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

/// Maps the runs one behind the other; together at least one page and not more than `most`.
fn place(
    runs: &[Run],
    fds: &[OwnedFd],
    access: Access,
    range: &mut Reservation,
    at: usize,
    most: usize,
) -> io::Result<u32> {
    let mut done = 0_usize;
    for run in runs {
        let fd = usize::try_from(run.fd).ok().and_then(|fd| fds.get(fd));
        let fd = fd.ok_or(io::ErrorKind::InvalidData)?;
        let pages = run.pages as usize;
        if pages > most - done {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let offset = u64::from(run.first) * PAGE_SIZE as u64;
        range.place(at + done, pages, fd.as_fd(), offset, access)?;
        done += pages;
    }
    range.keep_from_children(at, done)?;
    u32::try_from(done)
        .ok()
        .filter(|done| *done > 0)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// How many copies from the front fit into one packet: at least one, because a page fits.
fn fitting(batch: &[&mut GrantCopy<'_>]) -> usize {
    let mut bytes = 0;
    batch
        .iter()
        .take(MAX_COPIES)
        .take_while(|copy| {
            bytes += copy.memory.len();
            bytes <= MAX_COPY_BYTES
        })
        .count()
}

fn wire_copy(copy: &GrantCopy<'_>) -> Result<PageCopy, RangeError> {
    let len = copy.memory.len();
    let data = match copy.direction {
        // As `GrantCopy::begin` found, it is at most a page.
        CopyDirection::FromGrant => CopyData::Read(u16::try_from(len).unwrap_or_default()),
        CopyDirection::ToGrant => {
            let mut bytes = vec![0; len];
            copy.memory.read(0, &mut bytes)?;
            CopyData::Write(bytes)
        }
    };
    Ok(PageCopy {
        gref: copy.gref,
        offset: copy.offset,
        data,
    })
}
