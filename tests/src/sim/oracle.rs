//! Who watches a simulated world and says when something happened that must never happen, with the number of the
//! invariant (PROTOCOL.md) that was broken.
//!
//! The oracle sees everything, also what no host can see. It changes nothing. The first violation counts: what comes
//! after it is its consequence.

mod history;
mod strays;
mod tally;
mod terms;

pub(crate) use history::History;
use strays::Strays;
pub use tally::Tally;
pub(crate) use terms::{Speaker, Terms};

use super::clock::Moment;

/// Something that must never happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant of PROTOCOL.md.
    pub invariant: &'static str,
    /// What happened.
    pub sentence: String,
    /// When, in nanoseconds of the world's time.
    pub at_ns: u64,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// Who spoke in which term.
    pub(crate) terms: Terms,
    /// How much there was to see.
    pub(crate) tally: Tally,
    /// What the outside saw.
    pub(crate) history: History,
    /// Backups that have diverged.
    pub(crate) strays: Strays,
    violation: Option<Violation>,
    /// A host that has just begun to hold a term alone: nobody else may speak from now on.
    alone: Option<usize>,
}

impl Oracle {
    /// Something is wrong.
    pub(crate) fn accuse(&mut self, now: Moment, invariant: &'static str, sentence: String) {
        self.violation.get_or_insert(Violation {
            invariant,
            sentence,
            at_ns: now.nanos(),
        });
    }

    /// A host begins to hold a term alone.
    pub(crate) fn note_alone(&mut self, host: usize) {
        self.alone = Some(host);
    }

    /// A host that has begun to hold a term alone since this was asked last.
    pub(crate) fn take_alone(&mut self) -> Option<usize> {
        self.alone.take()
    }

    /// What is wrong, if anything is.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }
}
