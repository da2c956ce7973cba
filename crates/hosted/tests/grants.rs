//! Grants as a domain sees them through `xen_hal`: what is refused, what stays, what is counted.

mod common;

use common::{Host, map};
use guest_memory::{Access, Area, GuestRange};
use xen_hal::{CopyRefusal, GrantCopy, GrantError, MAX_COPIES_PER_CALL, MapError, RevokeError};
use xen_types::{DomId, GrantRef, PAGE_SIZE};

fn byte(area: &Area, page: usize) -> u8 {
    let offset = (page * PAGE_SIZE) as u64;
    let range = area.range(offset, 1, Access::Read).unwrap();
    range.read_array::<1>(0).unwrap()[0]
}

fn set_byte(area: &Area, page: usize, value: u8) {
    let offset = (page * PAGE_SIZE) as u64;
    let range = area.range(offset, 1, Access::Write).unwrap();
    range.write(0, &[value]).unwrap();
}

#[track_caller]
fn assert_refused(result: Result<Area, MapError>) {
    assert!(
        matches!(result, Err(MapError::Refused { .. })),
        "{result:?}"
    );
}

#[test]
fn both_sides_see_the_same_pages() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 3, Access::Write).unwrap();
    assert_eq!(byte(&pages.area, 2), 0);
    set_byte(&pages.area, 1, 7);
    let area = map(&dom0, guest, &pages.refs, Access::Write).unwrap();
    assert_eq!(byte(&area, 1), 7);
    set_byte(&area, 2, 9);
    assert_eq!(byte(&pages.area, 2), 9);
}

#[test]
fn a_mapping_is_one_range_in_the_order_asked_for_whatever_the_calls() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let grants =
        [5, 1, 10].map(|pages| domu.grant_pages(DomId::DOM0, pages, Access::Write).unwrap());
    let mut refs: Vec<GrantRef> = grants.iter().flat_map(|g| g.refs.clone()).collect();
    let mut value = 0;
    for grant in &grants {
        for page in 0..grant.refs.len() {
            set_byte(&grant.area, page, value);
            value += 1;
        }
    }
    // Backwards, and one reference twice.
    refs.reverse();
    refs.push(refs[3]);
    let before = host.report(DomId::DOM0).unwrap().counters;
    let mut builder = dom0.begin_mapping(guest, refs.len(), Access::Read).unwrap();
    for chunk in refs.chunks(7) {
        builder.map(chunk).unwrap();
    }
    let area = builder.finish().unwrap();
    let seen: Vec<u8> = (0..refs.len()).map(|page| byte(&area, page)).collect();
    assert_eq!(
        seen,
        [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 12]
    );
    area.unmap().unwrap();
    let counted = host.report(DomId::DOM0).unwrap().counters.since(&before);
    assert_eq!((counted.grant_map_calls, counted.grant_map_pages), (3, 17));
    assert_eq!(
        (counted.grant_unmap_calls, counted.grant_unmap_pages),
        (3, 17)
    );
}

#[test]
fn references_that_reach_many_memories_are_mapped_all_the_same() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    // More single pages than one packet can carry descriptors.
    let grants: Vec<_> = (0..600_u32)
        .map(|n| {
            let pages = domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
            let range = pages.area.range(0, 4, Access::Write).unwrap();
            range.write(0, &n.to_le_bytes()).unwrap();
            pages
        })
        .collect();
    let refs: Vec<GrantRef> = grants.iter().map(|grant| grant.refs[0]).collect();
    let area = map(&dom0, guest, &refs, Access::Read).unwrap();
    for n in 0..600_u32 {
        let range = area
            .range(u64::from(n) * PAGE_SIZE as u64, 4, Access::Read)
            .unwrap();
        assert_eq!(range.read_array(0).unwrap(), n.to_le_bytes());
    }
    area.unmap().unwrap();
    assert_eq!(host.holdings(DomId::DOM0), (0, 0, 0));
}

#[test]
fn what_is_not_granted_is_refused() {
    let host = Host::start();
    let (guest, other) = (host.guest("g"), host.guest("other"));
    let dom0 = host.platform(DomId::DOM0);
    let (domu, stranger) = (host.platform(guest), host.platform(other));
    let pages = domu.grant_pages(DomId::DOM0, 2, Access::Write).unwrap();
    let read_only = domu.grant_pages(DomId::DOM0, 1, Access::Read).unwrap();

    assert_refused(map(&stranger, guest, &pages.refs, Access::Read));
    assert_refused(map(&dom0, other, &pages.refs, Access::Read));
    assert_refused(map(&dom0, DomId(77), &pages.refs, Access::Read));
    assert_refused(map(&dom0, guest, &[GrantRef(0)], Access::Read));
    assert_refused(map(&dom0, guest, &[GrantRef(u32::MAX)], Access::Read));
    assert_refused(map(&dom0, guest, &read_only.refs, Access::Write));
    assert_refused(map(
        &dom0,
        guest,
        &[pages.refs[0], GrantRef(3)],
        Access::Read,
    ));
    map(&dom0, guest, &read_only.refs, Access::Read).unwrap();

    let refs = pages.refs.clone();
    pages.revoke().unwrap();
    assert_refused(map(&dom0, guest, &refs, Access::Read));
    assert_eq!(host.holdings(DomId::DOM0), (0, 0, 0));
    assert_eq!(host.holdings(guest), (1, 0, 0));
}

#[test]
fn a_refusal_names_domain_and_reference() {
    let host = Host::start();
    let guest = host.guest("g");
    let dom0 = host.platform(DomId::DOM0);
    let error = map(&dom0, guest, &[GrantRef(4711)], Access::Read).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("domain 1") && text.contains("4711"), "{text}");
}

#[test]
fn a_read_only_mapping_cannot_be_written() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
    let area = map(&dom0, guest, &pages.refs, Access::Read).unwrap();
    assert!(area.range(0, 1, Access::Write).is_err());
}

#[test]
fn gntallocs_limit_holds_and_says_what_to_raise() {
    let host = Host::start();
    let guest = host.guest("g");
    let domu = host.platform(guest);
    let most = domu.grant_pages(DomId::DOM0, 1024, Access::Write).unwrap();
    // Another process of the same domain is under the same limit.
    let error = host
        .platform(guest)
        .grant_pages(DomId::DOM0, 1, Access::Write);
    let error = error.unwrap_err();
    assert!(
        matches!(error, GrantError::NoRoom { pages: 1, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("`limit`"), "{error}");
    most.revoke().unwrap();
    domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
}

#[test]
fn revoking_while_mapped_succeeds_and_keeps_page_and_reference_back() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 2, Access::Write).unwrap();
    let kept = pages.refs[0];
    let area = map(&dom0, guest, &[kept], Access::Write).unwrap();
    set_byte(&area, 0, 5);
    pages.revoke().unwrap();
    assert_eq!(host.holdings(guest), (1, 0, 0));
    assert_eq!(byte(&area, 0), 5, "the mapper sees nothing of it");

    let all = domu.grant_pages(DomId::DOM0, 1023, Access::Write).unwrap();
    assert!(!all.refs.contains(&kept));
    domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap_err();
    area.unmap().unwrap();
    let last = domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
    assert_eq!(last.refs, [kept]);
    assert_eq!(byte(&last.area, 0), 0, "another page, with nothing in it");
}

#[test]
fn leased_pages_are_not_revoked() {
    let host = Host::start();
    let guest = host.guest("g");
    let domu = host.platform(guest);
    let pages = domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
    let lease = pages.area.lease();
    let Err(RevokeError::Leased { pages, leases: 1 }) = pages.revoke() else {
        panic!("revoked in spite of a lease")
    };
    assert_eq!(host.holdings(guest).0, 1);
    drop(lease);
    pages.revoke().unwrap();
    assert_eq!(host.holdings(guest).0, 0);
}

#[test]
fn an_unfinished_mapping_is_undone() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 2, Access::Write).unwrap();
    let mut builder = dom0.begin_mapping(guest, 3, Access::Write).unwrap();
    builder.map(&pages.refs).unwrap();
    assert_eq!(host.holdings(DomId::DOM0).1, 2);
    let error = builder.map(&pages.refs).unwrap_err();
    assert!(
        matches!(
            error,
            MapError::Room {
                asked: 2,
                room: 1,
                ..
            }
        ),
        "{error:?}"
    );
    let error = builder.finish().unwrap_err();
    assert!(
        matches!(
            error,
            MapError::Unfinished {
                mapped: 2,
                pages: 3,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(host.holdings(DomId::DOM0).1, 0);
}

/// Private memory that holds `bytes`.
fn own(bytes: &[u8]) -> Area {
    let area = Area::anonymous(bytes.len()).unwrap();
    let range = area.range(0, bytes.len() as u64, Access::Write).unwrap();
    range.write(0, bytes).unwrap();
    area
}

fn all(area: &Area) -> GuestRange<'_> {
    area.range(0, area.len() as u64, Access::Write).unwrap()
}

#[test]
fn copies_are_checked_one_by_one() {
    let host = Host::start();
    let (guest, other) = (host.guest("g"), host.guest("other"));
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
    let read_only = domu.grant_pages(DomId::DOM0, 1, Access::Read).unwrap();
    let foreign = domu.grant_pages(other, 1, Access::Write).unwrap();
    let revoked = domu.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
    set_byte(&read_only.area, 0, 3);
    let (gref, ro) = (pages.refs[0], read_only.refs[0]);
    let (elsewhere, gone) = (foreign.refs[0], revoked.refs[0]);
    revoked.revoke().unwrap();
    let (xy, x, read) = (own(b"xy"), own(b"x"), own(&[0; 2]));
    let unwritable = xy.range(0, 2, Access::Read).unwrap();
    let mut batch = [
        GrantCopy::to_grant(gref, 4094, all(&xy)),
        GrantCopy::from_grant(ro, 0, all(&read)),
        GrantCopy::to_grant(ro, 0, all(&x)),
        GrantCopy::from_grant(gref, 4095, all(&xy)),
        GrantCopy::from_grant(gref, 0, unwritable),
        GrantCopy::to_grant(elsewhere, 0, all(&x)),
        GrantCopy::from_grant(gone, 0, all(&xy)),
        GrantCopy::to_grant(GrantRef(32_768), 0, all(&x)),
        GrantCopy::to_grant(GrantRef(u32::MAX), 0, all(&x)),
    ];
    dom0.grant_copy(guest, &mut batch).unwrap();
    let refused = Err(CopyRefusal::NotGranted);
    let expected = [
        Ok(()),
        Ok(()),
        refused,
        Err(CopyRefusal::Range),
        Err(CopyRefusal::Range),
        refused,
        refused,
        Err(CopyRefusal::NoReference),
        Err(CopyRefusal::NoReference),
    ];
    assert_eq!(batch.each_ref().map(|copy| copy.result), expected);
    assert_eq!(all(&read).read_array(0), Ok([3, 0]));
    assert_eq!(all(&xy).read_array(0), Ok(*b"xy"));
    let range = pages.area.range(4094, 2, Access::Read).unwrap();
    assert_eq!(range.read_array::<2>(0).unwrap(), *b"xy");
    assert_eq!(byte(&read_only.area, 0), 3);
    let counters = host.report(DomId::DOM0).unwrap().counters;
    // The two that do not lie inside a page are not sent.
    assert_eq!(
        (counters.grant_copy_calls, counters.grant_copy_segments),
        (1, 7)
    );
}

#[test]
fn nothing_is_copied_from_a_dead_domain() {
    let host = Host::start();
    let guest = host.guest("g");
    let dom0 = host.platform(DomId::DOM0);
    let own = own(&[7; 8]);
    for peer in [guest, DomId(77)] {
        let mut batch = [GrantCopy::from_grant(GrantRef(8), 0, all(&own))];
        if peer == guest {
            host.hypervisor.destroy_domain(guest).unwrap();
        }
        dom0.grant_copy(peer, &mut batch).unwrap();
        assert_eq!(batch[0].result, Err(CopyRefusal::Other(-2)));
    }
    assert_eq!(all(&own).read_array(0), Ok([7; 8]));
}

#[test]
fn a_batch_is_one_call_even_if_it_is_larger_than_a_packet() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 64, Access::Write).unwrap();
    for page in 0..64 {
        set_byte(&pages.area, page, u8::try_from(page).unwrap());
    }
    let own = Area::anonymous(64 * PAGE_SIZE).unwrap();
    let mut batch: Vec<_> = (0..)
        .zip(&pages.refs)
        .map(|(page, gref)| {
            let at = page * PAGE_SIZE as u64;
            let into = own.range(at, PAGE_SIZE as u64, Access::Write).unwrap();
            GrantCopy::from_grant(*gref, 0, into)
        })
        .collect();
    dom0.grant_copy(guest, &mut batch).unwrap();
    assert!(batch.iter().all(|copy| copy.result.is_ok()));
    let firsts: Vec<u8> = (0..64).map(|page| byte(&own, page)).collect();
    assert_eq!(firsts, (0..64).collect::<Vec<u8>>());
    let counters = host.report(DomId::DOM0).unwrap().counters;
    assert_eq!(
        (counters.grant_copy_calls, counters.grant_copy_segments),
        (1, 64)
    );
}

#[test]
fn a_batch_that_is_longer_than_a_call_takes_more() {
    let host = Host::start();
    let guest = host.guest("g");
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 1, Access::Read).unwrap();
    let own = own(&[1]);
    let copy = || GrantCopy::from_grant(pages.refs[0], 0, all(&own));
    let mut batch: Vec<_> = std::iter::repeat_with(copy)
        .take(MAX_COPIES_PER_CALL + 1)
        .collect();
    dom0.grant_copy(guest, &mut batch).unwrap();
    assert!(batch.iter().all(|copy| copy.result.is_ok()));
    let counters = host.report(DomId::DOM0).unwrap().counters;
    assert_eq!(
        (counters.grant_copy_calls, counters.grant_copy_segments),
        (2, MAX_COPIES_PER_CALL as u64 + 1)
    );
}
