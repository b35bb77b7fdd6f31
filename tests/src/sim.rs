//! The suite `sim`: the protocol's own machines in a simulated world with virtual time, through more bad days than any
//! deployment will see, watched by an oracle.
//!
//! Read in this order: `world` (what happens), `plan` (what a seed means), `process` (what a host does; each file says
//! which production file it stands for), `oracle` and `inspect` (what must not happen). The machines, the output rule,
//! the windows of recorder and replayer, the register and the arbiter's file store are the production code, unchanged;
//! threads, sockets, KVM and device processes are stood for.

mod agenda;
mod arbiter;
pub mod campaign;
mod chain;
mod clock;
mod device;
mod dice;
mod disk;
mod env;
mod faults;
mod guest;
mod host;
mod inspect;
pub mod model;
mod operator;
mod oracle;
mod outside;
mod plan;
mod platter;
mod process;
mod runs;
mod stale;
mod story;
pub mod suite;
mod wires;
mod world;

pub use oracle::{Tally, Violation};
pub use world::Outcome;

use story::Story;
use world::World;

/// Runs the world of a seed.
#[must_use]
pub fn run(seed: u64) -> Outcome {
    World::new(seed, Story::default()).run()
}

/// Looks for a bug in so many worlds; says in one line whether one was found and how.
#[must_use]
pub fn hunt(seeds: u64) -> String {
    let findings = campaign::run(1, seeds, campaign::Until::FirstViolation);
    match findings.violations.first() {
        Some((
            seed,
            Violation {
                invariant, sentence, ..
            },
        )) => {
            format!(
                "found by seed {seed} ({invariant}): {}",
                sentence.replace('\n', " ")
            )
        }
        None => hunt_in_model(),
    }
}

fn hunt_in_model() -> String {
    let violations = model::EVERYDAY
        .into_iter()
        .filter_map(|bounds| model::explore(bounds).violation);
    match violations.into_iter().next() {
        Some((sentence, way)) => format!("found by the model: {sentence}, after {}", way.join(", ")),
        None => "survived".into(),
    }
}

/// Runs the world of a seed and tells its story.
#[must_use]
pub fn tell(seed: u64) -> Outcome {
    World::new(seed, Story::told()).run()
}
