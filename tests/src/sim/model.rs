//! The checked model: every order in which few things can happen to a pair with a short log, explored breadth first
//! over the production machines themselves.
//!
//! Where the simulator throws dice, the model tries everything: at every step either host may go on, lose power, stop,
//! lose its connection or fail to reach the arbiter, any word may arrive, and time may pass. What may go wrong is
//! bounded in number, and so is time. `pair` is a state of the two hosts, `step` what can happen to it.

mod pair;
mod step;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZero;
use std::thread;
use std::time::Instant;

use pair::Pair;
use step::Step;

/// How much may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Requests that clients make.
    pub requests: u8,
    /// Steps of time; a lease is over after two of them, and then silence is loss.
    pub ticks: u8,
    /// Hosts that lose power.
    pub crashes: u8,
    /// Hosts that stop and go on.
    pub pauses: u8,
    /// Connections that one end sees break.
    pub breaks: u8,
    /// Links that are cut, in one direction, until the end.
    pub cuts: u8,
    /// Claims that the arbiter does not hear, or whose answer is lost.
    pub lost_claims: u8,
}

/// What came of an exploration.
#[derive(Clone, Debug)]
pub struct Explored {
    /// How many states there are.
    pub states: u64,
    /// How many steps lead from one to another.
    pub steps: u64,
    /// The longest way to a state.
    pub depth: u64,
    /// What must not happen, and the shortest way to it.
    pub violation: Option<(String, Vec<String>)>,
    /// How long it took.
    pub wall_s: f64,
}

/// Nothing goes wrong.
const FAIR: Bounds = Bounds {
    requests: 1,
    ticks: 4,
    crashes: 0,
    pauses: 0,
    breaks: 0,
    cuts: 0,
    lost_claims: 0,
};

/// Small explorations, for every test run.
pub const EVERYDAY: [Bounds; 3] = [
    Bounds {
        ticks: 3,
        crashes: 1,
        ..FAIR
    },
    Bounds {
        ticks: 3,
        pauses: 1,
        ..FAIR
    },
    Bounds {
        ticks: 3,
        cuts: 1,
        breaks: 1,
        ..FAIR
    },
];

/// The explorations of `cargo xtask model`.
pub const ORDINARY: [Bounds; 4] = [
    Bounds {
        ticks: 3,
        crashes: 1,
        breaks: 1,
        ..FAIR
    },
    Bounds { pauses: 1, ..FAIR },
    Bounds {
        ticks: 3,
        cuts: 2,
        lost_claims: 1,
        ..FAIR
    },
    Bounds {
        requests: 2,
        ticks: 1,
        breaks: 1,
        ..FAIR
    },
];

/// Those of `cargo xtask model --deep`: some minutes.
pub const DEEP: [Bounds; 4] = [
    Bounds {
        crashes: 1,
        breaks: 1,
        ..FAIR
    },
    Bounds {
        pauses: 1,
        lost_claims: 1,
        ..FAIR
    },
    Bounds {
        cuts: 2,
        lost_claims: 1,
        ..FAIR
    },
    Bounds {
        requests: 2,
        ticks: 2,
        breaks: 1,
        ..FAIR
    },
];

/// Where a state was come from.
#[derive(Clone, Copy, Debug)]
struct Way {
    from: u32,
    step: Step,
}

/// Explores everything within `bounds`.
#[must_use]
pub fn explore(bounds: Bounds) -> Explored {
    let began = Instant::now();
    let mut search = Search::default();
    let first = Pair::new(bounds);
    search.seen.insert(print_of(&first));
    let mut frontier = vec![(first, ROOT)];
    let mut depth = 0;
    while !frontier.is_empty() && search.violation.is_none() {
        let mut next = Vec::new();
        for portion in frontier.chunks(PORTION) {
            let found = search.expand(portion);
            next.extend(found.into_iter().filter_map(|found| search.admit(found)));
        }
        frontier = next;
        depth += u64::from(!frontier.is_empty());
    }
    Explored {
        states: search.seen.len() as u64,
        steps: search.steps,
        depth,
        violation: search.violation,
        wall_s: began.elapsed().as_secs_f64(),
    }
}

/// So many states are expanded at once: what comes of them fits a cache, more or less.
const PORTION: usize = 4096;

/// What is known so far.
#[derive(Debug, Default)]
struct Search {
    seen: HashSet<u64>,
    ways: Vec<Way>,
    steps: u64,
    violation: Option<(String, Vec<String>)>,
}

/// A state that may be new.
#[derive(Debug)]
struct Found {
    print: u64,
    pair: Pair,
    way: Way,
}

impl Search {
    /// Every state that is one step behind one of the frontier and was not known before it, on all processors.
    fn expand(&mut self, frontier: &[(Pair, u32)]) -> Vec<Found> {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let part = frontier.len().div_ceil(threads);
        let seen = &self.seen;
        let parts: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = frontier
                .chunks(part)
                .map(|chunk| scope.spawn(|| expand_part(chunk, seen)))
                .collect();
            workers
                .into_iter()
                .map(|worker| {
                    worker
                        .join()
                        .expect("a machine that finds itself wrong ends the search")
                })
                .collect()
        });
        self.steps += parts.iter().map(|(steps, _)| steps).sum::<u64>();
        parts.into_iter().flat_map(|(_, found)| found).collect()
    }

    /// Takes a state in, if it is new.
    fn admit(&mut self, found: Found) -> Option<(Pair, u32)> {
        if !self.seen.insert(found.print) {
            return None;
        }
        self.ways.push(found.way);
        let place = (self.ways.len() - 1) as u32;
        if let (Some(sentence), None) = (&found.pair.wrong, &self.violation) {
            self.violation = Some((sentence.clone(), self.way_to(place)));
        }
        Some((found.pair, place))
    }

    fn way_to(&self, mut place: u32) -> Vec<String> {
        let mut steps = Vec::new();
        while place != ROOT {
            let way = self.ways[place as usize];
            steps.push(format!("{:?}", way.step));
            place = way.from;
        }
        steps.reverse();
        steps
    }
}

fn expand_part(frontier: &[(Pair, u32)], seen: &HashSet<u64>) -> (u64, Vec<Found>) {
    let (mut steps, mut found) = (0, Vec::new());
    for (pair, from) in frontier {
        for step in Step::ALL {
            let Some(pair) = pair.after(step) else { continue };
            steps += 1;
            let print = print_of(&pair);
            if !seen.contains(&print) {
                let way = Way { from: *from, step };
                found.push(Found { print, pair, way });
            }
        }
    }
    (steps, found)
}

/// The place of the first state, which was come to from nowhere.
const ROOT: u32 = u32::MAX;

/// Sixty-four bits stand for a state. Among ten million states two have the same in about three of a million cases.
fn print_of(pair: &Pair) -> u64 {
    let mut hasher = DefaultHasher::new();
    pair.hash(&mut hasher);
    hasher.finish()
}
