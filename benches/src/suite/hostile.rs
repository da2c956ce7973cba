//! hostile: what is left to a guest while another one, on a processor of its own, does its worst.
//!
//! A flood of kicks is work by the rules, of which each guest gets its turn. A kick of a queue
//! without requests is cheap beside the victim's requests, and a ring of one page holds few: the
//! victim loses far less than half the loop. A storm of events without work is held back. What a
//! turn is worth to the victim is counted by the tests of fairness, exactly; here is what it comes
//! to in time, of turns in which the attacker was seen to attack.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};

use super::Context;
use super::blk::Image;
use crate::bare::{BareDisk, BareGuest};
use crate::blk_queue::{Operation, drive};
use crate::cpu;
use crate::machine::Machine;
use crate::report::Target;
use crate::rounds::{Spread, Took};

const DEPTH: u16 = 32;
const BYTES: u32 = 512;
/// How long the attacker may take to begin, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(10);
/// Times that a turn is taken in which the attacker did not get to anything: it says nothing.
const TRIES: u32 = 20;

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
        BareGuest::storm,
    )?;
    attack(context, core, "hostile kick flood", None, BareGuest::flood)
}

fn attack(
    context: &mut Context<'_>,
    core: usize,
    name: &str,
    target: Option<Target>,
    once: fn(&mut BareGuest) -> anyhow::Result<u64>,
) -> anyhow::Result<()> {
    let image = Image::make(1 << 20, true)?;
    let mut machine = Machine::start()?;
    let mut guest = || {
        let domid = machine.guest(&[image.line(1)])?;
        BareDisk::start(&machine, domid, 0, DEPTH, BYTES)
    };
    let (mut victim, mut attacker) = (guest()?, guest()?);
    let (on, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let attacks = AtomicU64::new(0);
    let mut rates = Vec::new();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            cpu::pin(core)?;
            while !end.load(Ordering::Relaxed) {
                match on.load(Ordering::Relaxed) {
                    true => {
                        let sent = once(&mut attacker.guest)?;
                        attacks.fetch_add(sent, Ordering::Relaxed);
                    }
                    false => thread::yield_now(),
                }
            }
            anyhow::Ok(())
        });
        let drive = |victim: &mut BareDisk, count| {
            drive(victim, DEPTH, count, &mut || Operation::GetId).map(Took::without_processor)
        };
        let mut attacked = |victim: &mut BareDisk, count| {
            for _ in 0..TRIES {
                let idle = attacks.load(Ordering::Relaxed);
                on.store(true, Ordering::Relaxed);
                let deadline = Instant::now() + LIMIT;
                while attacks.load(Ordering::Relaxed) == idle {
                    ensure!(Instant::now() < deadline, "the attacker does not begin");
                    thread::yield_now();
                }
                let (begin, before) = (Instant::now(), attacks.load(Ordering::Relaxed));
                let took = drive(victim, count);
                let sent = attacks.load(Ordering::Relaxed) - before;
                on.store(false, Ordering::Relaxed);
                let took = took?;
                if sent > 0 {
                    rates.push(sent as f64 / begin.elapsed().as_secs_f64());
                    return Ok(took);
                }
            }
            Err(anyhow!("no attack in {TRIES} turns"))
        };
        let victim = std::cell::RefCell::new(&mut victim);
        let measured = context.rate(
            name,
            "no attacker",
            target,
            &mut |count| attacked(&mut victim.borrow_mut(), count),
            &mut |count| drive(&mut victim.borrow_mut(), count),
        );
        end.store(true, Ordering::Relaxed);
        thread
            .join()
            .map_err(|_| anyhow!("the attacker panicked"))??;
        measured.map(drop)
    })?;
    // The turns before were for calibration.
    let measured = rates.len().saturating_sub(context.rounds.count);
    let rate = Spread::of(rates.get_mut(measured..).unwrap_or_default());
    context.note(&format!(
        "{:.0} attacks a second, at least {:.0} in each turn",
        rate.median, rate.low
    ));
    Ok(())
}
