//! One domain's grant table, as guests with gntalloc have it: references, who may map
//! them, and how often each is mapped.
//!
//! References come in a shuffled order, and the most recently freed are handed out first: a user
//! that counts on an order, or keeps a reference after its revoke, is found out. A page that is mapped when it is revoked
//! stays back with its reference until the last unmap, and counts against the limit till then.
//!
//! Harder than Xen in one point: a reference that is revoked while it is mapped cannot be mapped once more. On Xen it
//! can, until the guest's kernel gets to ending it (measured on 4.17 with Linux 6.1).

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use xen_hal::hosted::wire::{Access, Run};
use xen_types::{DomId, GrantRef, PAGE_SIZE};

/// gntalloc's default `limit`, for the whole domain.
const MAX_PAGES: usize = 1024;
/// References that Xen and the kernel keep for themselves (`GNTTAB_NR_RESERVED_ENTRIES`).
const FIRST_REF: u32 = 8;
/// References of a domain by default: 64 frames of 512 (version 1).
const REFS: u32 = 32_768;

/// Names one allocation among those of all domains.
pub(crate) type GrantId = u64;

/// Pages of one domain that others may map.
#[derive(Debug)]
pub(crate) struct GrantTable {
    grants: HashMap<GrantId, Grant>,
    entries: HashMap<GrantRef, Entry>,
    /// The next one to be handed out stands last.
    free: Vec<GrantRef>,
}

/// One allocation.
#[derive(Debug)]
struct Grant {
    /// The connection that made it.
    owner: u64,
    peer: DomId,
    access: Access,
    memory: Arc<OwnedFd>,
    refs: Vec<GrantRef>,
    revoked: bool,
}

#[derive(Debug)]
struct Entry {
    grant: GrantId,
    page: u32,
    mapped: u32,
}

/// What lies behind references: which memory, and where in it.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    pub(crate) memories: Vec<Arc<OwnedFd>>,
    pub(crate) runs: Vec<Run>,
    /// References that this covers, from the first on.
    pub(crate) count: usize,
}

impl GrantTable {
    pub(crate) fn new() -> io::Result<Self> {
        let mut free: Vec<GrantRef> = (FIRST_REF..REFS).map(GrantRef).collect();
        shuffle(&mut free)?;
        Ok(Self {
            grants: HashMap::new(),
            entries: HashMap::new(),
            free,
        })
    }

    /// Zeroed pages that `peer` may map. ENOSPC beyond the limit, as gntalloc.
    pub(crate) fn grant(
        &mut self,
        id: GrantId,
        owner: u64,
        peer: DomId,
        pages: usize,
        access: Access,
    ) -> Result<(Vec<GrantRef>, Arc<OwnedFd>), Errno> {
        if pages == 0 {
            return Err(Errno::INVAL);
        }
        let room = MAX_PAGES.saturating_sub(self.entries.len());
        if pages > room || pages > self.free.len() {
            return Err(Errno::NOSPC);
        }
        let memory = Arc::new(sealed_memory(pages * PAGE_SIZE)?);
        let mut refs = self.free.split_off(self.free.len() - pages);
        if shuffle(&mut refs).is_err() {
            self.free.append(&mut refs);
            return Err(Errno::NOMEM);
        }
        for (page, gref) in (0..).zip(&refs) {
            let entry = Entry {
                grant: id,
                page,
                mapped: 0,
            };
            self.entries.insert(*gref, entry);
        }
        let grant = Grant {
            owner,
            peer,
            access,
            memory: Arc::clone(&memory),
            refs: refs.clone(),
            revoked: false,
        };
        self.grants.insert(id, grant);
        Ok((refs, memory))
    }

    /// Takes a grant of connection `owner` back. Succeeds while it is mapped, as gntalloc.
    pub(crate) fn revoke(&mut self, id: GrantId, owner: u64) -> Result<(), Errno> {
        let grant = self.grants.get_mut(&id);
        let grant = grant.filter(|grant| grant.owner == owner && !grant.revoked);
        grant.ok_or(Errno::INVAL)?.revoked = true;
        self.sweep(id);
        Ok(())
    }

    /// Takes back what connection `owner` granted; all there is for `None`.
    pub(crate) fn revoke_all(&mut self, owner: Option<u64>) {
        let mut ids = Vec::new();
        for (id, grant) in &mut self.grants {
            if owner.is_none_or(|owner| grant.owner == owner) {
                grant.revoked = true;
                ids.push(*id);
            }
        }
        for id in ids {
            self.sweep(id);
        }
    }

    /// Maps the first of `refs`, as many as `most` memories hold. EINVAL, with nothing mapped, if one of them is
    /// not granted to `mapper`, not for `access`, or revoked.
    pub(crate) fn map(
        &mut self,
        mapper: DomId,
        refs: &[GrantRef],
        access: Access,
        most: usize,
    ) -> Result<Pages, Errno> {
        let mut pages = Pages::default();
        let mut places: HashMap<GrantId, u32> = HashMap::new();
        for gref in refs {
            let (id, grant, page) = self.find(mapper, *gref, access)?;
            let fd = match places.get(&id) {
                Some(fd) => *fd,
                None if places.len() == most => break,
                None => {
                    let fd = u32::try_from(places.len()).map_err(|_| Errno::INVAL)?;
                    pages.memories.push(for_access(&grant.memory, access)?);
                    places.insert(id, fd);
                    fd
                }
            };
            match pages.runs.last_mut() {
                Some(run) if run.fd == fd && run.first + run.pages == page => run.pages += 1,
                _ => pages.runs.push(Run {
                    fd,
                    first: page,
                    pages: 1,
                }),
            }
            pages.count += 1;
        }
        for gref in refs.iter().take(pages.count) {
            if let Some(entry) = self.entries.get_mut(gref) {
                entry.mapped += 1;
            }
        }
        Ok(pages)
    }

    /// Undoes [`Self::map`] of these references.
    pub(crate) fn unmap(&mut self, refs: &[GrantRef]) {
        for gref in refs {
            let Some(entry) = self.entries.get_mut(gref) else {
                continue;
            };
            entry.mapped = entry.mapped.saturating_sub(1);
            let (id, idle) = (entry.grant, entry.mapped == 0);
            if idle && self.grants.get(&id).is_some_and(|grant| grant.revoked) {
                self.sweep(id);
            }
        }
    }

    /// The page behind a reference, for a copy: its memory and the byte it begins at.
    pub(crate) fn page(
        &self,
        mapper: DomId,
        gref: GrantRef,
        access: Access,
    ) -> Result<(&OwnedFd, u64), Errno> {
        let (_, grant, page) = self.find(mapper, gref, access)?;
        Ok((&grant.memory, u64::from(page) * PAGE_SIZE as u64))
    }

    /// Whether the table has an entry of this number, granted to whomever or to nobody.
    pub(crate) fn has(gref: GrantRef) -> bool {
        gref.0 < REFS
    }

    /// Pages granted, and those that are kept back.
    pub(crate) fn pages(&self) -> usize {
        self.entries.len()
    }

    fn find(
        &self,
        mapper: DomId,
        gref: GrantRef,
        access: Access,
    ) -> Result<(GrantId, &Grant, u32), Errno> {
        let entry = self.entries.get(&gref).ok_or(Errno::INVAL)?;
        let grant = self.grants.get(&entry.grant).ok_or(Errno::INVAL)?;
        let allowed = grant.access == Access::Write || access == Access::Read;
        if grant.revoked || grant.peer != mapper || !allowed {
            return Err(Errno::INVAL);
        }
        Ok((entry.grant, grant, entry.page))
    }

    /// Frees what nobody has mapped of a revoked grant.
    fn sweep(&mut self, id: GrantId) {
        let Some(grant) = self.grants.get_mut(&id) else {
            return;
        };
        let (entries, free) = (&mut self.entries, &mut self.free);
        grant.refs.retain(|gref| {
            let mapped = entries.get(gref).is_some_and(|entry| entry.mapped > 0);
            if !mapped {
                entries.remove(gref);
                free.push(*gref);
            }
            mapped
        });
        if grant.refs.is_empty() {
            self.grants.remove(&id);
        }
    }
}

/// Memory of a fixed size: a process that could shorten it would kill those that have it mapped.
pub(crate) fn sealed_memory(len: usize) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("vmsg-hosted", flags)?;
    rustix::fs::ftruncate(&memory, u64::try_from(len).map_err(|_| Errno::INVAL)?)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    Ok(memory)
}

/// For reading: opened again without the right to write, so that the kernel refuses PROT_WRITE.
fn for_access(memory: &Arc<OwnedFd>, access: Access) -> Result<Arc<OwnedFd>, Errno> {
    match access {
        Access::Write => Ok(Arc::clone(memory)),
        Access::Read => {
            let path = format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&**memory)
            );
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map(Arc::new)
        }
    }
}

/// Fisher and Yates, with the kernel's randomness.
fn shuffle(refs: &mut [GrantRef]) -> io::Result<()> {
    let mut random = vec![0_u8; refs.len() * size_of::<u32>()];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let (random, _) = random.as_chunks();
    for (last, random) in (0..refs.len()).rev().zip(random) {
        let other = u32::from_le_bytes(*random) as usize % (last + 1);
        refs.swap(last, other);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const PEER: DomId = DomId(3);
    const OWNER: u64 = 1;

    fn table() -> GrantTable {
        GrantTable::new().unwrap()
    }

    fn grant(table: &mut GrantTable, id: GrantId, pages: usize) -> Vec<GrantRef> {
        let granted = table.grant(id, OWNER, PEER, pages, Access::Write);
        granted.unwrap().0
    }

    fn map(table: &mut GrantTable, refs: &[GrantRef]) -> Result<Pages, Errno> {
        table.map(PEER, refs, Access::Write, 250)
    }

    #[test]
    fn references_are_distinct_and_out_of_order() {
        let refs = grant(&mut table(), 1, MAX_PAGES);
        assert_eq!(refs.iter().collect::<HashSet<_>>().len(), MAX_PAGES);
        assert!(!refs.is_sorted());
        assert!(refs.iter().all(|gref| (FIRST_REF..REFS).contains(&gref.0)));
    }

    #[test]
    fn the_limit_counts_pages_that_are_kept_back() {
        let mut table = table();
        let refs = grant(&mut table, 1, 1000);
        let more = |table: &mut GrantTable, id, pages| {
            table.grant(id, OWNER, PEER, pages, Access::Write).map(drop)
        };
        assert_eq!(more(&mut table, 2, 25), Err(Errno::NOSPC));
        assert_eq!(more(&mut table, 2, 24), Ok(()));
        map(&mut table, &refs[..1]).unwrap();
        table.revoke(1, OWNER).unwrap();
        assert_eq!(table.pages(), 25);
        assert_eq!(more(&mut table, 3, 1000), Err(Errno::NOSPC));
        assert_eq!(more(&mut table, 3, 999), Ok(()));
    }

    #[test]
    fn a_mapped_reference_is_not_used_again_until_it_is_unmapped() {
        let mut table = table();
        let [kept] = grant(&mut table, 1, 1)[..] else {
            panic!("one page")
        };
        map(&mut table, &[kept, kept]).unwrap();
        table.revoke(1, OWNER).unwrap();
        for id in 2..50 {
            assert_ne!(grant(&mut table, id, 1), [kept]);
            table.revoke(id, OWNER).unwrap();
        }
        table.unmap(&[kept]);
        assert_eq!(table.pages(), 1);
        table.unmap(&[kept]);
        assert_eq!(table.pages(), 0);
        assert_eq!(grant(&mut table, 50, 1), [kept], "freed last, used first");
    }

    #[test]
    fn what_xen_refuses_is_refused() {
        let mut table = table();
        let refs = grant(&mut table, 1, 2);
        let read_only = table.grant(2, OWNER, PEER, 1, Access::Read).unwrap().0;
        let mut refused = |mapper, refs: &[GrantRef], access| {
            let error = table.map(mapper, refs, access, 250).map(|_| ());
            assert_eq!(error, Err(Errno::INVAL));
        };
        refused(DomId(4), &refs, Access::Read);
        refused(PEER, &[GrantRef(1)], Access::Read);
        refused(PEER, &[GrantRef(u32::MAX)], Access::Read);
        refused(PEER, &read_only, Access::Write);
        refused(PEER, &[refs[0], read_only[0]], Access::Write);
        table.map(PEER, &read_only, Access::Read, 250).unwrap();
        table.revoke(1, OWNER).unwrap();
        assert_eq!(map(&mut table, &refs).map(|_| ()), Err(Errno::INVAL));
        assert_eq!(
            table.pages(),
            1,
            "nothing of the refused calls stayed mapped"
        );
    }

    #[test]
    fn only_the_owner_revokes_and_only_once() {
        let mut table = table();
        let refs = grant(&mut table, 1, 1);
        map(&mut table, &refs).unwrap();
        assert_eq!(table.revoke(1, OWNER + 1), Err(Errno::INVAL));
        assert_eq!(table.revoke(1, OWNER), Ok(()));
        assert_eq!(table.revoke(1, OWNER), Err(Errno::INVAL));
    }

    #[test]
    fn a_whole_allocation_is_one_run_and_memories_are_bounded() {
        let mut table = table();
        let first = grant(&mut table, 1, 5);
        let second = grant(&mut table, 2, 1);
        let pages = map(&mut table, &first).unwrap();
        assert_eq!((pages.runs.len(), pages.runs[0].pages), (1, 5));
        let both = [first[0], second[0], first[1]];
        let pages = table.map(PEER, &both, Access::Write, 1).unwrap();
        assert_eq!((pages.count, pages.memories.len()), (1, 1));
    }

    #[test]
    fn memory_for_reading_cannot_be_written() {
        let mut table = table();
        let refs = grant(&mut table, 1, 1);
        let pages = table.map(PEER, &refs, Access::Read, 250).unwrap();
        let written = rustix::io::pwrite(&*pages.memories[0], b"x", 0);
        assert_eq!(written, Err(Errno::BADF));
    }

    #[test]
    fn nobody_can_shorten_the_memory() {
        let memory = sealed_memory(PAGE_SIZE).unwrap();
        assert_eq!(rustix::fs::ftruncate(&memory, 0), Err(Errno::PERM));
    }
}
