//! notify: what a request costs in hypercalls, as the hosted platform counts them. Exact figures,
//! the same on a real Xen.

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
        let before = [machine.counters(guest)?, machine.counters(DomId::DOM0)?];
        drive(&mut disk, depth, REQUESTS, &mut next)?;
        let after = [machine.counters(guest)?, machine.counters(DomId::DOM0)?];
        let [front, back] = [after[0].since(&before[0]), after[1].since(&before[1])];
        let each = |count: u64| Spread::exact(count as f64 / REQUESTS as f64);
        // To a thousandth, as it is shown.
        let most = ((1.0 / f64::from(depth) + 0.02) * 1000.0).round() / 1000.0;
        for (side, sends) in [("guest", front.evtchn_send), ("backend", back.evtchn_send)] {
            let name = format!("notify QD{depth} {side} sends");
            context.add(Row::new(name, Unit::Each, each(sends)).target(Target::AtMost(most)));
        }
        let grants = |counters: xen_hal::hosted::Counters| {
            counters.grant_map_calls + counters.grant_unmap_calls + counters.grant_copy_calls
        };
        let name = format!("notify QD{depth} grant calls");
        let calls = grants(front) + grants(back);
        context.add(Row::new(name, Unit::Each, each(calls)).target(Target::AtMost(0.0)));
    }
    Ok(())
}
