//! A small explicit-state model checker: breadth-first search over every interleaving, with the
//! questions "is something forbidden reachable?", "can the goal still be reached?" and "can the
//! goal be avoided for ever by processes that are scheduled fairly?".

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Who makes a step. Only the environment may be idle for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    /// Faults, kills, the toolstack: may happen, need not.
    Environment,
    Backend,
    Frontend,
    /// Time, and completions that need no process.
    Clock,
}

const PROCESSES: [Actor; 3] = [Actor::Backend, Actor::Frontend, Actor::Clock];

#[derive(Debug)]
pub(crate) struct Step<W> {
    pub(crate) actor: Actor,
    pub(crate) label: &'static str,
    pub(crate) next: W,
    /// This very step is forbidden, for this reason.
    pub(crate) broken: Option<&'static str>,
}

pub(crate) trait Model {
    type World: Clone + Eq + Hash;
    fn initial(&self) -> Self::World;
    fn steps(&self, world: &Self::World, steps: &mut Vec<Step<Self::World>>);
    /// Why this world is forbidden.
    fn broken(&self, world: &Self::World) -> Option<&'static str>;
}

/// Every reachable world. Worlds are named by their index, in breadth-first order, so that the
/// first answer to a question has the shortest trace.
#[derive(Debug)]
pub(crate) struct Graph<W> {
    worlds: Vec<W>,
    parents: Vec<(u32, &'static str)>,
    edges: Vec<Vec<(u32, Actor)>>,
    /// Every step that was made.
    pub(crate) labels: BTreeSet<&'static str>,
    /// Each kind of violation, with the shortest trace to it.
    pub(crate) violations: Vec<(&'static str, Vec<&'static str>)>,
}

impl<W: Clone + Eq + Hash> Graph<W> {
    /// Walks everything; panics beyond `limit` worlds.
    pub(crate) fn explore<M: Model<World = W>>(model: &M, limit: usize) -> Self {
        let mut graph = Self {
            worlds: Vec::new(),
            parents: Vec::new(),
            edges: Vec::new(),
            labels: BTreeSet::new(),
            violations: Vec::new(),
        };
        let mut index = HashMap::with_hasher(BuildHasherDefault::<WordHasher>::default());
        graph.add(&mut index, model, model.initial(), (0, "start"));
        let mut steps = Vec::new();
        let mut at = 0;
        while let Some(world) = graph.worlds.get(at).cloned() {
            assert!(at < limit, "more than {limit} worlds");
            model.steps(&world, &mut steps);
            for step in steps.drain(..) {
                graph.labels.insert(step.label);
                let parent = (u32::try_from(at).unwrap(), step.label);
                let to = graph.add(&mut index, model, step.next, parent);
                if let Some(why) = step.broken {
                    let mut trace = graph.trace(parent.0);
                    trace.push(step.label);
                    graph.violated(why, trace);
                }
                if to as usize != at {
                    graph.edges[at].push((to, step.actor));
                }
            }
            at += 1;
        }
        graph
    }

    pub(crate) fn len(&self) -> usize {
        self.worlds.len()
    }

    pub(crate) fn world(&self, at: u32) -> &W {
        &self.worlds[at as usize]
    }

    /// The labels of the steps that led to this world.
    pub(crate) fn trace(&self, mut at: u32) -> Vec<&'static str> {
        let mut labels = Vec::new();
        while at != 0 {
            let (parent, label) = self.parents[at as usize];
            labels.push(label);
            at = parent;
        }
        labels.reverse();
        labels
    }

    /// A world in `scope` from which no steps of processes lead to `goal`.
    pub(crate) fn cannot_reach(
        &self,
        scope: impl Fn(&W) -> bool,
        goal: impl Fn(&W) -> bool,
    ) -> Option<u32> {
        let mut backward = vec![Vec::new(); self.len()];
        for (from, edges) in (0u32..).zip(&self.edges) {
            for (to, actor) in edges {
                if *actor != Actor::Environment {
                    backward[*to as usize].push(from);
                }
            }
        }
        let mut reaches: Vec<bool> = self.worlds.iter().map(goal).collect();
        let mut open: Vec<u32> = (0u32..)
            .zip(&reaches)
            .filter(|(_, r)| **r)
            .map(|(i, _)| i)
            .collect();
        while let Some(at) = open.pop() {
            for from in &backward[at as usize] {
                if !std::mem::replace(&mut reaches[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        (0u32..)
            .zip(&reaches)
            .find(|(at, reaches)| !**reaches && scope(self.world(*at)))
            .map(|(at, _)| at)
    }

    /// A world in `scope` where weakly fair processes can stay for ever, without help of the
    /// environment, and without coming to `goal`: a strongly connected set of worlds in which each
    /// process either moves or somewhere cannot move.
    pub(crate) fn can_avoid(
        &self,
        scope: impl Fn(&W) -> bool,
        goal: impl Fn(&W) -> bool,
    ) -> Option<u32> {
        let inside: Vec<bool> = self.worlds.iter().map(|w| scope(w) && !goal(w)).collect();
        let component = self.components(&inside);
        let mut members: HashMap<u32, Vec<u32>> = HashMap::new();
        for (at, inside) in (0u32..).zip(&inside) {
            if *inside {
                members.entry(component[at as usize]).or_default().push(at);
            }
        }
        let fair = |set: &Vec<u32>| {
            PROCESSES.iter().all(|process| {
                let of_process = |at: &u32| {
                    self.edges[*at as usize]
                        .iter()
                        .filter(|(_, actor)| actor == process)
                };
                let stays = |(to, _): &(u32, Actor)| {
                    inside[*to as usize] && component[*to as usize] == component[set[0] as usize]
                };
                set.iter().any(|at| of_process(at).any(stays))
                    || set.iter().any(|at| of_process(at).next().is_none())
            })
        };
        members
            .values()
            .filter(|set| fair(set))
            .map(|set| set[0])
            .min()
    }

    /// The strongly connected component of each world that is `inside`, by steps of processes
    /// (Tarjan, without recursion).
    fn components(&self, inside: &[bool]) -> Vec<u32> {
        const NEW: u32 = u32::MAX;
        let mut order = vec![NEW; self.len()];
        let mut low = vec![NEW; self.len()];
        let mut component = vec![NEW; self.len()];
        let mut stack = Vec::new();
        let mut count = 0;
        for root in 0..self.len() {
            if !inside[root] || order[root] != NEW {
                continue;
            }
            let mut calls = vec![(root, 0)];
            while let Some((at, edge)) = calls.pop() {
                if edge == 0 {
                    order[at] = count;
                    low[at] = count;
                    count += 1;
                    stack.push(at);
                }
                if let Some((to, actor)) = self.edges[at].get(edge) {
                    calls.push((at, edge + 1));
                    let to = *to as usize;
                    if *actor == Actor::Environment || !inside[to] {
                        continue;
                    }
                    if order[to] == NEW {
                        calls.push((to, 0));
                    } else if component[to] == NEW {
                        low[at] = low[at].min(order[to]);
                    }
                    continue;
                }
                if low[at] == order[at] {
                    while component[at] == NEW {
                        component[stack.pop().unwrap()] = order[at];
                    }
                }
                if let Some((caller, _)) = calls.last() {
                    low[*caller] = low[*caller].min(low[at]);
                }
            }
        }
        component
    }

    fn add<M: Model<World = W>>(
        &mut self,
        index: &mut HashMap<W, u32, BuildHasherDefault<WordHasher>>,
        model: &M,
        world: W,
        parent: (u32, &'static str),
    ) -> u32 {
        if let Some(at) = index.get(&world) {
            return *at;
        }
        let at = u32::try_from(self.worlds.len()).unwrap();
        let broken = model.broken(&world);
        index.insert(world.clone(), at);
        self.worlds.push(world);
        self.parents.push(parent);
        self.edges.push(Vec::new());
        if let Some(why) = broken {
            let trace = self.trace(at);
            self.violated(why, trace);
        }
        at
    }

    fn violated(&mut self, why: &'static str, trace: Vec<&'static str>) {
        if self.violations.iter().all(|(known, _)| *known != why) {
            self.violations.push((why, trace));
        }
    }
}

/// Multiplies and rotates word by word: the default hasher is the larger part of a debug run.
#[derive(Debug, Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word.unsigned_abs() as u64);
    }
}
