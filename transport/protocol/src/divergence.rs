//! A backup whose machine is not the primary's any more: what it says, what the primary makes of it, and when it counts
//! again. The two machines hold one half each. Nothing here compares anything: the VMM does.
//!
//! A diverged backup acks nothing and claims nothing (I16). It says where it found that out, and then a census of its
//! memory; the primary answers with a delta that makes it equal, and the first ack behind that makes it a backup again.

use std::collections::VecDeque;

use crate::ids::{LogOffset, Position, Term};
use crate::limits::{CENSUS_MAX, CENSUS_PAGES};
use crate::message::{Census, Diverged, Message, Sentence};
use crate::session::NewerTerm;

/// What an honest backup cannot say of its divergence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DivergenceFault {
    /// It is of a term to come.
    #[error(transparent)]
    NewerTerm(#[from] NewerTerm),
    /// A census comes from a backup that did not say that it has diverged.
    #[error("A census of a backup that has not diverged")]
    Unasked,
    /// A piece of the census is missing, or it has more pages than any VM.
    #[error("A census goes on at page {is} and should at {should_be}")]
    OutOfOrder {
        /// Where it goes on.
        is: u64,
        /// Where it should.
        should_be: u64,
    },
}

/// A backup that can be healed: what it found, and a hash for each of its pages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Patient {
    /// What it found, and where.
    pub found: Diverged,
    /// Its memory's hashes, from page 0 on.
    pub hashes: Vec<u64>,
}

/// What the primary knows of its backup's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Health {
    /// It is the primary's.
    #[default]
    Equal,
    /// It is not, and its census is coming.
    Counting(Patient),
    /// It is not, and its census is here.
    Counted(Patient),
    /// The delta that heals it is being made.
    InTreatment,
    /// That delta is in the log before this offset.
    Treated(LogOffset),
}

impl Health {
    pub(crate) fn handle_diverged(&mut self, found: Diverged) {
        *self = Self::Counting(Patient {
            found,
            hashes: Vec::new(),
        });
    }

    pub(crate) fn handle_census(&mut self, census: &Census) -> Result<(), DivergenceFault> {
        let Self::Counting(patient) = self else {
            return Err(DivergenceFault::Unasked);
        };
        let should_be = patient.hashes.len() as u64;
        if census.first != should_be || patient.hashes.len() + census.hashes.len() > CENSUS_MAX {
            return Err(DivergenceFault::OutOfOrder {
                is: census.first,
                should_be,
            });
        }
        patient.hashes.extend(&census.hashes);
        if census.is_last
            && let Self::Counting(patient) = std::mem::take(self)
        {
            *self = Self::Counted(patient);
        }
        Ok(())
    }

    pub(crate) fn poll_heal(&mut self) -> Option<Patient> {
        match std::mem::take(self) {
            Self::Counted(patient) => {
                *self = Self::InTreatment;
                Some(patient)
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// The delta that heals ends before `end`.
    pub(crate) fn treated(&mut self, end: LogOffset) {
        if matches!(self, Self::InTreatment) {
            *self = Self::Treated(end);
        }
    }

    /// An ack up to `upto`, which is news: true if such a backup may say so.
    pub(crate) fn handle_ack(&mut self, upto: LogOffset) -> bool {
        match self {
            Self::Equal => true,
            Self::Treated(end) if upto >= *end => {
                *self = Self::Equal;
                true
            }
            Self::Counting(_) | Self::Counted(_) | Self::InTreatment | Self::Treated(_) => false,
        }
    }

    /// May more acks come, as far as it is known?
    pub(crate) fn may_ack(&self) -> bool {
        matches!(self, Self::Equal | Self::Treated(_))
    }

    pub(crate) fn wants_heal(&self) -> bool {
        matches!(self, Self::Counted(_))
    }
}

/// What a diverged backup still has to say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Confession(VecDeque<Message>);

impl Confession {
    pub(crate) fn new(term: Term, position: Position, what: &str) -> Self {
        let what = Sentence::new(what);
        Self([Message::Diverged(Diverged { term, position, what })].into())
    }

    /// Hashes of all its pages come behind it, in pieces.
    pub(crate) fn add_census(&mut self, term: Term, hashes: &[u64]) {
        let firsts = (0..).step_by(CENSUS_PAGES);
        let pieces = firsts.zip(hashes.chunks(CENSUS_PAGES));
        self.0.extend(pieces.map(|(first, piece)| {
            Message::Census(Census {
                term,
                first,
                is_last: first + piece.len() as u64 == hashes.len() as u64,
                hashes: piece.to_vec(),
            })
        }));
    }

    pub(crate) fn poll(&mut self) -> Option<Message> {
        self.0.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Term = Term::new(3);
    const HERE: Position = Position::new(7);

    fn told(hashes: &[u64]) -> Health {
        let mut health = Health::default();
        let mut confession = Confession::new(TERM, HERE, "page 5 differs");
        confession.add_census(TERM, hashes);
        while let Some(word) = confession.poll() {
            match word {
                Message::Diverged(found) => health.handle_diverged(found),
                Message::Census(census) => health.handle_census(&census).unwrap(),
                other => panic!("{other:?} is no part of a confession"),
            }
        }
        health
    }

    #[test]
    fn a_census_of_many_pieces_comes_whole() {
        let hashes: Vec<u64> = (0..1000).collect();
        let mut health = told(&hashes);
        assert!(health.wants_heal());
        assert_eq!(health.poll_heal().unwrap().hashes, hashes);
        assert_eq!(health.poll_heal(), None);
    }

    #[test]
    fn nothing_counts_on_the_word_of_a_diverged_backup_until_it_is_healed() {
        let mut health = told(&[1, 2]);
        assert!(!health.handle_ack(LogOffset::new(5)));
        health.poll_heal();
        assert!(!health.handle_ack(LogOffset::new(5)));
        health.treated(LogOffset::new(9));
        assert!(!health.handle_ack(LogOffset::new(8)));
        assert!(health.handle_ack(LogOffset::new(9)));
        assert_eq!(health, Health::Equal);
    }

    #[test]
    fn a_census_with_a_hole_and_one_that_nobody_announced_are_refused() {
        let census = |first| Census {
            term: TERM,
            first,
            is_last: false,
            hashes: vec![1],
        };
        assert_eq!(
            Health::Equal.handle_census(&census(0)),
            Err(DivergenceFault::Unasked)
        );
        let mut health = Health::default();
        health.handle_diverged(Diverged {
            term: TERM,
            position: HERE,
            what: Sentence::new("x"),
        });
        let hole = DivergenceFault::OutOfOrder { is: 1, should_be: 0 };
        assert_eq!(health.handle_census(&census(1)), Err(hole));
    }
}
