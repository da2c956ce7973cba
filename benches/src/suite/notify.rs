//! notify: what a request costs in hypercalls, as the hosted platform counts them.
//!
//! A count, but not always the same one: how many requests an event stands for depends on how the
//! two sides take turns on their one processor. So each is counted several times, and only what was
//! the same each time is exact. On a real Xen the turns are others: docs/performance-xen.md.

use xen_hal::hosted::Counters;
use xen_types::DomId;

use super::Context;
use super::blk::{BLOCK, DEPTH, Image};
use crate::blk_queue::{Operation, drive};
use crate::guest::MsgDisk;
use crate::machine::Machine;
use crate::report::{Row, Target, Unit};
use crate::rounds::Spread;

/// Requests that are counted: a multiple of every depth.
const REQUESTS: u64 = 128 * 64;
/// Times that they are: odd, so that there is a middle one.
const COUNTS: usize = 5;

pub(super) fn run(context: &mut Context<'_>) -> anyhow::Result<()> {
    let image = Image::make(1 << 20, true)?;
    let mut machine = Machine::start()?;
    let (guest, mut disk) = MsgDisk::start(&mut machine, &image.line(1), DEPTH, BLOCK)?;
    let mut sectors = image.sectors();
    let mut next = || Operation::Read {
        sector: sectors(),
        bytes: BLOCK,
    };
    for depth in [1, 8, 32, 128] {
        // What the change of depth costs is not steady state.
        drive(&mut disk, depth, 4 * u64::from(DEPTH), &mut next)?;
        let mut counts: [Vec<f64>; 3] = Default::default();
        for _ in 0..COUNTS {
            context.rounds.check()?;
            let before = [machine.counters(guest)?, machine.counters(DomId::DOM0)?];
            drive(&mut disk, depth, REQUESTS, &mut next)?;
            let after = [machine.counters(guest)?, machine.counters(DomId::DOM0)?];
            let [front, back] = [after[0].since(&before[0]), after[1].since(&before[1])];
            let calls = grant_calls(&front) + grant_calls(&back);
            for (counts, count) in
                counts
                    .iter_mut()
                    .zip([front.evtchn_send, back.evtchn_send, calls])
            {
                counts.push(count as f64 / REQUESTS as f64);
            }
        }
        // To a thousandth, as it is shown.
        let sends = ((1.0 / f64::from(depth) + 0.02) * 1000.0).round() / 1000.0;
        let cases = [
            ("guest sends", sends),
            ("backend sends", sends),
            ("grant calls", 0.0),
        ];
        for ((case, most), counts) in cases.into_iter().zip(&mut counts) {
            let name = format!("notify QD{depth} {case}");
            let row = Row::new(name, Unit::Each, Spread::of(counts));
            context.add(row.target(Target::AtMost(most)));
        }
    }
    Ok(())
}

fn grant_calls(counters: &Counters) -> u64 {
    counters.grant_map_calls + counters.grant_unmap_calls + counters.grant_copy_calls
}
