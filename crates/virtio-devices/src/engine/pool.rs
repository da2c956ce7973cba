//! Threads for the calls that may wait.
//!
//! One [`Pool`] serves all devices of a process; a device submits through its own lane. Every lane
//! has one thread to itself, and up to [`WORKERS_PER_LANE`] as long as the [`SHARED_WORKERS`] last.
//! So a disk that hangs holds up itself only, however many of them there are; but 16 leave the
//! others with one thread each, so that a read there no longer passes a sync. Lanes with work take
//! turns. Threads are added on demand, at most one for each lane and [`SHARED_WORKERS`]; they stay.
//! The guarantee ends where the system refuses a thread.
//! The pool does not bound how much a lane queues: its device does, which alone can stop taking
//! requests. A thread's call ends before its process does.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use slab::Slab;

/// Threads that one device can occupy. More than one, so that reads pass a sync.
const WORKERS_PER_LANE: usize = 4;

/// Threads beyond the one of each lane, for whoever comes first: 16 devices can have all of theirs.
const SHARED_WORKERS: usize = 16 * (WORKERS_PER_LANE - 1);

/// Clones are handles to the same threads, which end with the last handle.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    handle: Arc<Handle>,
}

impl Pool {
    /// Starts the first thread; an error if the system has none left.
    pub(super) fn new() -> io::Result<Self> {
        let pool = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
        });
        pool.lock().workers = 1;
        spawn_worker(&pool)?;
        Ok(Self {
            handle: Arc::new(Handle { pool }),
        })
    }

    /// A lane for one device, with room for so many jobs before it has to grow.
    pub(super) fn lane(&self, room: usize) -> Lane {
        let lane = LaneState {
            jobs: VecDeque::with_capacity(room),
            in_turn: VecDeque::with_capacity(room),
            ..LaneState::default()
        };
        let id = self.handle.pool.lock().lanes.insert(lane);
        Lane {
            handle: Arc::clone(&self.handle),
            id,
        }
    }
}

/// Something that may wait. It reports its end itself, through [`Completions`](super::Completions).
pub(crate) trait Job: Send {
    /// Runs on a thread of the pool.
    fn run(self: Box<Self>);
}

/// One device's way into the pool. Dropping it drops the jobs that have not begun.
#[derive(Debug)]
pub(crate) struct Lane {
    handle: Arc<Handle>,
    id: usize,
}

impl Lane {
    /// Queues `job`; such jobs begin in this order.
    pub(crate) fn submit(&self, job: Box<dyn Job>) {
        self.add(job, Order::Free);
    }

    /// Queues `job`, to run when no other of this kind does: for what would only contend.
    pub(crate) fn submit_in_turn(&self, job: Box<dyn Job>) {
        self.add(job, Order::InTurn);
    }

    fn add(&self, job: Box<dyn Job>, order: Order) {
        let pool = &self.handle.pool;
        let Submitted { grow, wake } = pool.lock().submit(self.id, job, order);
        if wake {
            pool.work.notify_one();
        }
        if grow && let Err(error) = spawn_worker(pool) {
            // Not fatal: the threads that stand get to the job in turn.
            pool.lock().workers -= 1;
            tracing::warn!(%error, "no further I/O thread");
        }
    }
}

/// What may run beside a job of the same lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Anything.
    Free,
    /// Anything but another such.
    InTurn,
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Outside the lock, as jobs hold leases, and the last lease unmaps.
        let dropped = self.handle.pool.lock().close_lane(self.id);
        drop(dropped);
    }
}

/// Closes the pool with the last handle and lane.
struct Handle {
    pool: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pool.lock().closed = true;
        self.pool.work.notify_all();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.pool.lock();
        f.debug_struct("Handle")
            .field("lanes", &state.lanes.len())
            .field("workers", &state.workers)
            .field("wanted", &state.wanted())
            .finish()
    }
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_worker(&self) {
        let mut state = self.lock();
        loop {
            if let Some((id, job, order)) = state.take() {
                drop(state);
                job.run();
                state = self.lock();
                state.finish(id, order);
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

fn spawn_worker(pool: &Arc<Shared>) -> io::Result<()> {
    let pool = Arc::clone(pool);
    thread::Builder::new()
        .name("blk-io".to_owned())
        .spawn(move || pool.run_worker())
        .map(drop)
}

#[derive(Default)]
struct State {
    lanes: Slab<LaneState>,
    /// Lanes with a job that may begin, each at most once.
    ready: VecDeque<usize>,
    /// Threads that run.
    workers: usize,
    /// Those of them that wait for a job, or have been woken for one.
    idle: usize,
    /// Jobs that run on the shared threads.
    shared: usize,
    /// Lanes that could use their own thread at this moment.
    own_wanted: usize,
    /// Threads that they could use besides, if there was no end of them.
    shared_wanted: usize,
    closed: bool,
}

/// What the caller does about a new job.
struct Submitted {
    /// Starts one more thread, which is counted already.
    grow: bool,
    /// Wakes one, which is a system call that is not made for nothing.
    wake: bool,
}

#[derive(Default)]
struct LaneState {
    jobs: VecDeque<Box<dyn Job>>,
    in_turn: VecDeque<Box<dyn Job>>,
    /// Jobs that run, the one of `in_turn` among them.
    running: usize,
    /// One of `in_turn` runs.
    turn_taken: bool,
    ready: bool,
    closed: bool,
}

/// What a lane adds to the figures of [`State`] that have these names.
struct Share {
    shared: usize,
    own_wanted: usize,
    shared_wanted: usize,
}

impl LaneState {
    /// Whether the next of `in_turn` may run.
    fn has_turn(&self) -> bool {
        !self.in_turn.is_empty() && !self.turn_taken
    }

    fn wanted(&self) -> usize {
        (self.jobs.len() + self.running + usize::from(self.has_turn())).min(WORKERS_PER_LANE)
    }

    fn may_begin(&self) -> bool {
        self.running < WORKERS_PER_LANE && (self.has_turn() || !self.jobs.is_empty())
    }

    /// What it adds to the figures of the whole.
    fn share(&self) -> Share {
        let wanted = self.wanted();
        Share {
            shared: self.running.saturating_sub(1),
            own_wanted: wanted.min(1),
            shared_wanted: wanted.saturating_sub(1),
        }
    }

    /// The one in turn first, as there is at most one of them beside the others.
    fn begin(&mut self) -> Option<(Box<dyn Job>, Order)> {
        let next = if self.has_turn() {
            self.turn_taken = true;
            self.in_turn.pop_front().map(|job| (job, Order::InTurn))
        } else {
            self.jobs.pop_front().map(|job| (job, Order::Free))
        };
        self.running += usize::from(next.is_some());
        next
    }
}

impl State {
    /// Changes a lane and brings the figures of the whole up to date.
    fn update<R>(&mut self, id: usize, change: impl FnOnce(&mut LaneState) -> R) -> Option<R> {
        let lane = self.lanes.get_mut(id)?;
        let before = lane.share();
        let result = change(lane);
        let after = lane.share();
        self.shared = self.shared - before.shared + after.shared;
        self.own_wanted = self.own_wanted - before.own_wanted + after.own_wanted;
        self.shared_wanted = self.shared_wanted - before.shared_wanted + after.shared_wanted;
        if lane.may_begin() && !lane.ready {
            lane.ready = true;
            self.ready.push_back(id);
        }
        if lane.closed && lane.running == 0 {
            self.lanes.remove(id);
        }
        Some(result)
    }

    /// Threads that could be used at this moment.
    fn wanted(&self) -> usize {
        self.own_wanted + self.shared_wanted.min(SHARED_WORKERS)
    }

    /// Whether there is a thread for the next job of a lane: its own, or one of the shared.
    fn has_thread(&self, id: usize) -> bool {
        let is_own = |lane: &LaneState| lane.running == 0;
        self.shared < SHARED_WORKERS || self.lanes.get(id).is_some_and(is_own)
    }

    fn submit(&mut self, id: usize, job: Box<dyn Job>, order: Order) -> Submitted {
        let may_begin = self.update(id, |lane| {
            match order {
                Order::Free => lane.jobs.push_back(job),
                Order::InTurn => lane.in_turn.push_back(job),
            }
            lane.may_begin()
        });
        let grow = self.wanted() > self.workers;
        self.workers += usize::from(grow);
        Submitted {
            grow,
            // What may not begin yet is found by the thread that ends what it waits for.
            wake: self.idle > 0 && may_begin == Some(true) && self.has_thread(id),
        }
    }

    fn take(&mut self) -> Option<(usize, Box<dyn Job>, Order)> {
        // The first, unless the shared threads are all taken.
        let next = self.ready.iter().position(|id| self.has_thread(*id))?;
        let id = self.ready.remove(next)?;
        let (job, order) = self.update(id, |lane| {
            lane.ready = false;
            lane.begin()
        })??;
        Some((id, job, order))
    }

    fn finish(&mut self, id: usize, order: Order) {
        self.update(id, |lane| {
            lane.running -= 1;
            lane.turn_taken &= order == Order::Free;
        });
    }

    fn close_lane(&mut self, id: usize) -> [VecDeque<Box<dyn Job>>; 2] {
        self.ready.retain(|ready| *ready != id);
        self.update(id, |lane| {
            lane.closed = true;
            [mem::take(&mut lane.jobs), mem::take(&mut lane.in_turn)]
        })
        .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};

    struct Call<F>(F);

    impl<F: FnOnce() + Send> Job for Call<F> {
        fn run(self: Box<Self>) {
            (self.0)();
        }
    }

    fn job(call: impl FnOnce() + Send + 'static) -> Box<dyn Job> {
        Box::new(Call(call))
    }

    /// A job that says that it began, and ends when it is told to.
    fn gated(began: &Sender<()>) -> (Box<dyn Job>, Sender<()>) {
        let (open, gate): (_, Receiver<()>) = channel();
        let began = began.clone();
        let call = job(move || {
            began.send(()).unwrap();
            let _ = gate.recv();
        });
        (call, open)
    }

    #[test]
    fn a_lane_that_hangs_stops_no_other() {
        let pool = Pool::new().unwrap();
        let (stuck, free) = (pool.lane(0), pool.lane(0));
        let (began, begun) = channel();
        let mut gates = Vec::new();
        for _ in 0..10 * WORKERS_PER_LANE {
            let (call, gate) = gated(&began);
            stuck.submit(call);
            gates.push(gate);
        }
        for _ in 0..WORKERS_PER_LANE {
            begun.recv().unwrap();
        }
        let (done, served) = channel();
        for turn in 0..100 {
            let done = done.clone();
            free.submit(job(move || done.send(turn).unwrap()));
        }
        for _ in 0..100 {
            served.recv().unwrap();
        }
        assert!(
            begun.try_recv().is_err(),
            "more threads than a lane may have"
        );
    }

    #[test]
    fn any_number_of_lanes_that_hang_stop_no_other() {
        let pool = Pool::new().unwrap();
        let (began, begun) = channel();
        let mut gates = Vec::new();
        let hung: Vec<_> = (0..40).map(|_| pool.lane(0)).collect();
        for lane in &hung {
            for _ in 0..2 * WORKERS_PER_LANE {
                let (call, gate) = gated(&began);
                lane.submit(call);
                gates.push(gate);
            }
        }
        let limit = hung.len() + SHARED_WORKERS;
        for _ in 0..limit {
            begun.recv().unwrap();
        }
        let (done, served) = channel();
        let free: Vec<_> = (0..10).map(|_| pool.lane(0)).collect();
        for turn in 0..10 {
            for (lane, free) in free.iter().enumerate() {
                let done = done.clone();
                let call = job(move || done.send((lane, turn)).unwrap());
                match turn % 2 {
                    0 => free.submit(call),
                    _ => free.submit_in_turn(call),
                }
            }
        }
        for _ in 0..100 {
            served.recv().unwrap();
        }
        assert!(begun.try_recv().is_err(), "more threads than there may be");
        assert!(pool.handle.pool.lock().workers <= limit + free.len());

        // What comes free is used again, by those who waited for it.
        drop(gates);
        for _ in 0..hung.len() * 2 * WORKERS_PER_LANE - limit {
            begun.recv().unwrap();
        }
    }

    #[test]
    fn a_lane_never_has_more_than_its_threads() {
        let pool = Pool::new().unwrap();
        let lanes: Vec<_> = (0..3).map(|_| pool.lane(0)).collect();
        let (done, ended) = channel();
        let counts: Vec<_> = lanes
            .iter()
            .map(|_| Arc::new(AtomicUsize::new(0)))
            .collect();
        for turn in 0..300 {
            let (running, done) = (Arc::clone(&counts[turn % 3]), done.clone());
            lanes[turn % 3].submit(job(move || {
                let others = running.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                done.send(others).unwrap();
            }));
        }
        for _ in 0..300 {
            assert!(ended.recv().unwrap() < WORKERS_PER_LANE);
        }
        assert!(pool.handle.pool.lock().workers <= 3 * WORKERS_PER_LANE);
    }

    #[test]
    fn jobs_of_a_lane_begin_in_order() {
        let pool = Pool::new().unwrap();
        let lane = pool.lane(0);
        let (began, begun) = channel();
        let mut gates = Vec::new();
        for _ in 0..WORKERS_PER_LANE {
            let (call, gate) = gated(&began);
            lane.submit(call);
            gates.push(gate);
        }
        for _ in 0..WORKERS_PER_LANE {
            begun.recv().unwrap();
        }
        let (done, order) = channel();
        for turn in 0..50 {
            let done = done.clone();
            lane.submit(job(move || done.send(turn).unwrap()));
        }
        // One thread comes free: it alone takes the rest.
        drop(gates.pop());
        let seen: Vec<_> = (0..50).map(|_| order.recv().unwrap()).collect();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn what_runs_in_turn_is_alone_of_its_kind_and_in_order() {
        let pool = Pool::new().unwrap();
        let lane = pool.lane(0);
        let (began, begun) = channel();
        let (done, order) = channel();
        let running = Arc::new(AtomicUsize::new(0));
        let (first, gate) = gated(&began);
        lane.submit_in_turn(first);
        begun.recv().unwrap();
        for turn in 0..50 {
            let (running, done) = (Arc::clone(&running), done.clone());
            lane.submit_in_turn(job(move || {
                let others = running.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                done.send((turn, others)).unwrap();
            }));
        }
        // Others pass them meanwhile.
        let (passed, seen) = channel();
        for _ in 0..10 {
            let passed = passed.clone();
            lane.submit(job(move || passed.send(()).unwrap()));
        }
        for _ in 0..10 {
            seen.recv().unwrap();
        }
        assert!(order.try_recv().is_err());
        drop(gate);
        let turns: Vec<_> = (0..50).map(|_| order.recv().unwrap()).collect();
        assert_eq!(turns, (0..50).map(|turn| (turn, 0)).collect::<Vec<_>>());
    }

    #[test]
    fn dropping_a_lane_drops_what_has_not_begun() {
        let pool = Pool::new().unwrap();
        let lane = pool.lane(0);
        let (began, begun) = channel();
        let mut gates = Vec::new();
        let held = Arc::new(());
        for _ in 0..3 * WORKERS_PER_LANE {
            let (call, gate) = gated(&began);
            let held = Arc::clone(&held);
            lane.submit(job(move || {
                call.run();
                drop(held);
            }));
            gates.push(gate);
        }
        for _ in 0..WORKERS_PER_LANE {
            begun.recv().unwrap();
        }
        drop(lane);
        assert_eq!(Arc::strong_count(&held), 1 + WORKERS_PER_LANE);
        drop(gates);

        // The pool goes on, and its figures are right again.
        let lane = pool.lane(0);
        let (done, ended) = channel();
        lane.submit(job(move || done.send(()).unwrap()));
        ended.recv().unwrap();
        assert!(begun.try_recv().is_err());
    }
}
