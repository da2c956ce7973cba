//! Walks every interleaving of both connection state machines (binding section 3): kills at any
//! step, coalesced watches, the toolstack, a dying or lying guest; and shows that the walk finds
//! what goes wrong when a rule is broken.

use handshake::checker::{Actor, Graph, Model, Step};
use handshake::world::{Held, World};
use handshake::{Broken, Environment, backend_shell, environment, frontend_shell};
use xen_bus::handshake::XenbusState;

mod handshake;

/// Far above what any run here needs; a run that grows beyond it is to be looked at.
const MAX_WORLDS: usize = 2_000_000;

struct Exploration {
    environment: Environment,
    broken: Option<Broken>,
    /// Somebody writes `online` after every fault, so that none is counted.
    forgives: bool,
    initial: World,
}

impl Model for Exploration {
    type World = World;

    fn initial(&self) -> World {
        self.initial.clone()
    }

    fn steps(&self, world: &World, steps: &mut Vec<Step<World>>) {
        let mut add = |actor, (label, next, broken)| {
            steps.push(Step {
                actor,
                label,
                next,
                broken,
            });
        };
        if let Some(labelled) = backend_shell::step(world, self.broken) {
            add(Actor::Backend, labelled);
        }
        if let Some(labelled) = frontend_shell::step(world, self.broken, self.forgives) {
            add(Actor::Frontend, labelled);
        }
        let mut labelled = Vec::new();
        environment::clock(world, &mut labelled);
        labelled.drain(..).for_each(|l| add(Actor::Clock, l));
        self.environment.steps(world, &mut labelled);
        labelled.drain(..).for_each(|l| add(Actor::Environment, l));
        steps.iter_mut().for_each(|step| step.next.reduce());
    }

    fn broken(&self, world: &World) -> Option<&'static str> {
        let store = &world.store;
        let holds = world.held != Held::NOTHING;
        let nothing = matches!(store.backend, XenbusState::InitWait | XenbusState::Closed);
        if nothing && holds {
            return Some(HELD);
        }
        if nothing && world.dying.is_some() {
            return Some(DYING);
        }
        if holds && world.backend.as_ref().is_some_and(|b| !b.handshake.holds()) {
            return Some(FORGOTTEN);
        }
        let serve = world.backend.as_ref().is_some_and(|b| b.handshake.serves())
            && world
                .frontend
                .as_ref()
                .is_some_and(|f| f.handshake.is_connected());
        let connected =
            store.backend == XenbusState::Connected && store.frontend == XenbusState::Connected;
        (serve && connected && !world.same_connection()).then_some(APART)
    }
}

const HELD: &str = "backend in 2 or 6 holds something";
const DYING: &str = "backend in 2 or 6 while the I/O of its dead predecessor goes on";
const FORGOTTEN: &str = "backend holds something and does not know it";
const APART: &str = "4/4 with another session, ring or port";

/// What a walk finds.
#[derive(Debug, PartialEq, Eq)]
enum Flaw {
    Forbidden(&'static str),
    /// 4/4 can no longer be reached, although both live and `online` is 1.
    NeverConnects,
    /// 4/4 can be put off for ever.
    MayNeverConnect,
    /// `online` = 0, and the backend may never come to 6 holding nothing.
    MayNeverClose,
    /// The guest or the directory is gone, and the backend may hold on to it.
    MayKeepTheDead,
    /// The frontend has left 4, and the backend may hold on to it.
    MayKeepTheGone,
    /// A frontend that was told to leave may stay.
    MayNeverLeave,
}

impl Exploration {
    fn new(environment: Environment) -> Self {
        Self {
            environment,
            broken: None,
            forgives: true,
            initial: World::fresh(),
        }
    }

    fn breaking(rule: Broken, environment: Environment) -> Vec<Flaw> {
        Self {
            broken: Some(rule),
            ..Self::new(environment)
        }
        .flaws()
    }

    fn flaws(&self) -> Vec<Flaw> {
        Self::flaws_of(&Graph::explore(self, MAX_WORLDS))
    }

    fn flaws_of(graph: &Graph<World>) -> Vec<Flaw> {
        println!("{} worlds", graph.len());
        let mut flaws = Vec::new();
        for (why, trace) in &graph.violations {
            println!("{why}: {trace:#?}");
            flaws.push(Flaw::Forbidden(why));
        }
        for (flaw, at) in Self::liveness(graph) {
            if let Some(at) = at {
                println!("{flaw:?}: {:#?}\n{:?}", graph.trace(at), graph.world(at));
                flaws.push(flaw);
            }
        }
        flaws
    }

    /// The questions about what must come, each with a world for which the answer is bad.
    fn liveness(graph: &Graph<World>) -> [(Flaw, Option<u32>); 6] {
        let stays = |w: &World| w.frontend.as_ref().is_some_and(|f| !f.leaves);
        let leaves = |w: &World| w.frontend.as_ref().is_some_and(|f| f.leaves);
        let answers = |w: &World| w.backend.is_some() && w.store.exists;
        let online = |w: &World| answers(w) && w.store.online && stays(w);
        let holds_nothing = |w: &World| w.held == Held::NOTHING && w.dying.is_none();
        let closed = |w: &World| w.store.backend == XenbusState::Closed && holds_nothing(w);
        let deserted = |w: &World| {
            use XenbusState::{Connected, Initialised};
            let served = matches!(w.store.frontend, Initialised | Connected);
            answers(w) && w.store.backend == Connected && !served
        };
        let void = |w: &World| w.backend.is_some() && (w.gone || !w.store.exists);
        let left = |w: &World| w.granted.is_none() && w.frontend.is_none();
        [
            (
                Flaw::NeverConnects,
                graph.cannot_reach(online, World::connected),
            ),
            (
                Flaw::MayNeverConnect,
                graph.can_avoid(online, World::connected),
            ),
            (
                Flaw::MayNeverClose,
                graph.can_avoid(|w| answers(w) && !w.store.online, closed),
            ),
            (Flaw::MayKeepTheDead, graph.can_avoid(void, holds_nothing)),
            (
                Flaw::MayKeepTheGone,
                graph.can_avoid(deserted, holds_nothing),
            ),
            (
                Flaw::MayNeverLeave,
                graph.can_avoid(|w| answers(w) && leaves(w), left),
            ),
        ]
    }
}

/// Nothing goes wrong.
const QUIET: Environment = Environment {
    backend_kills: false,
    frontend_kills: false,
    toolstack: false,
    deletion: false,
    domain_death: false,
    time_outs: false,
    faults: false,
    leaving: false,
    lying_frontend: false,
    lying_backend: false,
};

/// Everything goes wrong, but nobody lies.
const MISHAPS: Environment = Environment {
    backend_kills: true,
    frontend_kills: true,
    toolstack: true,
    domain_death: true,
    time_outs: true,
    faults: true,
    leaving: true,
    ..QUIET
};

#[test]
fn kills_toolstack_and_death_at_any_step() {
    let graph = Graph::explore(&Exploration::new(MISHAPS), MAX_WORLDS);
    assert_eq!(Exploration::flaws_of(&graph), []);
    // A walk that never comes to a step shows nothing about it.
    for label in RARE_STEPS {
        assert!(graph.labels.contains(label), "{label}: {:#?}", graph.labels);
    }
}

const RARE_STEPS: [&str; 12] = [
    "backend attaches again",
    "backend cannot attach again",
    "backend cannot map the ring",
    "backend does not enter 2",
    "backend does not read the keys",
    "backend refuses header or port",
    "every device is let go",
    "frontend cannot write",
    "frontend exits",
    "frontend reads another session",
    "the driver has been asked for too long",
    "the last I/O of a dead backend ends",
];

#[test]
fn three_faults_in_a_row_and_online_written_again() {
    let environment = Environment {
        backend_kills: true,
        faults: true,
        time_outs: true,
        ..QUIET
    };
    let exploration = Exploration {
        forgives: false,
        ..Exploration::new(environment)
    };
    let graph = Graph::explore(&exploration, MAX_WORLDS);
    assert_eq!(Exploration::flaws_of(&graph), []);
    assert!(graph.labels.contains("somebody writes online again"));
}

/// A guest that writes what it likes, and a toolstack that does too.
const ALONE: Environment = Environment {
    backend_kills: true,
    toolstack: true,
    deletion: true,
    faults: true,
    lying_frontend: true,
    ..QUIET
};

fn alone(broken: Option<Broken>) -> Exploration {
    let initial = World {
        frontend: None,
        ..World::fresh()
    };
    Exploration {
        broken,
        initial,
        ..Exploration::new(ALONE)
    }
}

#[test]
fn a_guest_that_writes_what_it_likes() {
    assert_eq!(alone(None).flaws(), []);
}

#[test]
fn without_looking_at_the_own_state_deleted_directories_come_back() {
    let flaws = alone(Some(Broken::PublishesBlindly)).flaws();
    assert!(flaws.contains(&Flaw::Forbidden(backend_shell::REMADE)));
}

#[test]
fn a_backend_domain_that_writes_what_it_likes() {
    let environment = Environment {
        faults: true,
        time_outs: true,
        leaving: true,
        lying_backend: true,
        ..QUIET
    };
    let initial = World {
        backend: None,
        ..World::fresh()
    };
    let exploration = Exploration {
        initial,
        ..Exploration::new(environment)
    };
    assert_eq!(exploration.flaws(), []);
}

#[test]
fn without_one_to_two_nothing_begins() {
    assert!(Exploration::breaking(Broken::OneStays, QUIET).contains(&Flaw::NeverConnects));
}

#[test]
fn without_waiting_at_four_three_both_may_start_over_for_ever() {
    assert!(Exploration::breaking(Broken::ThreeIsLeft, QUIET).contains(&Flaw::MayNeverConnect));
}

#[test]
fn without_looking_at_the_session_a_restarted_backend_is_not_noticed() {
    let environment = Environment {
        backend_kills: true,
        ..QUIET
    };
    assert!(Exploration::breaking(Broken::AnySession, environment).contains(&Flaw::NeverConnects));
}

#[test]
fn without_starting_again_a_fault_is_the_end() {
    let environment = Environment {
        faults: true,
        ..QUIET
    };
    assert!(Exploration::breaking(Broken::NeverAgain, environment).contains(&Flaw::NeverConnects));
}

#[test]
fn without_reading_online_in_the_transaction_deleted_directories_come_back() {
    let environment = Environment {
        toolstack: true,
        ..QUIET
    };
    assert!(
        Exploration::breaking(Broken::OfferOffline, environment)
            .contains(&Flaw::Forbidden(backend_shell::REMADE))
    );
}

#[test]
fn with_session_and_state_apart_a_new_directory_gets_one_without_the_other() {
    let environment = Environment {
        toolstack: true,
        ..QUIET
    };
    assert!(
        Exploration::breaking(Broken::SessionApart, environment).contains(&Flaw::NeverConnects)
    );
}

#[test]
fn without_the_lock_a_dead_backend_still_writes_in_six() {
    let environment = Environment {
        backend_kills: true,
        ..QUIET
    };
    assert!(Exploration::breaking(Broken::NoLock, environment).contains(&Flaw::Forbidden(DYING)));
}

#[test]
fn a_mapping_left_behind_is_found() {
    let environment = Environment {
        faults: true,
        ..QUIET
    };
    assert!(
        Exploration::breaking(Broken::KeepsMapping, environment).contains(&Flaw::Forbidden(HELD))
    );
}

#[test]
fn a_frontend_that_revokes_too_early_is_found() {
    let environment = Environment {
        faults: true,
        ..QUIET
    };
    assert!(
        Exploration::breaking(Broken::RevokesAtOnce, environment)
            .contains(&Flaw::Forbidden(frontend_shell::REVOKED_HELD))
    );
}
