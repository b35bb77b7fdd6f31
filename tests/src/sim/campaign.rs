//! Many seeds, on all processors: each world is one thread's, so a seed's story does not depend on how many there are.
//!
//! Called by `cargo xtask sim`, by the tests and by the mutation check. It judges nothing.

use std::num::NonZero;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::{Outcome, Tally, Violation};

/// What came of many seeds.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// How many worlds there were.
    pub seeds: u64,
    /// Seeds in which something happened that must not, in order, and what.
    pub violations: Vec<(u64, Violation)>,
    /// How many hours passed in all worlds together.
    pub simulated_hours: f64,
    /// How many things happened in them.
    pub events: u64,
    /// What they were.
    pub tally: Tally,
    /// How long it took.
    pub wall_s: f64,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When all seeds are done.
    Done,
    /// When one violation was found.
    FirstViolation,
}

/// How many seeds are drawn at once by a thread.
const PORTION: u64 = 8;
const NANOS_PER_HOUR: f64 = 3.6e12;

/// Runs `seeds` worlds, the first of them of the seed `from`.
#[must_use]
pub fn run(from: u64, seeds: u64, until: Until) -> Findings {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    run_on(threads, from, seeds, until)
}

/// The same, on so many threads.
#[must_use]
pub fn run_on(threads: usize, from: u64, seeds: u64, until: Until) -> Findings {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Findings::default());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let first = next.fetch_add(PORTION, Ordering::Relaxed);
                    if first >= seeds {
                        break;
                    }
                    let part = portion(from + first, PORTION.min(seeds - first));
                    if until == Until::FirstViolation && !part.violations.is_empty() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    sum.lock().unwrap_or_else(PoisonError::into_inner).add(part);
                }
            });
        }
    });
    let mut findings = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    findings.violations.sort_by_key(|(seed, _)| *seed);
    findings.wall_s = began.elapsed().as_secs_f64();
    findings
}

fn portion(from: u64, seeds: u64) -> Findings {
    let mut findings = Findings {
        seeds,
        ..Findings::default()
    };
    for seed in from..from + seeds {
        let outcome = run_one(seed);
        findings.simulated_hours += outcome.simulated_ns as f64 / NANOS_PER_HOUR;
        findings.events += outcome.events;
        findings.tally.add(&outcome.tally);
        findings
            .violations
            .extend(outcome.violation.map(|violation| (seed, violation)));
    }
    findings
}

/// A machine that finds itself wrong panics: what only we ourselves could have got wrong is an assertion.
fn run_one(seed: u64) -> Outcome {
    catch_unwind(|| super::run(seed)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Outcome {
            violation: Some(Violation {
                invariant: "assertion",
                sentence: said.unwrap_or("it panicked").to_owned(),
                at_ns: 0,
            }),
            ..Outcome::default()
        }
    })
}

impl Findings {
    fn add(&mut self, part: Self) {
        self.seeds += part.seeds;
        self.violations.extend(part.violations);
        self.simulated_hours += part.simulated_hours;
        self.events += part.events;
        self.tally.add(&part.tally);
    }
}
