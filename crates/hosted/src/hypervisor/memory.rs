//! Grants as hypercalls: granted, mapped, unmapped, copied, counted.

use rustix::io::Errno;
use xen_hal::hosted::wire::{
    Access, CopyData, MAX_COPIES, MAX_COPY_BYTES, MAX_FDS, MAX_REFS, PageCopy, Reply,
};
use xen_types::{DomId, GrantRef, PAGE_SIZE};

use super::{Answer, ConnectionId, Domain, Hypervisor, Mapping};
use crate::grants::GrantTable;

/// Pages that one domain may have mapped: maptrack's default (1024 frames of 256), 2 entries a page, as a PV dom0 spends them.
const MAX_MAPPED_PAGES: u32 = 131_072;

/// Statuses of a copy (Xen `public/grant_table.h`, `GNTST_*`).
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const BAD_GNTREF: i16 = -3;
const BAD_COPY_ARG: i16 = -10;

impl Hypervisor {
    pub(super) fn grant(
        &mut self,
        domid: DomId,
        owner: ConnectionId,
        peer: DomId,
        pages: u32,
        access: Access,
    ) -> Result<Answer, Errno> {
        let grant = self.next_id();
        let grants = &mut self.domain(domid)?.grants;
        let (refs, memory) = grants.grant(grant, owner, peer, pages as usize, access)?;
        Ok(Answer {
            reply: Reply::Granted { grant, refs },
            fds: vec![memory],
        })
    }

    pub(super) fn map(
        &mut self,
        domid: DomId,
        id: ConnectionId,
        peer: DomId,
        access: Access,
        refs: &[GrantRef],
    ) -> Result<Answer, Errno> {
        let counters = &mut self.domain(domid)?.counters;
        counters.grant_map_calls += 1;
        if refs.is_empty() || refs.len() > MAX_REFS {
            return Err(Errno::INVAL);
        }
        let count = u32::try_from(refs.len()).map_err(|_| Errno::INVAL)?;
        if self.domain(domid)?.mapped_pages + count > MAX_MAPPED_PAGES || !self.is_alive(peer) {
            return Err(Errno::INVAL);
        }
        let pages = self
            .domain(peer)?
            .grants
            .map(domid, refs, access, MAX_FDS)?;
        let mapping = self.next_id();
        let count = u32::try_from(pages.count).map_err(|_| Errno::INVAL)?;
        let domain = self.domain(domid)?;
        domain.mapped_pages += count;
        domain.counters.grant_map_pages += u64::from(count);
        let connection = self.connections.get_mut(&id).ok_or(Errno::BADF)?;
        let refs = refs.iter().take(pages.count).copied().collect();
        let held = Mapping {
            granter: peer,
            refs,
        };
        connection.mappings.insert(mapping, held);
        Ok(Answer {
            reply: Reply::Mapped {
                mapping,
                runs: pages.runs,
            },
            fds: pages.memories,
        })
    }

    pub(super) fn unmap(
        &mut self,
        domid: DomId,
        id: ConnectionId,
        mapping: u64,
    ) -> Result<(), Errno> {
        let connection = self.connections.get_mut(&id).ok_or(Errno::BADF)?;
        let mapping = connection.mappings.remove(&mapping).ok_or(Errno::NOENT)?;
        let counters = &mut self.domain(domid)?.counters;
        counters.grant_unmap_calls += 1;
        counters.grant_unmap_pages += mapping.refs.len() as u64;
        self.forget_mapping(domid, &mapping);
        Ok(())
    }

    /// A mapping goes, by a call or by a death.
    pub(super) fn forget_mapping(&mut self, mapper: DomId, mapping: &Mapping) {
        if let Some(domain) = self.domains.get_mut(&mapper) {
            let pages = u32::try_from(mapping.refs.len()).unwrap_or(u32::MAX);
            domain.mapped_pages = domain.mapped_pages.saturating_sub(pages);
        }
        if let Some(granter) = self.domains.get_mut(&mapping.granter) {
            granter.grants.unmap(&mapping.refs);
            self.reap(mapping.granter);
        }
    }

    pub(super) fn copy(
        &mut self,
        domid: DomId,
        peer: DomId,
        goes_on: bool,
        copies: &[PageCopy],
    ) -> Result<Answer, Errno> {
        let counters = &mut self.domain(domid)?.counters;
        counters.grant_copy_calls += u64::from(!goes_on);
        counters.grant_copy_segments += copies.len() as u64;
        let bytes = copies.iter().map(|copy| copy.data.len()).sum::<usize>();
        if copies.len() > MAX_COPIES || bytes > MAX_COPY_BYTES {
            return Err(Errno::INVAL);
        }
        // Nobody is told that the other domain is gone: each copy fails, as in Xen.
        let peer = self.domains.get(&peer).filter(|domain| domain.alive);
        let each = |copy| copy_one(domid, peer.ok_or(BAD_DOMAIN)?, copy);
        Ok(Reply::Copied(copies.iter().map(each).collect()).into())
    }
}

/// Does one copy with the checks that the hypervisor makes. Returns what was read.
fn copy_one(domid: DomId, peer: &Domain, copy: &PageCopy) -> Result<Vec<u8>, i16> {
    if usize::from(copy.offset) + copy.data.len() > PAGE_SIZE {
        return Err(BAD_COPY_ARG);
    }
    if !GrantTable::has(copy.gref) {
        return Err(BAD_GNTREF);
    }
    copy_granted(domid, peer, copy).map_err(|_| GENERAL_ERROR)
}

fn copy_granted(domid: DomId, peer: &Domain, copy: &PageCopy) -> Result<Vec<u8>, Errno> {
    let at = |page: u64| page + u64::from(copy.offset);
    match &copy.data {
        CopyData::Read(len) => {
            let (memory, page) = peer.grants.page(domid, copy.gref, Access::Read)?;
            let mut bytes = vec![0; usize::from(*len)];
            rustix::io::pread(memory, &mut bytes, at(page))?;
            Ok(bytes)
        }
        CopyData::Write(bytes) => {
            let (memory, page) = peer.grants.page(domid, copy.gref, Access::Write)?;
            rustix::io::pwrite(memory, bytes, at(page))?;
            Ok(Vec::new())
        }
    }
}
