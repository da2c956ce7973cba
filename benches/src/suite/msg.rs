//! msg_rtt and msg_stream: the message ring alone, between two threads and within one.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use anyhow::{anyhow, ensure};
use guest_memory::{Access, Area};
use rustix::event::{EventfdFlags, eventfd};
use xen_bus::layout::RingLayout;
use xen_bus::ring::MessageRing;
use xen_hal::Platform;
use xen_types::{DomId, PAGE_SIZE, Session};

use super::Context;
use crate::cpu;
use crate::end::{End, wait_readable};
use crate::machine::Machine;
use crate::report::Target;
use crate::rounds::{Took, Watch};

/// The longest message of a default session.
const LONG: usize = 264;
/// A message of a driver that reads one field.
const SHORT: usize = 64;
/// A ring of sixteen pages: more than a batch of slots each way.
const RING_ORDER: u32 = 4;
const BATCH: u64 = 32;
/// Where a message says how long it is.
const SIZE_AT: usize = 6;
/// The first byte of the message that ends the other side.
const END: u8 = 0xff;

pub(super) fn round_trip(context: &mut Context<'_>) -> anyhow::Result<()> {
    let machine = Machine::start()?;
    for (bytes, with_poll) in [(SHORT, false), (LONG, false), (SHORT, true)] {
        let [mut ours, far] = ends(&machine)?;
        let ring_echo = thread::spawn(move || echo(far));
        let [mut peer, far] = raw_ends(with_poll)?;
        let raw_echo = thread::spawn(move || far.echo());
        let (name, beside) = match with_poll {
            false => (format!("msg_rtt {bytes} B"), "eventfd"),
            true => (format!("msg_rtt {bytes} B, like"), "eventfd behind poll"),
        };
        let target = (bytes == SHORT && !with_poll).then_some(Target::AtMost(1.10));
        let measured = context.time(
            name,
            beside,
            target,
            &mut |count| ask(&mut ours, bytes, count),
            &mut |count| peer.ask(count),
        );
        finish(ours)?;
        peer.finish()?;
        join(ring_echo)?;
        join(raw_echo)?;
        measured?;
    }
    Ok(())
}

pub(super) fn stream(context: &mut Context<'_>) -> anyhow::Result<()> {
    for (bytes, target) in [(SHORT, 0.15), (LONG, 0.35)] {
        let [mut producer, mut consumer] = rings(bytes)?;
        let slots = slots(&producer)?;
        let (mut push, mut pop) = rtrb::RingBuffer::<[u8; LONG]>::new(slots);
        let (mut short_push, mut short_pop) = rtrb::RingBuffer::<[u8; SHORT]>::new(slots);
        context.time(
            format!("msg_stream {bytes} B"),
            "rtrb push, pop",
            Some(Target::AtMost(target)),
            &mut |count| one_thread(&mut producer, &mut consumer, bytes, count),
            &mut |count| match bytes {
                SHORT => one_thread_rtrb(&mut short_push, &mut short_pop, count),
                _ => one_thread_rtrb(&mut push, &mut pop, count),
            },
        )?;
    }
    let Some(core) = context.other_core else {
        context.skip("msg_stream on two processors: there is one".to_owned());
        return Ok(());
    };
    two_cores::<SHORT>(context, core, 0.15)?;
    two_cores::<LONG>(context, core, 0.35)
}

/// Messages that a ring holds one way: as many as the peer's.
fn slots(ring: &MessageRing) -> anyhow::Result<usize> {
    Ok(usize::try_from(ring.layout().slots())?)
}

/// A batch in, a batch out, by the same thread: the work without the cache lines' travel.
fn one_thread(
    producer: &mut MessageRing,
    consumer: &mut MessageRing,
    bytes: usize,
    count: u64,
) -> anyhow::Result<Took> {
    let frame = frame(bytes);
    let mut found = [0; LONG];
    let watch = Watch::start();
    for _ in 0..count.div_ceil(BATCH) {
        for _ in 0..BATCH {
            producer.try_send(frame.get(..bytes).unwrap_or_default())?;
        }
        let _nobody_sleeps = producer.flush();
        while consumer.try_recv(&mut found)?.is_some() {}
        let _nobody_sleeps = consumer.consume();
    }
    Ok(watch.took())
}

fn one_thread_rtrb<const N: usize>(
    push: &mut rtrb::Producer<[u8; N]>,
    pop: &mut rtrb::Consumer<[u8; N]>,
    count: u64,
) -> anyhow::Result<Took> {
    let message = [7; N];
    let watch = Watch::start();
    for _ in 0..count.div_ceil(BATCH) {
        for _ in 0..BATCH {
            push.push(*black_box(&message))?;
        }
        while let Ok(found) = pop.pop() {
            black_box(&found);
        }
    }
    Ok(watch.took())
}

/// Messages of `N` bytes. Both sides poll, each on a processor of its own.
fn two_cores<const N: usize>(
    context: &mut Context<'_>,
    core: usize,
    target: f64,
) -> anyhow::Result<()> {
    let slots = slots(&rings(N)?[0])?;
    context.time(
        format!("msg_stream {N} B, 2 cores"),
        "rtrb push, pop",
        Some(Target::AtMost(target)),
        &mut |count| {
            let [mut producer, mut consumer] = rings(N)?;
            let frame = frame(N);
            while_consuming(
                core,
                move || {
                    let mut found = [0; LONG];
                    let mut taken = 0;
                    while taken < count {
                        let before = taken;
                        while taken < count && consumer.try_recv(&mut found)?.is_some() {
                            taken += 1;
                        }
                        let _nobody_sleeps = consumer.consume();
                        if taken == before {
                            std::hint::spin_loop();
                        }
                    }
                    Ok(())
                },
                || {
                    let mut sent = 0;
                    while sent < count {
                        for _ in 0..BATCH.min(count - sent) {
                            while !producer.has_room()? {
                                let _nobody_sleeps = producer.flush();
                                std::hint::spin_loop();
                            }
                            producer.try_send(frame.get(..N).unwrap_or_default())?;
                            sent += 1;
                        }
                        let _nobody_sleeps = producer.flush();
                    }
                    Ok(())
                },
            )
        },
        &mut |count| {
            let (mut push, mut pop) = rtrb::RingBuffer::<[u8; N]>::new(slots);
            let message = [7; N];
            while_consuming(
                core,
                move || {
                    for _ in 0..count {
                        loop {
                            if let Ok(found) = pop.pop() {
                                black_box(&found);
                                break;
                            }
                            std::hint::spin_loop();
                        }
                    }
                    Ok(())
                },
                || {
                    for _ in 0..count {
                        while push.push(*black_box(&message)).is_err() {
                            std::hint::spin_loop();
                        }
                    }
                    Ok(())
                },
            )
        },
    )?;
    Ok(())
}

/// Runs `produce` here and `consume` on `core`; how long both took.
fn while_consuming(
    core: usize,
    consume: impl FnOnce() -> anyhow::Result<()> + Send,
    produce: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Took> {
    let ready = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        let consumer = scope.spawn(|| {
            let pinned = cpu::pin(core);
            ready.wait();
            pinned.and_then(|()| consume())
        });
        ready.wait();
        let watch = Watch::start();
        produce()?;
        consumer.join().map_err(|_| anyhow!("it panicked"))??;
        Ok(watch.took())
    })
}

fn frame(bytes: usize) -> [u8; LONG] {
    let mut frame = [7; LONG];
    let size = u16::try_from(bytes).unwrap_or_default();
    frame[SIZE_AT..SIZE_AT + 2].copy_from_slice(&size.to_le_bytes());
    frame
}

/// Both sides of a ring for messages of `bytes`.
fn rings(bytes: usize) -> anyhow::Result<[MessageRing; 2]> {
    let layout = RingLayout::new(RING_ORDER, u32::try_from(bytes)?)?;
    ensure!(u64::from(layout.slots()) > BATCH, "a batch has no room");
    let area = Area::anonymous(layout.pages() * PAGE_SIZE)?;
    let window = || area.lease().window(0, layout.bytes(), Access::Write);
    let session = Session(1);
    let near = MessageRing::create(window()?, layout, session)?;
    Ok([near, MessageRing::attach(window()?, layout, session)?])
}

/// Both ends of a connection between two domains.
fn ends(machine: &Machine) -> anyhow::Result<[End; 2]> {
    let guest = machine.create_domain()?;
    let near = Platform::open(&machine.spec(guest))?.event_channels()?;
    let far = Platform::open(&machine.spec(DomId::DOM0))?.event_channels()?;
    let near_port = near.alloc_unbound(DomId::DOM0)?;
    let far_port = far.bind_interdomain(guest, near_port)?;
    let [near_ring, far_ring] = rings(LONG)?;
    Ok([
        End::new(near_ring, near, near_port),
        End::new(far_ring, far, far_port),
    ])
}

/// Sends a message of `bytes` and waits for the answer, `count` times.
fn ask(end: &mut End, bytes: usize, count: u64) -> anyhow::Result<Took> {
    let frame = frame(bytes);
    let mut found = [0; LONG];
    let watch = Watch::start();
    for _ in 0..count {
        end.ring.try_send(frame.get(..bytes).unwrap_or_default())?;
        let len = end.receive(&mut found)?;
        ensure!(len == bytes, "{len} bytes came back of {bytes}");
    }
    Ok(watch.took())
}

fn echo(mut end: End) -> anyhow::Result<()> {
    let mut found = [0; LONG];
    loop {
        let len = end.receive(&mut found)?;
        if found[0] == END {
            return Ok(());
        }
        end.ring.try_send(found.get(..len).unwrap_or_default())?;
    }
}

fn finish(mut end: End) -> anyhow::Result<()> {
    let mut last = frame(SHORT);
    last[0] = END;
    end.ring.try_send(last.get(..SHORT).unwrap_or_default())?;
    end.publish()
}

/// One side of a pair of eventfds.
#[derive(Debug)]
struct RawEnd {
    own: OwnedFd,
    peer: OwnedFd,
    /// Sleeps in poll, as every event loop does, and not in read.
    with_poll: bool,
}

fn raw_ends(with_poll: bool) -> anyhow::Result<[RawEnd; 2]> {
    let flags = match with_poll {
        true => EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        false => EventfdFlags::CLOEXEC,
    };
    let (a, b) = (eventfd(0, flags)?, eventfd(0, flags)?);
    let end = |own, peer| RawEnd {
        own,
        peer,
        with_poll,
    };
    Ok([end(a.try_clone()?, b.try_clone()?), end(b, a)])
}

impl RawEnd {
    fn ask(&mut self, count: u64) -> anyhow::Result<Took> {
        let watch = Watch::start();
        for _ in 0..count {
            self.send(1)?;
            self.receive()?;
        }
        Ok(watch.took())
    }

    fn echo(self) -> anyhow::Result<()> {
        while self.receive()? == 1 {
            self.send(1)?;
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        self.send(2)
    }

    fn send(&self, count: u64) -> anyhow::Result<()> {
        rustix::io::write(&self.peer, &count.to_ne_bytes())?;
        Ok(())
    }

    fn receive(&self) -> anyhow::Result<u64> {
        if self.with_poll {
            wait_readable(&self.own)?;
        }
        let mut count = [0; 8];
        rustix::io::read(&self.own, &mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}

fn join(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().map_err(|_| anyhow!("the echo panicked"))?
}
