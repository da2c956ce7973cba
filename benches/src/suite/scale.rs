//! scale: many guests on one backend: what a request costs when all the others are idle, what an
//! idle guest costs, and the memory of each.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use super::Context;
use super::blk::Image;
use crate::bare::BareDisk;
use crate::blk_queue::{Operation, drive};
use crate::machine::{BACKEND_THREAD, Machine};
use crate::random::Random;
use crate::report::{Row, Target, Unit};
use crate::rounds::{Spread, Took, Watch};

/// As many as the hosted platform has ports for, nearly.
const GUESTS: [usize; 3] = [10, 100, MANY];
const MANY: usize = 1000;
/// Each two share a domain, of which the hosted platform has 512. To the backend two buses of one
/// domain are as far from each other as those of two.
const BUSES: usize = 2;
const BYTES: u32 = 512;
/// How long the backend is watched doing nothing.
const IDLE: Duration = Duration::from_secs(1);

pub(super) fn run(context: &mut Context<'_>) -> anyhow::Result<()> {
    let image = Image::make(1 << 20, true)?;
    let mut alone = Crowd::start(context, &image, 1)?;
    for guests in GUESTS {
        let mut crowd = Crowd::start(context, &image, guests)?;
        let target = (guests == MANY).then_some(Target::AtMost(1.5));
        context.time(
            format!("scale {guests} guests"),
            "1 guest",
            target,
            &mut |count| crowd.serve(count),
            &mut |count| alone.serve(count),
        )?;
        if guests == MANY {
            let memory = Spread::exact(crowd.added_kib / guests as f64);
            context.add(
                Row::new("scale memory of a guest", Unit::KiB, memory)
                    .detail("backend and guest's side together"),
            );
            // The backend goes to sleep first.
            thread::park_timeout(IDLE / 10);
            let before = wakes()?;
            thread::park_timeout(IDLE);
            let wakes = Spread::exact((wakes()? - before) as f64);
            context.add(
                Row::new("scale idle wake-ups in 1 s", Unit::Each, wakes)
                    .target(Target::AtMost(0.0))
                    .detail(format!("{guests} guests")),
            );
        }
    }
    Ok(())
}

/// A machine with guests that are served by turns.
struct Crowd {
    disks: Vec<BareDisk>,
    _machine: Machine,
    /// Private memory since the domains and buses were made: what connections and devices take.
    added_kib: f64,
    random: Random,
}

impl Crowd {
    /// All buses are there when the backend comes: guests that come one by one are another matter.
    fn start(context: &Context<'_>, image: &Image, guests: usize) -> anyhow::Result<Self> {
        let mut machine = Machine::without_backend()?;
        let mut buses = Vec::new();
        for number in 0..guests {
            let handle = u32::try_from(number % BUSES)?;
            let domid = match (handle, buses.last()) {
                (1.., Some((domid, _))) => *domid,
                _ => machine.create_domain()?,
            };
            machine.bus(domid, handle, &[image.line(1)])?;
            buses.push((domid, handle));
        }
        let before = private_kib()?;
        machine.start_backend()?;
        let mut disks = Vec::new();
        for (domid, handle) in buses {
            context.rounds.check()?;
            disks.push(
                BareDisk::start(&machine, domid, handle, 1, BYTES)
                    .with_context(|| format!("bus {handle} of domain {domid}"))?,
            );
        }
        Ok(Self {
            disks,
            _machine: machine,
            added_kib: private_kib()? - before,
            random: Random::new(),
        })
    }

    /// Requests, each of a guest taken at random.
    fn serve(&mut self, count: u64) -> anyhow::Result<Took> {
        let watch = Watch::start();
        for _ in 0..count {
            let which = usize::try_from(self.random.below(self.disks.len() as u64))?;
            let disk = self.disks.get_mut(which).context("no guest")?;
            drive(disk, 1, 1, &mut || Operation::GetId)?;
        }
        Ok(watch.took())
    }
}

/// Memory of this process that no file backs.
fn private_kib() -> anyhow::Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = field.and_then(|rest| rest.split_whitespace().next());
    Ok(kib.context("/proc/self/status has no RssAnon")?.parse()?)
}

/// How often the threads of backends were woken.
fn wakes() -> anyhow::Result<u64> {
    let mut wakes = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() != BACKEND_THREAD {
            continue;
        }
        let status = fs::read_to_string(task.join("status"))?;
        let field = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count: u64 = field.context("no count of switches")?.trim().parse()?;
        wakes += count;
    }
    Ok(wakes)
}
