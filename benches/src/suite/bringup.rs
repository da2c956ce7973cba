//! bringup: from a device that was never touched to DRIVER_OK, queues laid out and cleared.

use virtio_devices::Engine;

use super::Context;
use super::blk::{Image, model};
use crate::bare::BareGuest;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::mmio::{Mmio, Notify};
use crate::report::{Row, Target, Unit};
use crate::rounds::{Spread, Watch, summed};

/// Queues; what the pipelined and the stock order must gain on virtio-mmio.
const CASES: [(u16, f64, f64); 3] = [(1, 12.0, 1.6), (2, 16.0, 1.7), (8, 16.0, 2.4)];
/// A user-space frontend's ring.
const RING_ORDER: u32 = 2;
/// Eight queues fit.
const POOL_PAGES: usize = 256;
/// Requests of each queue: none is ever made.
const DEPTH: u16 = 1;
const BYTES: u32 = 4096;
/// INFO | reset | ACKNOWLEDGE to GET_VQUEUE | features | SET_VQUEUE | DRIVER_OK.
const ROUND_TRIPS: f64 = 6.0;

pub(super) fn run(context: &mut Context<'_>) -> anyhow::Result<()> {
    // Each side has its own: a device that is written to takes its image for itself.
    let image = Image::make(1 << 20, false)?;
    let peer_image = &Image::make(1 << 20, false)?;
    let stock_image = Image::make(1 << 20, false)?;
    let engine = Engine::new()?;
    for (queues, pipelined, stock) in CASES {
        let mut machine = Machine::start()?;
        let domid = machine.guest(&[image.line(queues)])?;
        let mut guest = Guest::connect(&machine, domid)?;
        let base = guest.base()?;
        let mut mmio = Mmio::start(&machine, model(peer_image, queues, &engine)?, Notify::Trap)?;
        let trap = context.trap(&mut mmio)?;
        let mut mmio_turn = |count: u64| {
            summed(count, || {
                let watch = Watch::start();
                mmio.probe(queues, DEPTH, BYTES)?;
                let took = watch.took();
                mmio.reset()?;
                Ok(took)
            })
        };
        context.rate(
            format!("bringup {queues}q pipelined"),
            "virtio-mmio",
            Some(Target::AtLeast(pipelined)),
            &mut |count| {
                summed(count, || {
                    let watch = Watch::start();
                    guest.bring_up(base, queues, DEPTH, BYTES)?;
                    let took = watch.took();
                    guest.reset()?;
                    Ok(took)
                })
            },
            &mut mmio_turn,
        )?;
        context.note(&trap);

        let third = machine.guest(&[stock_image.line(queues)])?;
        let mut bare = BareGuest::connect(&machine, third, 0, RING_ORDER, POOL_PAGES)?;
        context.rate(
            format!("bringup {queues}q stock order"),
            "virtio-mmio",
            Some(Target::AtLeast(stock)),
            &mut |count| {
                summed(count, || {
                    let watch = Watch::start();
                    bare.bring_up_in_stock_order(queues, DEPTH, BYTES)?;
                    let took = watch.took();
                    bare.reset()?;
                    Ok(took)
                })
            },
            &mut mmio_turn,
        )?;
        context.note(&trap);

        let before = machine.counters(domid)?.evtchn_send;
        let messages = guest.frontend.link()?.counters().sent;
        guest.bring_up(base, queues, DEPTH, BYTES)?;
        let sends = machine.counters(domid)?.evtchn_send - before;
        let messages = guest.frontend.link()?.counters().sent - messages;
        guest.reset()?;
        let traps = mmio.vcpu.counts.traps;
        mmio.probe(queues, DEPTH, BYTES)?;
        let traps = mmio.vcpu.counts.traps - traps;
        mmio.reset()?;
        let row = Row::new(
            format!("bringup {queues}q round trips"),
            Unit::Each,
            Spread::exact(sends as f64),
        );
        let row = row.detail(format!("{messages} requests; virtio-mmio: {traps} traps"));
        context.add(match queues {
            1 => row.target(Target::AtMost(ROUND_TRIPS)),
            _ => row,
        });
    }
    Ok(())
}
