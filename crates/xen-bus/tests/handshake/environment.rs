//! What can happen to the two processes: kills, the toolstack, a guest that dies or lies.

use xen_bus::handshake::{Wait, XenbusState};
use xen_types::Session;

use super::Labelled;
use super::backend_shell::BackendShell;
use super::frontend_shell::FrontendShell;
use super::world::{Held, Store, World};

/// What may happen in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Environment {
    /// The backend is killed at any step, with and without a state file that can be used.
    pub(crate) backend_kills: bool,
    /// The frontend is killed at any step.
    pub(crate) frontend_kills: bool,
    /// The toolstack writes `online`, deletes and makes the directories.
    pub(crate) toolstack: bool,
    /// Somebody deletes the directories at any time.
    pub(crate) deletion: bool,
    /// The guest dies.
    pub(crate) domain_death: bool,
    /// The frontend's patience ends.
    pub(crate) time_outs: bool,
    /// Either side finds a fault while messages flow.
    pub(crate) faults: bool,
    /// The frontend is told to leave.
    pub(crate) leaving: bool,
    /// The guest writes what it likes, instead of a frontend of ours.
    pub(crate) lying_frontend: bool,
    /// The backend's domain writes what it likes, instead of a backend of ours.
    pub(crate) lying_backend: bool,
}

/// A session that no backend of ours offers here.
const WRONG: Session = Session(99);

/// The steps found so far from one world.
struct Steps<'a> {
    world: &'a World,
    out: &'a mut Vec<Labelled>,
}

impl Steps<'_> {
    fn add(&mut self, label: &'static str, change: impl FnOnce(&mut World)) {
        let mut next = self.world.clone();
        change(&mut next);
        self.out.push((label, next, None));
    }
}

impl Environment {
    pub(crate) fn steps(&self, world: &World, out: &mut Vec<Labelled>) {
        let mut steps = Steps { world, out };
        if self.backend_kills {
            if world.backend.is_some() {
                steps.add("backend is killed", |w| kill_backend(w, false));
                if world.file.is_some() {
                    steps.add("backend is killed, its state file valid", |w| {
                        kill_backend(w, true)
                    });
                }
            } else {
                steps.add("backend starts", |w| {
                    w.backend = Some(BackendShell::started())
                });
            }
        }
        if self.frontend_kills && !world.gone {
            if world.frontend.is_some() {
                steps.add("frontend is killed", kill_frontend);
            } else {
                steps.add("frontend starts", |w| {
                    w.frontend = Some(FrontendShell::started())
                });
            }
        }
        if self.domain_death && !world.gone {
            steps.add("guest dies", |w| {
                kill_frontend(w);
                w.gone = true;
                clear_frontend_directory(&mut w.store);
            });
        }
        if self.toolstack {
            toolstack(&mut steps);
        }
        if self.deletion && world.store.exists {
            steps.add("somebody deletes the directories", |w| {
                w.store = Store::ABSENT
            });
        }
        if self.lying_frontend {
            lying_frontend(&mut steps);
        }
        if self.lying_backend {
            lying_backend(&mut steps);
        }
        self.in_backend(&mut steps);
        self.in_frontend(&mut steps);
    }

    fn in_backend(&self, steps: &mut Steps<'_>) {
        let Some(backend) = &steps.world.backend else {
            return;
        };
        let change = |f: fn(&mut BackendShell)| move |w: &mut World| f(w.backend.as_mut().unwrap());
        if self.faults && backend.handshake.serves() {
            steps.add(
                "backend finds a fault",
                change(|b| b.handshake.fault("bad index")),
            );
        }
        if backend.handshake.wait() == Some(Wait::Drain) {
            steps.add("every device is let go", change(|b| b.handshake.drained()));
        }
    }

    fn in_frontend(&self, steps: &mut Steps<'_>) {
        let Some(frontend) = &steps.world.frontend else {
            return;
        };
        let change =
            |f: fn(&mut FrontendShell)| move |w: &mut World| f(w.frontend.as_mut().unwrap());
        if self.faults && frontend.handshake.is_connected() {
            steps.add("frontend finds a fault", change(|f| f.handshake.fault()));
        }
        if self.time_outs && frontend.handshake.wait() == Some(Wait::Connect) {
            let time_out = change(|f| f.handshake.timed_out(Wait::Connect));
            steps.add("frontend has waited too long for 4", time_out);
        }
        if self.leaving && !frontend.leaves {
            let leave = change(|f| {
                f.handshake.leave();
                f.leaves = true;
            });
            steps.add("frontend is told to leave", leave);
        }
    }
}

/// What no process does, and what yet comes to pass: the clock runs, and I/O ends.
pub(crate) fn clock(world: &World, out: &mut Vec<Labelled>) {
    let mut steps = Steps { world, out };
    if world.dying.is_some() {
        steps.add("the last I/O of a dead backend ends", |w| w.dying = None);
    }
    let draining = |b: &BackendShell| b.handshake.wait() == Some(Wait::Drain);
    if world.backend.as_ref().is_some_and(draining) {
        steps.add("the driver has been asked for too long", |w| {
            w.backend.as_mut().unwrap().handshake.timed_out(Wait::Drain);
        });
    }
    if world.store.online
        && world
            .frontend
            .as_ref()
            .is_some_and(|f| f.handshake.is_stuck())
    {
        steps.add("somebody writes online again", |w| {
            w.frontend.as_mut().unwrap().handshake.online_written();
        });
    }
}

fn kill_backend(world: &mut World, file_valid: bool) {
    world.dying = world
        .dying
        .or((world.held.ring != 0).then_some(world.held.ring));
    world.backend = None;
    world.held = Held::NOTHING;
    if !file_valid {
        world.file = None;
    }
}

fn kill_frontend(world: &mut World) {
    world.frontend = None;
    world.granted = None;
}

fn clear_frontend_directory(store: &mut Store) {
    store.frontend = XenbusState::Unknown;
    store.echo = None;
    store.ring = 0;
    store.port = 0;
}

fn toolstack(steps: &mut Steps<'_>) {
    let world = steps.world;
    if !world.store.exists {
        if !world.gone {
            steps.add("toolstack makes the directories", |w| {
                w.store = Store::FRESH
            });
        }
    } else if world.store.online {
        steps.add("toolstack writes online=0", |w| w.store.online = false);
    } else {
        steps.add("toolstack writes online=1", |w| w.store.online = true);
        let nobody_answers = world.backend.is_none() && world.dying.is_none();
        if world.store.backend == XenbusState::Closed || nobody_answers {
            steps.add("toolstack deletes the directories", |w| {
                w.store = Store::ABSENT
            });
        }
    }
}

fn lying_frontend(steps: &mut Steps<'_>) {
    if steps.world.store.exists {
        for state in XenbusState::ALL {
            steps.add("guest writes a state", |w| w.store.frontend = state);
        }
        steps.add("guest writes right keys", |w| {
            w.store.ring = 1;
            w.store.port = 1;
            w.store.echo = w.store.session;
        });
        steps.add("guest writes wrong keys", |w| {
            w.store.ring = 1;
            w.store.port = 2;
            w.store.echo = Some(WRONG);
        });
    }
    steps.add("guest grants a ring with the right header", |w| {
        w.granted = w.store.session.map(|session| (1, session));
    });
    steps.add("guest grants a ring with a wrong header", |w| {
        w.granted = Some((1, WRONG))
    });
    steps.add("guest revokes", |w| w.granted = None);
}

fn lying_backend(steps: &mut Steps<'_>) {
    for state in XenbusState::ALL {
        steps.add("backend domain writes a state", |w| w.store.backend = state);
    }
    for session in [None, Some(Session(1)), Some(WRONG)] {
        steps.add("backend domain writes a session", |w| {
            w.store.session = session
        });
    }
    steps.add("backend domain writes online", |w| {
        w.store.online = !w.store.online
    });
}
