//! map_policy: how the backend reaches a page of the guest's: by an area that was shared once, by
//! mapping and unmapping it for each request, or by grant copy.
//!
//! Times are of the hosted platform, whose grant calls are system calls and messages to a broker;
//! how many calls each policy makes is the same on Xen.

use guest_memory::{Access, AddressSpace as _, Area, FlatSpace};
use xen_hal::{GrantCopy, Platform};
use xen_types::{DomId, PAGE_SIZE};

use super::Context;
use crate::machine::Machine;
use crate::report::Target;
use crate::rounds::{Took, Watch};

/// Requests that one grant-copy call serves.
const BATCH: usize = 32;
const BASE: u64 = 1 << 48;

pub(super) fn run(context: &mut Context<'_>) -> anyhow::Result<()> {
    let machine = Machine::start()?;
    let guest = machine.create_domain()?;
    let backend = Platform::open(&machine.spec(DomId::DOM0))?;
    let frontend = Platform::open(&machine.spec(guest))?;
    let pages = frontend.grant_pages(DomId::DOM0, BATCH, Access::Write)?;
    let map = || {
        let mut mapping = backend.begin_mapping(guest, 1, Access::Write)?;
        mapping.map(pages.refs.get(..1).unwrap_or_default())?;
        anyhow::Ok(mapping.finish()?)
    };
    let mut map_each = |count: u64| timed(count, || Ok(map()?.unmap()?));

    let mut shared = backend.begin_mapping(guest, BATCH, Access::Write)?;
    shared.map(&pages.refs)?;
    let area = shared.finish()?;
    let space = FlatSpace::new(BASE, &area);
    let page = u32::try_from(PAGE_SIZE)?;
    context.time(
        "map_policy area",
        "map and unmap",
        Some(Target::AtMost(0.005)),
        &mut |count| {
            timed(count, || {
                let range = space.translate(BASE, page, Access::Write)?;
                std::hint::black_box(range);
                Ok(())
            })
        },
        &mut map_each,
    )?;
    let private = Area::anonymous(BATCH * PAGE_SIZE)?;
    for batch in [1, BATCH] {
        context.time(
            format!("map_policy copy, {batch} a call"),
            "map and unmap",
            None,
            &mut |count| {
                timed(count.div_ceil(batch as u64), || {
                    let mut copies = Vec::with_capacity(batch);
                    for (gref, at) in pages.refs.iter().zip((0..).step_by(PAGE_SIZE)).take(batch) {
                        let into = private.range(at, page.into(), Access::Write)?;
                        copies.push(GrantCopy::from_grant(*gref, 0, into));
                    }
                    Ok(backend.grant_copy(guest, &mut copies)?)
                })
            },
            &mut map_each,
        )?;
    }
    Ok(())
}

fn timed(count: u64, mut once: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Took> {
    let watch = Watch::start();
    for _ in 0..count {
        once()?;
    }
    Ok(watch.took())
}
