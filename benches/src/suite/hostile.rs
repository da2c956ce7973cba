//! hostile: what is left to a guest while another one, on a processor of its own, does its worst.
//!
//! A flood of kicks is work by the rules, of which each guest gets its turn: two guests, half the
//! loop each. A storm of events without work is held back. What a turn is worth to the victim is
//! counted by the tests of fairness, exactly; here is what it comes to in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::anyhow;

use super::Context;
use super::blk::Image;
use crate::bare::{BareDisk, BareGuest};
use crate::blk_queue::{Operation, drive};
use crate::cpu;
use crate::machine::Machine;
use crate::report::Target;
use crate::rounds::Took;

const DEPTH: u16 = 32;
const BYTES: u32 = 512;
/// Events between two looks whether it is still on.
const STORM: u64 = 64;

pub(super) fn run(context: &mut Context<'_>) -> anyhow::Result<()> {
    let Some(core) = context.other_core else {
        context.skip("hostile: the attacker needs a processor of its own".to_owned());
        return Ok(());
    };
    attack(
        context,
        core,
        "hostile event storm",
        Some(Target::AtLeast(0.9)),
        |guest| guest.storm(STORM),
    )?;
    attack(context, core, "hostile kick flood", None, BareGuest::flood)
}

fn attack(
    context: &mut Context<'_>,
    core: usize,
    name: &str,
    target: Option<Target>,
    once: fn(&mut BareGuest) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let image = Image::make(1 << 20, true)?;
    let mut machine = Machine::start()?;
    let mut guest = || {
        let domid = machine.guest(&[image.line(1)])?;
        BareDisk::start(&machine, domid, 0, DEPTH, BYTES)
    };
    let (mut victim, mut attacker) = (guest()?, guest()?);
    let (on, end) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            cpu::pin(core)?;
            while !end.load(Ordering::Relaxed) {
                match on.load(Ordering::Relaxed) {
                    true => once(&mut attacker.guest)?,
                    false => thread::yield_now(),
                }
            }
            anyhow::Ok(())
        });
        let mut turn = |count, attacked| {
            on.store(attacked, Ordering::Relaxed);
            let took = drive(&mut victim, DEPTH, count, &mut || Operation::GetId);
            on.store(false, Ordering::Relaxed);
            took.map(Took::without_processor)
        };
        let turn = std::cell::RefCell::new(&mut turn);
        let measured = context.rate(
            name,
            "no attacker",
            target,
            &mut |count| (turn.borrow_mut())(count, true),
            &mut |count| (turn.borrow_mut())(count, false),
        );
        end.store(true, Ordering::Relaxed);
        thread
            .join()
            .map_err(|_| anyhow!("the attacker panicked"))??;
        measured.map(drop)
    })
}
