//! scale: many guests on one backend: what a request costs when all the others are idle, what an
//! idle guest costs, and the memory of each.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use xen_types::DomId;

use super::Context;
use super::blk::Image;
use crate::bare::BareDisk;
use crate::blk_queue::{Operation, drive};
use crate::machine::{BACKEND_THREAD, BackendProcess, Machine};
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
/// Guests whose memory is counted, after as many that are not.
const MEASURED: usize = 200;
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
    match context.vmsg.clone() {
        Some(vmsg) => memory(context, &image, &vmsg),
        None => {
            context.skip("scale memory of a guest: run `vmsg bench`".to_owned());
            Ok(())
        }
    }
}

/// What a connected guest with a disk adds to the memory of a backend that has nothing else in its
/// process.
fn memory(context: &mut Context<'_>, image: &Image, vmsg: &Path) -> anyhow::Result<()> {
    let mut machine = Machine::without_backend()?;
    let backend = BackendProcess::start(&machine, vmsg)?;
    let mut more = || -> anyhow::Result<Vec<BareDisk>> {
        let buses = buses(&mut machine, image, MEASURED)?;
        connect(context, &machine, buses)
    };
    // Tables that all share grow in steps, and with the first guests most.
    let first = more()?;
    let before = private_kib(backend.pid())?;
    let second = more()?;
    let each = (private_kib(backend.pid())? - before) / second.len() as f64;
    let detail = format!(
        "the backend's process, guests {} to {}",
        first.len() + 1,
        first.len() + second.len()
    );
    context.add(
        Row::new("scale memory of a guest", Unit::KiB, Spread::exact(each))
            .target(Target::AtMost(16.0))
            .detail(detail),
    );
    Ok(())
}

/// Buses of new domains with a disk each.
fn buses(machine: &mut Machine, image: &Image, count: usize) -> anyhow::Result<Vec<(DomId, u32)>> {
    let mut buses = Vec::new();
    for number in 0..count {
        let handle = u32::try_from(number % BUSES)?;
        let domid = match (handle, buses.last()) {
            (1.., Some((domid, _))) => *domid,
            _ => machine.create_domain()?,
        };
        machine.bus(domid, handle, &[image.line(1)])?;
        buses.push((domid, handle));
    }
    Ok(buses)
}

/// A guest on each bus.
fn connect(
    context: &Context<'_>,
    machine: &Machine,
    buses: Vec<(DomId, u32)>,
) -> anyhow::Result<Vec<BareDisk>> {
    buses
        .into_iter()
        .map(|(domid, handle)| {
            context.rounds.check()?;
            BareDisk::start(machine, domid, handle, 1, BYTES)
                .with_context(|| format!("bus {handle} of domain {domid}"))
        })
        .collect()
}

/// A machine with guests that are served by turns.
struct Crowd {
    disks: Vec<BareDisk>,
    _machine: Machine,
    random: Random,
}

impl Crowd {
    /// All buses are there when the backend comes: guests that come one by one are another matter.
    fn start(context: &Context<'_>, image: &Image, guests: usize) -> anyhow::Result<Self> {
        let mut machine = Machine::without_backend()?;
        let buses = buses(&mut machine, image, guests)?;
        machine.start_backend()?;
        let disks = connect(context, &machine, buses)?;
        Ok(Self {
            disks,
            _machine: machine,
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

/// Memory of a process that no file backs and nobody shares.
fn private_kib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = field.and_then(|rest| rest.split_whitespace().next());
    Ok(kib.context("no RssAnon")?.parse()?)
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
